"""Memory pages of a pool without requests go back to the kernel after a while."""

from __future__ import annotations

import asyncio

from preprocessor.workers.arena import Ranges
from preprocessor.workers.counters import PoolCounters
from preprocessor.workers.heap import give_back_freed_memory

_IDLE_SECONDS = 10.0


class IdleTrim:
    """Gives pages back once requests have held no memory for `_IDLE_SECONDS`."""

    def __init__(self, counters: PoolCounters, *ranges: Ranges) -> None:
        self._counters = counters
        self._ranges = ranges
        self._timer: asyncio.TimerHandle | None = None

    def schedule(self) -> None:
        """Start the timer, unless it runs already or memory is in use."""
        if not self._counters.used_bytes and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._trim)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _trim(self) -> None:
        self._timer = None
        if not self._counters.used_bytes:
            for ranges in self._ranges:
                ranges.drop_free_pages()
            give_back_freed_memory()
