"""Which of the rows that have come the vision encoder can take.

Pure. The encoder takes whole temporal steps of what has come, because its attention never looks beyond one (transformers
5.23, Qwen3-VL: the sequence lengths are those of single steps).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Run:
    """Whole temporal steps that lie one after another: rows `start` to `stop`."""

    start: int
    stop: int
    grids: tuple[tuple[int, int, int], ...]
    """t, h, w of each item in the run; t is how many of its steps are."""


class StepPlan:
    """Where the temporal steps of a prompt begin and end, in rows."""

    def __init__(self, grids: np.ndarray) -> None:
        """`grids` is int64 [M, 3], the items' t, h, w."""
        self._steps = [(item, int(h), int(w)) for item, (t, h, w) in enumerate(grids.tolist()) for _ in range(t)]
        self._ends = np.cumsum([h * w for _, h, w in self._steps], dtype=np.int64).tolist()

    def run(self, start: int, row_count: int) -> Run | None:
        """All whole steps from row `start` on that `row_count` rows hold; None if there are none.

        `start` is where an earlier run stopped, or 0.
        """
        first, last = bisect_right(self._ends, start), bisect_right(self._ends, row_count)
        if first >= last:
            return None
        counts: dict[int, list[int]] = {}
        for item, h, w in self._steps[first:last]:
            counts.setdefault(item, [0, h, w])[0] += 1
        return Run(start, self._ends[last - 1], tuple((t, h, w) for t, h, w in counts.values()))
