"""Response messages being sent: a limit on their bytes, over all calls.

A message that its client has not read yet is in memory twice, here and in gRPC. While other calls wait to send, a call whose
client reads nothing, or too slowly, is ended, so that a few slow readers cannot block all responses.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator

from preprocessor.errors import DeadlineExceeded

MAX_BYTES = 32 << 20
# The least read rate while other calls wait.
_MIN_RATE_GRACE_SECONDS = 2.0
_MIN_READ_RATE = 1 << 20  # bytes a second
_CHECK_SECONDS = 0.25


def answer_idle(idle_timeout_seconds: float) -> DeadlineExceeded:
    """The error of a call whose caller does not read."""
    return DeadlineExceeded(
        f"a part of the answer was not read for {idle_timeout_seconds:g} seconds, or for less while other calls "
        "waited to send theirs; read messages as they come",
        reason="ANSWER_IDLE",
    )


class ResponseBuffer:
    """The messages being sent.

    Attributes:
        size_bytes: Of all messages that gRPC has not taken yet.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.size_bytes = 0
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._check_timer: asyncio.TimerHandle | None = None
        self._timeouts: dict[asyncio.Timeout, float] = {}

    @contextlib.asynccontextmanager
    async def sending(self, size_bytes: int, idle_timeout_seconds: float) -> AsyncIterator[None]:
        """Enters once there is space for a message of that size; leave it when the message is sent.

        Raises:
            DeadlineExceeded: `ANSWER_IDLE`: it was not read within `idle_timeout_seconds`, or less while other calls wait.
        """
        await self._reserve(size_bytes)
        try:
            async with asyncio.timeout(idle_timeout_seconds) as timeout:
                self._timeouts[timeout] = time.monotonic() + _MIN_RATE_GRACE_SECONDS + size_bytes / _MIN_READ_RATE
                try:
                    yield
                finally:
                    del self._timeouts[timeout]
        except TimeoutError:
            raise answer_idle(idle_timeout_seconds) from None
        finally:
            self._release(size_bytes)

    async def _reserve(self, size_bytes: int) -> None:
        if not self._waiting and self._fits(size_bytes):
            self.size_bytes += size_bytes
            return
        reserved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((reserved, size_bytes))
        if self._check_timer is None:
            self._check_timer = asyncio.get_running_loop().call_later(_CHECK_SECONDS, self._end_slow_readers)
        try:
            await reserved
        except asyncio.CancelledError:
            if reserved.done() and not reserved.cancelled():
                self._release(size_bytes)
            else:
                with contextlib.suppress(ValueError):  # in the same turn of the loop space may have come up for it
                    self._waiting.remove((reserved, size_bytes))
                self._reserve_for_waiting()
            raise

    def _release(self, size_bytes: int) -> None:
        self.size_bytes -= size_bytes
        self._reserve_for_waiting()

    def _reserve_for_waiting(self) -> None:
        while self._waiting and self._fits(self._waiting[0][1]):
            reserved, size_bytes = self._waiting.popleft()
            if not reserved.done():
                self.size_bytes += size_bytes
                reserved.set_result(None)

    def _fits(self, size_bytes: int) -> bool:
        """A message larger than the whole buffer is sent alone."""
        return not self.size_bytes or self.size_bytes + size_bytes <= self._max_bytes

    def _end_slow_readers(self) -> None:
        self._check_timer = None
        if not self._waiting:
            return
        now = time.monotonic()
        for timeout, due_seconds in self._timeouts.items():
            if due_seconds < now and not timeout.expired():
                timeout.reschedule(asyncio.get_running_loop().time())
        self._check_timer = asyncio.get_running_loop().call_later(_CHECK_SECONDS, self._end_slow_readers)
