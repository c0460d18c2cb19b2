"""The rows of one prompt's `pixel_patches`, whole or as they come, and which of them the vision encoder can take.

Pure, like `contract`: arrays in, tensors out. Rows come in order, so what has come is always a prefix; the encoder takes
whole temporal steps of it, because its attention never looks beyond one (transformers 5.23, Qwen3-VL: the sequence
lengths are those of single steps).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import torch

from .contract import InvalidPrompt, ModelLayout, Prompt, check_rows


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


class RowBuffer:
    """Collects the rows of one prompt.

    Args:
        prompt: Says how many there will be.
        layout: Says how long they are.
        device: Where they go, as they come.
    """

    def __init__(self, prompt: Prompt, layout: ModelLayout, device: torch.device) -> None:
        self._layout = layout
        self._total = prompt.row_count
        self._device = device
        self._rows: torch.Tensor | None = None
        self._count = 0

    @property
    def row_count(self) -> int:
        """Rows that have come."""
        return self._count

    @property
    def is_complete(self) -> bool:
        return self._count == self._total

    def take_all(self, rows: np.ndarray) -> None:
        """Take every row at once, as `check_prompt` has checked them; on the CPU without a copy, so they must stay."""
        self._rows = torch.from_numpy(rows).to(self._device)
        self._count = len(rows)

    def add(self, first_row: int, rows: np.ndarray) -> None:
        """Take the next rows, with a copy.

        Raises:
            InvalidPrompt: they are not the next ones, too many, or of another length.
        """
        self._check(first_row, rows)
        if not len(rows):
            return
        if self._rows is None:
            shape = (self._total, self._layout.feature_count)
            self._rows = torch.empty(shape, dtype=torch.uint8, device=self._device)
        self._rows[first_row : first_row + len(rows)].copy_(torch.from_numpy(rows))
        self._count += len(rows)  # last: another thread may read the rows before it

    def between(self, start: int, stop: int) -> torch.Tensor:
        """Rows that have come; uint8 [stop - start, F] on the device, not a copy."""
        if self._rows is None or not 0 <= start <= stop <= self._count:
            raise IndexError(f"rows {start} to {stop} of {self._count} that have come")
        return self._rows[start:stop]

    def forget(self) -> None:
        """Let go of the memory; nothing is read after this."""
        self._rows = None

    def _check(self, first_row: int, rows: np.ndarray) -> None:
        check_rows(rows, self._layout)
        if first_row != self._count:
            raise InvalidPrompt(f"first_row is {first_row}; {self._count} rows have come, and the next must follow")
        if first_row + len(rows) > self._total:
            raise InvalidPrompt(f"pixel_patches has {first_row + len(rows)} rows; grid_thw needs {self._total}")
