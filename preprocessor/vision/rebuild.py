"""Patch rows → the frames that they were cut from, for people who look at them: the inverse of what families' writers do.

Needs numpy alone, so that whoever only asks a service can look too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class PatchShape:
    """How frames are cut into rows.

    Attributes:
        patch_size: Side of a square patch, px.
        block_size: Patches a side of a square whose rows follow one another; 1 where patches come line by line.
        temporal_patch_size: Frames a patch spans.
        is_channels_last: A row's values are ordered y, x, channel, instead of channel, frame, y, x; of one frame only.
    """

    patch_size: int
    block_size: int
    temporal_patch_size: int
    is_channels_last: bool = False

    @property
    def feature_count(self) -> int:
        """Values in one row."""
        return 3 * self.temporal_patch_size * self.patch_size**2


def rebuild_frames(
    rows: npt.NDArray[np.uint8], grid_height: int, grid_width: int, shape: PatchShape
) -> npt.NDArray[np.uint8]:
    """The frames of one temporal patch.

    Args:
        rows: uint8 [grid_height * grid_width, feature_count], such as `patches.write_patches` fills them.
        grid_height, grid_width: Patches of a frame along each side, multiples of `block_size`.
    Returns:
        RGB uint8 [temporal_patch_size, height, width, 3].
    Raises:
        ValueError: The rows have another shape.
    """
    patch, block, frames = shape.patch_size, shape.block_size, shape.temporal_patch_size
    # Of the rows: block row, block column, patch row and column in the block, then the values of a row.
    blocks = (grid_height // block, grid_width // block, block, block)
    if shape.is_channels_last:
        elements = rows.reshape(*blocks, frames, patch, patch, 3).transpose(4, 0, 2, 5, 1, 3, 6, 7)
    else:
        elements = rows.reshape(*blocks, 3, frames, patch, patch).transpose(5, 0, 2, 6, 1, 3, 7, 4)
    return elements.reshape(frames, grid_height * patch, grid_width * patch, 3)


def denormalize_rows(rows: npt.NDArray[Any], mean: Sequence[float], std: Sequence[float]) -> npt.NDArray[np.uint8]:
    """Normalized rows as the uint8 values that they stand for: exact for FP32, and for BF16 and FP16 up to their rounding.

    Args:
        rows: [n, features], values ordered by channel first; normalized = (value / 255 - mean) / std.
        mean, std: Of red, green and blue.
    """
    by_channel = rows.astype(np.float32).reshape(len(rows), 3, -1)
    scale, offset = (np.array(values, np.float32)[:, np.newaxis] for values in (std, mean))
    values = np.rint((by_channel * scale + offset) * 255)
    rebuilt: npt.NDArray[np.uint8] = np.nan_to_num(values).clip(0, 255).astype(np.uint8).reshape(rows.shape)
    return rebuilt
