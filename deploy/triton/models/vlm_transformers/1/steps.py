"""Which of the rows that have come the vision encoder can take.

Pure. The encoder takes whole temporal steps of what has come, because its attention never looks beyond one (transformers
5.23, Qwen3-VL: the sequence lengths are those of single steps).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Run:
    """Whole temporal steps that lie one after another: rows `start` to `stop`."""

    start: int
    stop: int
    grids: tuple[tuple[int, int, int], ...]
    """t, h, w of each item in the run; t is how many of its steps are."""
    items: tuple[int, ...]
    """Index of each of them."""


class StepPlan:
    """Where the temporal steps of a prompt begin and end, in rows."""

    def __init__(self, grids: np.ndarray, skipped_items: Collection[int] = ()) -> None:
        """`grids` is int64 [M, 3], the items' t, h, w. No step of a skipped item is part of a run."""
        self._skipped_items = skipped_items
        self._steps = [(item, int(h), int(w)) for item, (t, h, w) in enumerate(grids.tolist()) for _ in range(t)]
        self._ends = np.cumsum([h * w for _, h, w in self._steps], dtype=np.int64).tolist()

    def run(self, start: int, row_count: int) -> Run | None:
        """The whole steps from row `start` on that `row_count` rows hold, up to a skipped item; None if there are none.

        `start` is where an earlier run stopped, or 0. Skipped items that begin there are passed over.
        """
        first, last = bisect_right(self._ends, start), bisect_right(self._ends, row_count)
        while first < last and self._steps[first][0] in self._skipped_items:
            first += 1
        counts: dict[int, list[int]] = {}
        stop = first
        while stop < last and self._steps[stop][0] not in self._skipped_items:
            item, h, w = self._steps[stop]
            counts.setdefault(item, [0, h, w])[0] += 1
            stop += 1
        if not counts:
            return None
        begin = self._ends[first - 1] if first else 0
        return Run(begin, self._ends[stop - 1], tuple((t, h, w) for t, h, w in counts.values()), tuple(counts))
