"""One call in a front: between the caller's gRPC and the service's frames."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import grpc
import grpc.aio

from preprocessor.errors import DeadlineExceeded
from preprocessor.service.fronts.frames import Begin, Body, FrameProtocol, Kind, RowsPlace, Status
from preprocessor.service.fronts.rows import RowFiles
from preprocessor.service.response_buffer import ResponseBuffer
from preprocessor.service.sender import Sender

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_NAME_KEYS = ("x509_subject_alternative_name", "x509_common_name")


def describe_call(path: str, context: Any) -> Begin:
    """What the service is told of a call."""
    facts = context.auth_context()
    return Begin(
        path,
        str(context.peer()),
        tuple(context.invocation_metadata() or ()),
        {key: list(facts[key]) for key in _NAME_KEYS if key in facts},
        context.time_remaining(),
    )


class RelayedCall:
    """Does what the service says about one call.

    Args:
        context: Of the call, as `grpc.aio.ServicerContext`.
        idle_seconds: The longest time that a caller may not read its answer.
    Attributes:
        is_ended: The service has ended the call.
    """

    def __init__(
        self,
        protocol: FrameProtocol,
        call_id: int,
        context: Any,
        row_files: RowFiles,
        response_buffer: ResponseBuffer,
        idle_seconds: float,
    ) -> None:
        self.is_ended = False
        self._protocol = protocol
        self._call_id = call_id
        self._context = context
        self._row_files = row_files
        self._sender = Sender(context.write, response_buffer, idle_seconds)
        self._commands: deque[tuple[Kind, Body]] = deque()
        self._arrived = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._sending: asyncio.Timeout | None = None
        self._is_interrupted = False

    def on_frame(self, kind: Kind, body: Body) -> None:
        """What the service says about the call."""
        if kind is Kind.READ:
            self._reading = asyncio.create_task(self._read())
        elif kind is Kind.INTERRUPT:
            self._commands.clear()
            if self._sending is None:
                self._send(Kind.INTERRUPTED)
                return
            self._is_interrupted = True
            if not self._sending.expired():
                self._sending.reschedule(asyncio.get_running_loop().time())
        else:
            self.is_ended = kind is Kind.STATUS
            self._commands.append((kind, body))
            self._arrived.set()

    async def run(self) -> None:
        """Until the service ends the call, or the caller does, which cancels this."""
        try:
            while True:
                kind, body = await self._next()
                if kind is Kind.STATUS:
                    self._end(Status.unpack(body))
                    return
                await self._carry_out(kind, body)
        finally:
            if self._reading is not None:
                self._reading.cancel()

    async def _next(self) -> tuple[Kind, Body]:
        while not self._commands:
            self._arrived.clear()
            await self._arrived.wait()
        return self._commands.popleft()

    async def _carry_out(self, kind: Kind, body: Body) -> None:
        """Send a response or rows, unless it is interrupted.

        The service waits for the answer to an interrupt, even if gRPC has taken the message or the caller's time has passed
        before the interrupt had any effect.
        """
        try:
            async with asyncio.timeout(None) as self._sending:
                if kind is Kind.RESPONSE:
                    await self._sender.send_unlimited(bytes(body))
                else:
                    for message in self._row_files.messages(
                        RowsPlace.unpack(body), lambda: self._sender.rows_message_bytes
                    ):
                        await self._sender.send(message)
        except TimeoutError:
            self._is_interrupted = True
        except DeadlineExceeded:
            self._send(Kind.IDLE)
        else:
            self._send(Kind.SENT)
        finally:
            self._sending = None
        if self._is_interrupted:
            self._is_interrupted = False
            self._send(Kind.INTERRUPTED)

    async def _read(self) -> None:
        message = await self._context.read()
        if message is grpc.aio.EOF:
            self._send(Kind.END_OF_MESSAGES)
        else:
            self._send(Kind.MESSAGE, message)

    def _end(self, status: Status) -> None:
        if status.code:
            self._context.set_code(_CODES[status.code])
        if status.details:
            self._context.set_details(status.details)
        if status.trailing_metadata:
            self._context.set_trailing_metadata(tuple(status.trailing_metadata))

    def _send(self, kind: Kind, body: Body = b"") -> None:
        self._protocol.send(kind, self._call_id, body)
