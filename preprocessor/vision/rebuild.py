"""Patch rows → the frames that they were cut from: the inverse of `patches.write_patches`, for people who look at them.

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
    """How frames are cut: see the fields of `vision.spec.PixelSpec` of the same names."""

    patch_size: int
    merge_size: int
    temporal_patch_size: int


def rebuild_frames(
    rows: npt.NDArray[np.uint8], grid_height: int, grid_width: int, shape: PatchShape
) -> npt.NDArray[np.uint8]:
    """The frames of one temporal patch.

    Args:
        rows: uint8 [grid_height * grid_width, 3 * temporal_patch_size * patch_size**2], as `write_patches` fills them.
        grid_height, grid_width: Patches of a frame along each side, multiples of `merge_size`.
    Returns:
        RGB uint8 [temporal_patch_size, height, width, 3].
    Raises:
        ValueError: The rows have another shape.
    """
    patch, merge, frames = shape.patch_size, shape.merge_size, shape.temporal_patch_size
    block_rows, block_columns = grid_height // merge, grid_width // merge
    # Of the rows: block row, block column, patch row and column in the block, channel, frame, y, x.
    elements = rows.reshape(block_rows, block_columns, merge, merge, 3, frames, patch, patch)
    return elements.transpose(5, 0, 2, 6, 1, 3, 7, 4).reshape(frames, grid_height * patch, grid_width * patch, 3)


def row_in_frame(patch_row: int, patch_column: int, grid_width: int, merge_size: int) -> int:
    """Place of a patch among the rows of its temporal patch."""
    block = (patch_row // merge_size) * (grid_width // merge_size) + patch_column // merge_size
    return block * merge_size**2 + (patch_row % merge_size) * merge_size + patch_column % merge_size


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
