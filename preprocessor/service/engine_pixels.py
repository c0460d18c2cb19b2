"""The pixels of one call on their way to the engine: made at once, or only if the engine asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from engine_client import Pixels, RowProgress
from engine_client.contract.tensors import PIXELS
from preprocessor.errors import PreprocessorError
from preprocessor.service.calls import Call
from preprocessor.service.metrics import Metrics
from preprocessor.service.tensor_stream import finish_pixels
from preprocessor.types.plan import Plan, Substitution
from preprocessor.types.request import Media
from preprocessor.workers.pixel_run import PixelRun


class EnginePixels:
    """Makes them once, however often they are asked for.

    Args:
        media: Of the request.
        planned: With pixels.
        takes_pieces: The engine can be sent rows while workers still write later ones.
        on_made: Called with the frames that could not be decoded, when all rows are written.
    """

    def __init__(
        self,
        media: Sequence[Media],
        planned: Plan,
        call: Call,
        metrics: Metrics,
        *,
        takes_pieces: bool,
        on_made: Callable[[Sequence[Substitution]], None],
    ) -> None:
        self._media = media
        self._planned = planned
        self._call = call
        self._metrics = metrics
        self._takes_pieces = takes_pieces
        self._on_made = on_made
        self._pixels: Pixels | None = None
        self._forwarding: asyncio.Task[None] | None = None
        self._fault: Exception | None = None

    @property
    def are_asked_for(self) -> bool:
        """Whether `make` was called."""
        return self._forwarding is not None

    async def make(self) -> Pixels:
        """See `EngineRequest.pixels_on_demand`.

        Raises:
            Whatever ended the task before it started; if the engine takes no pieces, whatever ended it.
        """
        if self._pixels is None:
            pixel_plan = self._planned.pixels
            assert pixel_plan is not None, "a plan with pixels"
            await self._call.resources.await_same_items(self._media, pixel_plan)
            run = self._call.resources.pixels(self._media, pixel_plan)
            array = await run.begun()
            self._metrics.sent_bytes.labels("engine").inc(array.nbytes)
            progress = RowProgress(PIXELS)
            self._forwarding = asyncio.create_task(self._forward(run, progress))
            if not self._takes_pieces:
                await self._forwarding
                await progress.wait_past(len(array) - 1)  # raises what ended the rows early
            self._pixels = Pixels(array, progress if self._takes_pieces else None)
        return self._pixels

    async def finish(self) -> None:
        """Wait until all rows are written, if they were asked for.

        Raises:
            An error that no request should be able to cause, even if the engine has no need of the rows.
        """
        if self._forwarding is not None:
            await self._forwarding
        if self._fault is not None:
            raise self._fault

    def cancel(self) -> None:
        """Nobody wants the rows any more."""
        if self._forwarding is not None:
            self._forwarding.cancel()

    async def _forward(self, run: PixelRun, progress: RowProgress) -> None:
        """Report finished rows to the engine client, or the error that ended them."""
        try:
            async for first_row, row_count in run.finished_rows():
                progress.finish(first_row + row_count)
            self._on_made(await finish_pixels(run, self._planned, self._call, self._metrics))
        except Exception as error:  # any: else the engine's client would wait for rows until the deadline
            if not isinstance(error, PreprocessorError):
                self._fault = error
            progress.fail(error)
