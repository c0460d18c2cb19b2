"""The messages of an upload: the spec first, then chunks, from so many callers at a time.

Three clocks run meanwhile, all of them only while the caller is waited for: no silence may be long, the whole must come at
some least rate, and the call has its deadline. Only so many calls are read from at a time, as what a message holds is in
memory before anybody can look at it; of the others gRPC's flow control lets in one window.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

from preprocessor.config import WireSettings
from preprocessor.errors import DeadlineExceeded, InvalidRequest, Overloaded
from preprocessor.service.gate import current_caller
from preprocessor.v1 import preprocessor_pb2 as pb

RequestMessage = TypeVar("RequestMessage", pb.PrepareRequest, pb.GenerateRequest)


class Intake:
    """Gives callers their turn to upload."""

    def __init__(self, wire: WireSettings) -> None:
        self._wire = wire
        self._turns = asyncio.Semaphore(wire.max_upload_count)

    @contextlib.asynccontextmanager
    async def upload(self, requests: AsyncIterator[RequestMessage]) -> AsyncIterator[Upload[RequestMessage]]:
        """One call's upload, when its turn has come; others wait until it is left, or has ended.

        Raises:
            Overloaded: `UPLOADS_FULL`: its turn did not come.
        """
        try:
            async with asyncio.timeout(self._wire.upload_idle_seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise Overloaded(
                f"{self._wire.max_upload_count} other callers upload already; try again, or another replica",
                reason="UPLOADS_FULL",
            ) from None
        with contextlib.ExitStack() as turn:
            turn.callback(self._turns.release)
            yield Upload(requests, self._wire, turn)


class Upload(Generic[RequestMessage]):
    """The messages of one call as they come."""

    def __init__(self, requests: AsyncIterator[RequestMessage], wire: WireSettings, turn: contextlib.ExitStack) -> None:
        self._requests: AsyncIterator[RequestMessage] = requests
        self._wire = wire
        self._turn = turn
        self._waited_seconds = 0.0
        self._received_bytes = 0

    async def spec(self) -> RequestMessage:
        """The first message, which must be a spec.

        Raises:
            InvalidRequest: `SPEC_MISSING`, `MALFORMED_MESSAGE`.
            DeadlineExceeded: `UPLOAD_IDLE`.
        """
        first = await self._next()
        if first is None or first.WhichOneof("message") != "spec":
            raise InvalidRequest("the first message must be the spec", reason="SPEC_MISSING")
        return first

    async def chunk(self) -> pb.MediaChunk | None:
        """The next chunk, or None at the end of the caller's stream.

        Raises:
            InvalidRequest: `SPEC_REPEATED`, `MALFORMED_MESSAGE`.
            DeadlineExceeded: `UPLOAD_IDLE` where the caller falls silent, `UPLOAD_TOO_SLOW` where it dawdles.
        """
        message = await self._next()
        if message is None:
            return None
        if message.WhichOneof("message") != "chunk":
            raise InvalidRequest("only the first message is a spec; the rest are chunks", reason="SPEC_REPEATED")
        return message.chunk

    def end(self) -> None:
        """Nothing more is read: it is the next caller's turn."""
        self._turn.close()

    async def _next(self) -> RequestMessage | None:
        wire = self._wire
        left_seconds = wire.upload_idle_seconds + self._received_bytes / wire.min_upload_rate - self._waited_seconds
        began_at_seconds = time.monotonic()
        try:
            async with asyncio.timeout(min(wire.upload_idle_seconds, left_seconds)):
                message = await anext(self._requests, None)
        except TimeoutError:
            if left_seconds < wire.upload_idle_seconds:
                raise DeadlineExceeded(
                    f"{self._received_bytes} bytes came in {self._waited_seconds + left_seconds:.0f} seconds; send at least "
                    f"{wire.min_upload_rate} a second",
                    reason="UPLOAD_TOO_SLOW",
                ) from None
            raise DeadlineExceeded(
                f"nothing arrived for {wire.upload_idle_seconds:g} seconds; keep sending, or close the stream",
                reason="UPLOAD_IDLE",
            ) from None
        self._waited_seconds += time.monotonic() - began_at_seconds
        if message is not None:
            size_bytes = message.ByteSize()
            self._received_bytes += size_bytes
            current_caller().add_bytes(size_bytes)
        return message
