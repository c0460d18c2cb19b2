"""A call that came through a front, as a gRPC context: as much of one as the interceptor and the handlers use."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import grpc
import grpc.aio
import numpy.typing as npt

from preprocessor.service.fronts.frames import Begin, Body, Kind, Metadata, Status
from preprocessor.service.response_buffer import answer_idle
from preprocessor.service.status import Context

_WINDOW_BYTES = 64 << 10
"""Of responses that may be on their way to the front: as many as gRPC itself takes before its caller reads any."""
_INTERRUPT_SECONDS = 10.0
"""A front that is alive stops within milliseconds."""


class FrontLink(Protocol):
    """The connection to the call's front."""

    def send(self, kind: Kind, call_id: int = 0, body: Body = b"") -> None: ...

    async def send_rows(
        self, call_id: int, tensor_index: int, array: npt.NDArray[Any], first_row: int, row_count: int
    ) -> bool:
        """Have rows sent; False: they do not lie in shared memory."""
        ...

    def kill(self) -> None:
        """End the front."""
        ...


class RelayedContext:
    """See `grpc.aio.ServicerContext`, of which this has the methods that are used.

    Args:
        serialize: Makes bytes of a response message that is not serialized yet.
        idle_seconds: The longest time that a caller may not read its answer.
    """

    def __init__(
        self,
        link: FrontLink,
        call_id: int,
        begin: Begin,
        serialize: Callable[[Any], bytes],
        idle_seconds: float,
    ) -> None:
        self._link = link
        self._call_id = call_id
        self._begin = begin
        self._serialize = serialize
        self._idle_seconds = idle_seconds
        self._deadline_seconds = None if begin.remaining_seconds is None else time.monotonic() + begin.remaining_seconds
        self._messages: deque[Any] = deque()
        self._is_asked = False
        self._is_ended = False
        self._is_idle = False
        self._unsent: deque[int] = deque()  # sizes of what the front has not sent yet
        self._changed = asyncio.Event()
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._trailing_metadata: Metadata = ()

    # -- who calls -----------------------------------------------------------------------------------------------------

    def invocation_metadata(self) -> Metadata:
        return self._begin.metadata

    def peer(self) -> str:
        return self._begin.peer

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        return self._begin.names

    def time_remaining(self) -> float | None:
        return None if self._deadline_seconds is None else max(0.0, self._deadline_seconds - time.monotonic())

    # -- messages ------------------------------------------------------------------------------------------------------

    async def read(self) -> Any:
        while not self._messages:
            if self._is_ended:
                return grpc.aio.EOF
            if not self._is_asked:  # if it is, a read before this one was cancelled
                self._is_asked = True
                self._link.send(Kind.READ, self._call_id)
            await self._change()
        return self._messages.popleft()

    async def write(self, message: Any) -> None:
        data = message if isinstance(message, bytes) else self._serialize(message)
        self._link.send(Kind.RESPONSE, self._call_id, data)
        self._unsent.append(len(data))
        try:
            while sum(self._unsent) > _WINDOW_BYTES:
                await self._change()
        except asyncio.CancelledError:
            self._link.send(Kind.INTERRUPT, self._call_id)
            raise

    async def send_rows(self, tensor_index: int, array: npt.NDArray[Any], first_row: int, row_count: int) -> bool:
        """Have the front send rows out of shared memory; returns once it has, and reads them no more.

        Returns:
            False if nothing was sent, because they do not lie there.
        Raises:
            DeadlineExceeded: `ANSWER_IDLE`, as `Sender.send`.
        """
        if not await self._link.send_rows(self._call_id, tensor_index, array, first_row, row_count):
            return False
        self._unsent.append(0)
        try:
            while self._unsent:
                await self._change()
        except asyncio.CancelledError:
            self._link.send(Kind.INTERRUPT, self._call_id)
            await self._wait_until_dropped()
            raise
        if self._is_idle:
            raise answer_idle(self._idle_seconds)
        return True

    async def _wait_until_dropped(self) -> None:
        """Until the front reads from shared memory no more, because it says so or has ended, even if this is cancelled, too."""
        due_seconds = time.monotonic() + _INTERRUPT_SECONDS
        while self._unsent:
            if time.monotonic() > due_seconds:
                self._link.kill()
            with contextlib.suppress(asyncio.CancelledError, TimeoutError):
                async with asyncio.timeout(_INTERRUPT_SECONDS):
                    await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    # -- how it ends ---------------------------------------------------------------------------------------------------

    def code(self) -> grpc.StatusCode | None:
        return self._code

    def details(self) -> str:
        return self._details

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def set_details(self, details: str) -> None:
        self._details = details

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        self._trailing_metadata = metadata

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> None:
        self._code, self._details, self._trailing_metadata = code, details, trailing_metadata
        raise grpc.aio.AbortError

    @property
    def status(self) -> Status:
        """What the call ends with, once its handler has."""
        code = self._code or grpc.StatusCode.OK
        return Status(code.value[0], self._details, self._trailing_metadata)

    @property
    def as_grpc(self) -> Context:
        """The same, for those who ask for gRPC's type."""
        return cast("Context", self)

    # -- for the connection --------------------------------------------------------------------------------------------

    def on_frame(self, kind: Kind, body: Body) -> None:
        """What the front says about the call."""
        match kind:
            case Kind.MESSAGE:
                self._is_asked = False
                self._messages.append(body)
            case Kind.END_OF_MESSAGES:
                self._is_ended = True
            case Kind.SENT | Kind.IDLE:
                self._is_idle = self._is_idle or kind is Kind.IDLE
                if self._unsent:  # else it was sent before an interrupt came
                    self._unsent.popleft()
            case Kind.INTERRUPTED:
                self._unsent.clear()
        self._changed.set()

    def on_left(self) -> None:
        """The caller has left, or the front has ended: nothing is on its way any more."""
        self._is_ended = True
        self._unsent.clear()
        self._changed.set()
