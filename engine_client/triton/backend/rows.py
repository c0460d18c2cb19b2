"""Rows of `pixel_patches` in the memory of a torch device, and the floats that they stand for."""

from __future__ import annotations

import torch

from engine_client.contract.tensors import CHANNEL_COUNT, Array


class TorchRows:
    """A `RowStorage` on a torch device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._rows: torch.Tensor | None = None

    def allocate(self, row_count: int, feature_count: int) -> None:
        """See `RowStorage.allocate`."""
        self._rows = torch.empty((row_count, feature_count), dtype=torch.uint8, device=self._device)

    def write(self, first_row: int, rows: Array) -> None:
        """See `RowStorage.write`."""
        self._allocated()[first_row : first_row + len(rows)].copy_(torch.from_numpy(rows))

    def adopt(self, rows: Array) -> None:
        """See `RowStorage.adopt`: they stay in the host's memory until they are read."""
        self._rows = torch.from_numpy(rows)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """See `RowStorage.read`: uint8 [stop - start, F] on the device, a view where they are there already."""
        return self._allocated()[start:stop].to(self._device)

    def free(self) -> None:
        """See `RowStorage.free`."""
        self._rows = None

    def _allocated(self) -> torch.Tensor:
        if self._rows is None:
            raise IndexError("the rows are not there, or were freed")
        return self._rows


def normalize_patches(patches: torch.Tensor, mean: Array, std: Array) -> torch.Tensor:
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
