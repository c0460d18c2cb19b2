"""Messages of answers on their way out: so many bytes of all calls together.

A message that its caller does not take is in memory twice, here and in gRPC. While others wait to send theirs, callers who
take nothing, or too little, lose their calls, so that a few of them cannot hold up everybody's answers.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from preprocessor.errors import DeadlineExceeded

MAX_BYTES = 32 << 20
# Asked of a reader while others wait.
_CROWDED_SECONDS = 2.0
_CROWDED_RATE = 1 << 20  # bytes a second
_LOOK_SECONDS = 0.25


class Outgoing:
    """What is being sent.

    Attributes:
        size_bytes: Of all messages that have not been taken yet.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.size_bytes = 0
        self._max_bytes = max_bytes
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._looking: asyncio.TimerHandle | None = None
        self._clocks: dict[asyncio.Timeout, float] = {}

    @asynccontextmanager
    async def sending(self, size_bytes: int, patience_seconds: float) -> AsyncIterator[None]:
        """Around the sending of a message of that size, when there is room for it.

        Raises:
            DeadlineExceeded: `ANSWER_IDLE`: it was not taken in `patience_seconds`, or sooner where others wait.
        """
        await self._take(size_bytes)
        try:
            async with asyncio.timeout(patience_seconds) as clock:
                self._clocks[clock] = time.monotonic() + _CROWDED_SECONDS + size_bytes / _CROWDED_RATE
                try:
                    yield
                finally:
                    del self._clocks[clock]
        except TimeoutError:
            raise DeadlineExceeded(
                f"a part of the answer was not read for {patience_seconds:g} seconds, or for less while others waited; read "
                "as it comes",
                reason="ANSWER_IDLE",
            ) from None
        finally:
            self._give_back(size_bytes)

    async def _take(self, size_bytes: int) -> None:
        if not self._waiting and self._has_room(size_bytes):
            self.size_bytes += size_bytes
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, size_bytes))
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._hurry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(size_bytes)
            else:
                self._waiting.remove((turn, size_bytes))
                self._let_in()
            raise

    def _give_back(self, size_bytes: int) -> None:
        self.size_bytes -= size_bytes
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._has_room(self._waiting[0][1]):
            turn, size_bytes = self._waiting.popleft()
            if not turn.done():
                self.size_bytes += size_bytes
                turn.set_result(None)

    def _has_room(self, size_bytes: int) -> bool:
        """A message beyond all bounds goes alone."""
        return not self.size_bytes or self.size_bytes + size_bytes <= self._max_bytes

    def _hurry(self) -> None:
        self._looking = None
        if not self._waiting:
            return
        now = time.monotonic()
        for clock, due_seconds in self._clocks.items():
            if due_seconds < now and not clock.expired():
                clock.reschedule(asyncio.get_running_loop().time())
        self._looking = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._hurry)
