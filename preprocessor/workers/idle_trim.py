"""Memory pages of a pool without requests go back to the kernel after a while."""

from __future__ import annotations

import asyncio

from preprocessor.workers.chunk_memory import SpareChunks
from preprocessor.workers.counters import PoolCounters
from preprocessor.workers.heap import give_back_freed_memory
from preprocessor.workers.ranges import Ranges

_IDLE_SECONDS = 10.0


class IdleTrim:
    """Gives pages back once requests have held no memory for `_IDLE_SECONDS`."""

    def __init__(self, counters: PoolCounters, spare: SpareChunks, *ranges: Ranges) -> None:
        self._counters = counters
        self._spare = spare
        self._ranges = ranges
        self._timer: asyncio.TimerHandle | None = None
        self._idle_since_seconds = 0.0

    def schedule(self) -> None:
        """Requests have released memory: the time begins anew, unless others hold some."""
        if not self._counters.used_bytes:
            loop = asyncio.get_running_loop()
            self._idle_since_seconds = loop.time()
            if self._timer is None:
                self._timer = loop.call_later(_IDLE_SECONDS, self._trim)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _trim(self) -> None:
        self._timer = None
        if self._counters.used_bytes:
            return
        loop = asyncio.get_running_loop()
        left_seconds = self._idle_since_seconds + _IDLE_SECONDS - loop.time()
        if left_seconds > 0:  # there were requests meanwhile
            self._timer = loop.call_later(left_seconds, self._trim)
            return
        for ranges in self._ranges:
            ranges.drop_free_pages()
        self._spare.drop(self._spare.size_bytes)
        give_back_freed_memory()
