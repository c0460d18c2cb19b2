"""Frames between a front and the service: a kind, the number of a call, and a body.

    front → service   Ready; then for each call Begin, and Message or EndOfMessages after each Read, Sent after each Response and
                      Rows, Idle in its place, Interrupted after Interrupt, Left
    service → front   for each call Read, Response, Rows, Interrupt, Status; Drain

The service asks for each message of a caller, so a call that nobody reads from holds no memory here.
"""

from __future__ import annotations

import asyncio
import enum
import json
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from preprocessor.workers.shown_rows import Piece

Metadata = Sequence[tuple[str, str | bytes]]
Body = bytes | bytearray

_HEAD = struct.Struct("<BIQ")
_STAGE_BYTES = 64 << 10
_ROWS = struct.Struct("<IQQQ")
_PIECE = struct.Struct("<qQQ")
_DRAIN = struct.Struct("<d")
FILE_NUMBER = struct.Struct("<q")
"""Of each descriptor, in the message that it comes with on the other socket."""


class Kind(enum.IntEnum):
    """What a frame says."""

    READY = 1
    """The front listens."""
    BEGIN = 2
    """A call has come: `Begin`."""
    READ = 3
    """Read the caller's next message."""
    MESSAGE = 4
    """It, as it came."""
    END_OF_MESSAGES = 5
    """The caller sends no more."""
    RESPONSE = 6
    """Send this message."""
    ROWS = 7
    """Send these rows: `RowsPlace`."""
    SENT = 8
    """gRPC has accepted a `RESPONSE`, or all of `ROWS`."""
    IDLE = 9
    """The caller has not read rows in time; the rest of them is dropped."""
    INTERRUPT = 10
    """Stop sending, and drop what waits to be sent."""
    INTERRUPTED = 11
    """Done; nothing is read from shared memory any more."""
    STATUS = 12
    """End the call: `Status`."""
    LEFT = 13
    """The caller has left, or its deadline has passed. Nothing of the call is read from shared memory any more."""
    DRAIN = 14
    """Accept no more, let calls end, then exit."""


class FrameProtocol(asyncio.BufferedProtocol):
    """Frames over a connected stream socket.

    Args:
        on_frame: Called with each frame. A large body is a bytearray.
        on_lost: Called once when the other side is gone.
    """

    def __init__(self, on_frame: Callable[[Kind, int, Body], None], on_lost: Callable[[], None]) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._transport: asyncio.WriteTransport | None = None
        self._stage = bytearray(_STAGE_BYTES)
        self._staged_bytes = 0
        self._large: tuple[Kind, int, bytearray] | None = None  # a frame whose body does not fit the stage
        self._large_bytes = 0

    def send(self, kind: Kind, call_id: int = 0, body: Body = b"") -> None:
        """Send a frame; after the end of the connection, nothing."""
        if self._transport is None or self._transport.is_closing():
            return
        head = _HEAD.pack(kind, len(body), call_id)
        if len(body) < _STAGE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    def close(self) -> None:
        """End the connection; what waits to be sent is dropped."""
        if self._transport is not None:
            self._transport.abort()

    # -- for the event loop --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's own class does not inherit from it

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._on_lost()

    def get_buffer(self, size_hint: int) -> memoryview:
        if self._large is not None:
            return memoryview(self._large[2])[self._large_bytes :]
        return memoryview(self._stage)[self._staged_bytes :]

    def buffer_updated(self, size_bytes: int) -> None:
        if self._large is not None:
            self._large_bytes += size_bytes
            kind, call_id, body = self._large
            if self._large_bytes == len(body):
                self._large = None
                self._on_frame(kind, call_id, body)
            return
        self._staged_bytes += size_bytes
        self._take_frames()

    def _take_frames(self) -> None:
        """Pass on all whole frames of the stage, and keep the rest."""
        start, stop = 0, self._staged_bytes
        self._staged_bytes = 0
        while stop - start >= _HEAD.size:
            number, size_bytes, call_id = _HEAD.unpack_from(self._stage, start)
            first = start + _HEAD.size
            last = first + size_bytes
            if last > stop:
                if size_bytes > _STAGE_BYTES - _HEAD.size:
                    body = bytearray(size_bytes)
                    self._large_bytes = stop - first
                    body[: self._large_bytes] = memoryview(self._stage)[first:stop]
                    self._large = Kind(number), call_id, body
                    return
                break
            start = last
            self._on_frame(Kind(number), call_id, bytes(memoryview(self._stage)[first:last]))
        self._staged_bytes = stop - start
        if start:
            self._stage[: self._staged_bytes] = self._stage[start:stop]


