"""The rows of one prompt's `pixel_patches`, whole or as they come, and the floats that they stand for.

Pure, like `contract`: arrays in, tensors out. Rows come in order, so what has come is always a prefix.
"""

from __future__ import annotations

import numpy as np
import torch

from .contract import CHANNEL_COUNT, ModelLayout, Prompt, check_rows
from .errors import InvalidPrompt


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
        """Take every row at once, as `check_prompt` has checked them; without a copy, so they must stay."""
        self._rows = torch.from_numpy(rows)
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
        """Rows that have come; uint8 [stop - start, F] on the device, not a copy where they lie there."""
        if self._rows is None or not 0 <= start <= stop <= self._count:
            raise IndexError(f"rows {start} to {stop} of {self._count} that have come")
        return self._rows[start:stop].to(self._device)

    def forget(self) -> None:
        """Let go of the memory; nothing is read after this."""
        self._rows = None

    def _check(self, first_row: int, rows: np.ndarray) -> None:
        check_rows(rows, self._layout)
        if first_row != self._count:
            raise InvalidPrompt(f"first_row is {first_row}; {self._count} rows have come, and the next must follow")
        if first_row + len(rows) > self._total:
            raise InvalidPrompt(f"pixel_patches has {first_row + len(rows)} rows; grid_thw needs {self._total}")


def normalize_patches(patches: torch.Tensor, mean: np.ndarray, std: np.ndarray) -> torch.Tensor:
    """Turn uint8 patches into the float32 values that Hugging Face's fast processors make, bit for bit.

    Args:
        patches: uint8 [P, F], channel first in a row.
        mean, std: float32 [3], of values from 0 to 1.
    Returns:
        float32 [P, F] on the same device.
    Source: transformers 5.23 `rescale_and_normalize`: the 1/255 is folded into mean and std, and not applied to pixels.
    """
    shift = torch.tensor(mean, device=patches.device)[:, None] * 255.0
    scale = torch.tensor(std, device=patches.device)[:, None] * 255.0
    pixels = patches.to(torch.float32)
    pixels.view(len(pixels), CHANNEL_COUNT, -1).sub_(shift).div_(scale)
    return pixels
