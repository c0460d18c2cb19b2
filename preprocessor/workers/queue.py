"""The order of waiting tasks: the shortest first, but none waits for ever.

A task of `s` expected seconds that arrived at time `t` has the rank `t + AGEING * s`; the lowest rank comes first. So an image
overtakes waiting videos, and once a video has waited `AGEING` times as long as it will take, nothing that arrives later
overtakes it. A rank never changes, so a heap keeps the order.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from typing import Generic, TypeVar

AGEING = 4.0

Item = TypeVar("Item")


class TaskQueue(Generic[Item]):
    """Waiting tasks with their expected CPU seconds."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, float, Item]] = []
        self._arrivals = itertools.count()

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, item: Item, cpu_seconds: float, arrived_at_seconds: float) -> None:
        rank = arrived_at_seconds + AGEING * cpu_seconds
        heapq.heappush(self._heap, (rank, next(self._arrivals), cpu_seconds, item))

    def take(self, fits: Callable[[Item], bool]) -> Item | None:
        """Remove and return the first item that fits; those before it keep their places."""
        skipped = []
        taken: Item | None = None
        while self._heap:
            entry = heapq.heappop(self._heap)
            if fits(entry[-1]):
                taken = entry[-1]
                break
            skipped.append(entry)
        for entry in skipped:
            heapq.heappush(self._heap, entry)
        return taken

    def remove(self, item: Item) -> None:
        """Remove an item if it is still waiting."""
        self._heap = [entry for entry in self._heap if entry[-1] is not item]
        heapq.heapify(self._heap)

    @property
    def cpu_seconds(self) -> float:
        """Expected CPU seconds of all waiting items."""
        return sum(entry[2] for entry in self._heap)

    def seconds_ahead(self, cpu_seconds: float, arriving_at_seconds: float) -> float:
        """Expected CPU seconds of all items that would come before a new one of that cost."""
        rank = arriving_at_seconds + AGEING * cpu_seconds
        return sum(entry[2] for entry in self._heap if entry[0] <= rank)