@dataclass(frozen=True, slots=True)
class Begin:
    """A call, as its front has received it.

    Attributes:
        path: `/package.Service/Method`.
        peer: As gRPC writes it.
        names: What `auth_interceptor.certificate_name` reads of gRPC's authentication context.
        remaining_seconds: Until the caller's deadline; None if there is none.
    """

    path: str
    peer: str
    metadata: Metadata
    names: Mapping[str, Sequence[bytes]]
    remaining_seconds: float | None

    def pack(self) -> bytes:
        names = {key: [value.decode("latin-1") for value in values] for key, values in self.names.items()}
        return json.dumps(
            [self.path, self.peer, _as_text(self.metadata), names, self.remaining_seconds], separators=(",", ":")
        ).encode()

    @classmethod
    def unpack(cls, body: Body) -> Begin:
        path, peer, metadata, names, remaining_seconds = json.loads(body)
        return cls(
            path,
            peer,
            _from_text(metadata),
            {key: [value.encode("latin-1") for value in values] for key, values in names.items()},
            remaining_seconds,
        )


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ends.

    Attributes:
        code: gRPC's number.
    """

    code: int
    details: str = ""
    trailing_metadata: Metadata = ()

    def pack(self) -> bytes:
        return json.dumps([self.code, self.details, _as_text(self.trailing_metadata)]).encode()

    @classmethod
    def unpack(cls, body: Body) -> Status:
        code, details, trailing_metadata = json.loads(body)
        return cls(code, details, _from_text(trailing_metadata))


@dataclass(frozen=True, slots=True)
class RowsPlace:
    """Rows to send, and where they lie.

    Attributes:
        tensor_index, first_row, row_count: As in `TensorRows`.
        descriptor_count: Of files, so many that were sent until now.
        pieces: All bytes of the rows, in order.
    """

    tensor_index: int
    first_row: int
    row_count: int
    descriptor_count: int
    pieces: Sequence[Piece]

    def pack(self) -> bytes:
        head = _ROWS.pack(self.tensor_index, self.first_row, self.row_count, self.descriptor_count)
        return head + b"".join(_PIECE.pack(*piece) for piece in self.pieces)

    @classmethod
    def unpack(cls, body: Body) -> RowsPlace:
        pieces = [Piece(*fields) for fields in _PIECE.iter_unpack(memoryview(body)[_ROWS.size :])]
        tensor_index, first_row, row_count, descriptor_count = _ROWS.unpack_from(body)
        return cls(tensor_index, first_row, row_count, descriptor_count, pieces)


def pack_seconds(seconds: float) -> bytes:
    return _DRAIN.pack(seconds)


def unpack_seconds(body: Body) -> float:
    (seconds,) = _DRAIN.unpack(body)
    return float(seconds)


def _as_text(metadata: Iterable[tuple[str, str | bytes]]) -> list[tuple[str, str, bool]]:
    """Metadata for JSON: keys of binary values end with "-bin", but a library may hand out either type for either key."""
    return [
        (key, value, False) if isinstance(value, str) else (key, bytes(value).decode("latin-1"), True)
        for key, value in metadata
    ]


def _from_text(metadata: Iterable[Any]) -> Metadata:
    return tuple((key, value.encode("latin-1") if is_binary else value) for key, value, is_binary in metadata)
