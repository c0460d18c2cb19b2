"""One request as the messages that carry it.

An engine whose model takes pieces (it declares `first_row`) gets a large tensor in several messages of one stream:

    opening      every tensor but that one                                    the answer comes as replies to this
    piece …      `first_row` and the rows from there                          each replied to, empty, once it is read
    stop         nothing, in place of what is left or of the answer           the engine may forget the prompt

Pieces keep the event loop free (gRPC copies a message while it holds the interpreter), bound what Triton keeps in its
own shared memory, and let rows leave while later ones are still made. Any other engine gets one message.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np

from engine_client.contract.tensors import FIRST_ROW, PIXELS, USES_HELD_ITEMS, Array
from engine_client.errors import EngineRejected
from engine_client.release import Release
from engine_client.shm import SharedRegion
from engine_client.triton import kserve
from engine_client.triton.kserve import Piece, RegionRange
from engine_client.triton.tensor_mapping import TensorMapping
from engine_client.types import EngineRequest

# Encoding and gRPC's own copy together keep the loop for a few milliseconds; above it the time grows faster than the
# bytes, as allocations no longer come from memory in use: tests/bench/transport.py.
MAX_INLINE_PIECE_BYTES = 2 << 20
# Nothing is copied here; what grows with it is Triton's memory: its Python backend holds a copy of each piece in flight.
MAX_REFERRED_PIECE_BYTES = 16 << 20
# A message costs about 0.3 ms on both sides together, as much as copying this many bytes.
MIN_PIECE_BYTES = 1 << 20
# A reference costs a registered region's trouble: below this, the bytes themselves are cheaper.
MIN_REFERRED_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class KnownRegion:
    """A shared memory region and the name that the engine has for it."""

    region: SharedRegion
    name: str


@dataclass(frozen=True, slots=True)
class EngineMessage:
    """One message, ready to be written."""

    request_id: str
    """Replies to it carry this."""
    wire: bytes
    refers: bool
    """It names shared memory, which the engine reads later than the message."""
    is_piece: bool
    """The reply to it says that it was read, and nothing else."""


class RequestMessages:
    """Cuts one request into messages.

    Args:
        model_name: As the engine calls it.
        request: Whose arrays are read while the messages are asked for. One with `pixels_on_demand` says that the model holds its
            items.
        mapping: How this engine wants them.
        takes_pieces: Whether the engine's model does.
        known: Shared memory that the engine can read; None puts every tensor into the messages.
        executor: Where a large message is encoded; None is the event loop's own.
        release: Held while a thread there reads the arrays.
    Raises:
        EngineRejected: a tensor does not fit the mapping.
    """

    def __init__(
        self,
        model_name: str,
        request: EngineRequest,
        *,
        mapping: TensorMapping | None = None,
        takes_pieces: bool,
        known: KnownRegion | None,
        executor: Executor | None = None,
        release: Release | None = None,
    ) -> None:
        self._model_name = model_name
        self._request = request
        self._known = known
        self._executor = executor
        self._release = release or Release(None)
        self._prompt_key = 1 + secrets.randbelow(2**63 - 1) if takes_pieces else None
        self._mapping = mapping or TensorMapping()
        try:
            held = {} if request.pixels_on_demand is None else {USES_HELD_ITEMS: np.ones(1, np.uint8)}
            self._tensors = self._mapping.wire_tensors({**request.tensors, **request.sampling.tensors(), **held})
        except ValueError as error:
            raise EngineRejected(f"the request cannot be sent to model {model_name}: {error}") from error
        self._rows_name = self._choose_rows() if takes_pieces else None

    @property
    def stop(self) -> bytes | None:
        """The message that ends the prompt at any time; None for an engine that knows none."""
        if self._prompt_key is None:
            return None
        piece = Piece(self._prompt_key, is_stop=True)
        return kserve.encode_infer_request(self._model_name, f"{self._request.request_id}#stop", {}, piece=piece)

    async def __aiter__(self) -> AsyncGenerator[EngineMessage, None]:
        """The messages in order, each as soon as its rows are final.

        Raises:
            EngineRejected: a tensor cannot be sent.
            Exception: what `RowProgress.fail` was given.
        """
        try:
            if self._rows_name is None:
                yield await self._whole()
                return
            rest = {name: array for name, array in self._tensors.items() if name != self._rows_name}
            yield await self._message(self._request.request_id, rest, is_first=True)
            rows = self._tensors[self._rows_name]
            sent = 0
            while sent < len(rows):
                final = await self._final_rows(rows, sent)
                while sent < final:
                    stop = min(sent + self._piece_rows(rows), final)
                    yield await self._rows_message(rows, sent, stop)
                    sent = stop
        except ValueError as error:
            if self._request.pending is not None and error is self._request.pending.error:
                raise
            raise EngineRejected(f"the request cannot be sent to model {self._model_name}: {error}") from error

    def _choose_rows(self) -> str | None:
        """The tensor to send in pieces, if any."""
        pending = self._request.pending
        source = PIXELS if pending is None else pending.tensor_name
        name = self._mapping.wire_name(source)
        rows = None if name is None else self._tensors.get(name)
        # A mapping may give it further dimensions: then its rows are not those that are told of.
        if rows is None or rows.ndim == 0 or not rows.nbytes or rows.shape != self._request.tensors[source].shape:
            return None
        fits_one = len(rows) <= self._piece_rows(rows)
        return None if pending is None and fits_one else name

    def _piece_rows(self, rows: Array) -> int:
        is_referred = self._known is not None and self._known.region.offset_of(rows) is not None
        piece_bytes = MAX_REFERRED_PIECE_BYTES if is_referred else MAX_INLINE_PIECE_BYTES
        return max(1, piece_bytes * len(rows) // rows.nbytes)

    async def _final_rows(self, rows: Array, sent: int) -> int:
        """Wait for enough rows to be worth a message; how many are final then."""
        pending = self._request.pending
        if pending is None:
            return len(rows)
        worth = max(1, MIN_PIECE_BYTES * len(rows) // max(1, rows.nbytes))
        final = await pending.wait_past(min(sent + worth, len(rows)) - 1)
        if final > len(rows):
            raise ValueError(f"{final} rows of {pending.tensor_name} are said to be final; it has {len(rows)}")
        return final

    async def _whole(self) -> EngineMessage:
        pending = self._request.pending
        if pending is not None:
            await pending.wait_past(len(self._request.tensors[pending.tensor_name]) - 1)
        return await self._message(self._request.request_id, self._tensors, is_first=True, is_last=True)

    async def _rows_message(self, rows: Array, start: int, stop: int) -> EngineMessage:
        tensors = {FIRST_ROW: np.array([start], np.int64), str(self._rows_name): rows[start:stop]}
        name = f"{self._request.request_id}#{start}"
        return await self._message(name, tensors, is_last=stop == len(rows), is_piece=True)

    async def _message(
        self,
        request_id: str,
        tensors: dict[str, Array],
        *,
        is_first: bool = False,
        is_last: bool = False,
        is_piece: bool = False,
    ) -> EngineMessage:
        ranges = self._ranges(tensors)
        piece = None if self._prompt_key is None else Piece(self._prompt_key, is_first=is_first, is_last=is_last)
        encode = partial(kserve.encode_infer_request, self._model_name, request_id, tensors, ranges=ranges, piece=piece)
        inline_bytes = sum(array.nbytes for name, array in tensors.items() if name not in ranges)
        if inline_bytes <= MAX_INLINE_PIECE_BYTES:
            wire = encode()
        else:
            wire = await self._release.hold_while(encode, self._executor)
        return EngineMessage(request_id, wire, refers=bool(ranges), is_piece=is_piece)

    def _ranges(self, tensors: dict[str, Array]) -> dict[str, RegionRange]:
        """Which tensors the engine finds in shared memory, and where."""
        if self._known is None:
            return {}
        return {
            name: RegionRange(self._known.name, offset, array.nbytes)
            for name, array in tensors.items()
            if array.nbytes >= MIN_REFERRED_BYTES and (offset := self._known.region.offset_of(array)) is not None
        }
