"""Sending one call's response messages, in sizes that its caller reads quickly."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from preprocessor.service.response_buffer import ResponseBuffer
from preprocessor.wire.tensors import MAX_ROWS_BYTES

_MIN_ROWS_BYTES = 256 << 10
_SLOW_WRITE_SECONDS = 0.5


@dataclass(slots=True)
class Sender:
    """Sends messages one after another.

    Attributes:
        write: Returns once gRPC has accepted a message under the caller's flow control.
        idle_seconds: The longest time that a message may wait to be read.
        rows_message_bytes: Size of the next message of rows: small at first, and doubled after each message that is read in
            0.5 s, else halved.
    """

    write: Callable[[Any], Awaitable[None]]
    response_buffer: ResponseBuffer
    idle_seconds: float
    rows_message_bytes: int = _MIN_ROWS_BYTES

    async def send(self, message: Any) -> None:
        """Send a response message, serialized or not; returns once gRPC has accepted it under the caller's flow control.

        Raises:
            DeadlineExceeded: `ANSWER_IDLE`: the caller did not read for `idle_seconds`, or less while others waited.
        """
        size_bytes = len(message) if isinstance(message, bytes | bytearray) else message.ByteSize()
        async with self.response_buffer.sending(size_bytes, self.idle_seconds):
            await self.send_unlimited(message)

    async def send_unlimited(self, message: Any) -> None:
        """The same for a message that another `Sender` limits already."""
        started_seconds = time.monotonic()
        await self.write(message)
        is_slow = time.monotonic() - started_seconds > _SLOW_WRITE_SECONDS
        next_bytes = self.rows_message_bytes // 2 if is_slow else self.rows_message_bytes * 2
        self.rows_message_bytes = min(max(next_bytes, _MIN_ROWS_BYTES), MAX_ROWS_BYTES)
