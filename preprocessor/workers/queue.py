"""Which work comes next: the shortest, but nothing waits for ever.

Work of `s` expected seconds that arrived at time `t` ranks by `t + AGEING * s`. So an image overtakes the videos that wait, and
a video that has waited `AGEING` times as long as it will take is overtaken by nothing that arrives from then on. The rank
never changes, so a heap keeps the order.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Generic, TypeVar

AGEING = 4.0

Item = TypeVar("Item")


class TaskQueue(Generic[Item]):
    """Waiting work with its expected CPU seconds."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, float, Item]] = []
        self._arrivals = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, item: Item, cpu_seconds: float, arrived_at_seconds: float) -> None:
        rank = arrived_at_seconds + AGEING * cpu_seconds
        heapq.heappush(self._heap, (rank, next(self._arrivals), cpu_seconds, item))

    def take(self, fits: Callable[[Item], bool]) -> Item | None:
        """Remove and return the first item that fits; those before it are passed over for now."""
        passed = []
        taken: Item | None = None
        while self._heap:
            entry = heapq.heappop(self._heap)
            if fits(entry[-1]):
                taken = entry[-1]
                break
            passed.append(entry)
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return taken

    def remove(self, item: Item) -> None:
        """Take an item out, where it still waits."""
        self._heap = [entry for entry in self._heap if entry[-1] is not item]
        heapq.heapify(self._heap)

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of all that waits."""
        return sum(entry[2] for entry in self._heap)

    def seconds_ahead(self, cpu_seconds: float, arriving_at_seconds: float) -> float:
        """CPU seconds of all that would run before such work."""
        rank = arriving_at_seconds + AGEING * cpu_seconds
        return sum(entry[2] for entry in self._heap if entry[0] <= rank)
