"""The rows of the pixel tensor → the frames that they were cut from, item by item. Nothing is decoded again.

What is needed is in the header of an answer: grids, sizes and token counts. It may come from a file that anyone wrote, so all of
it is checked against the tensor's shape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.vision.rebuild import PatchShape, denormalize_rows, rebuild_frames

_PIXEL_TENSORS = ("pixel_patches", "pixel_values")


@dataclass(frozen=True, slots=True, eq=False)
class ItemPixels:
    """One item's rows of the pixel tensor.

    Attributes:
        first_row: Of the item in the tensor.
        grid: Patches along time, height and width.
        mean_std: By which the rows are normalized; None for uint8.
    """

    rows: npt.NDArray[Any]
    first_row: int
    grid: tuple[int, int, int]
    shape: PatchShape
    mean_std: tuple[Sequence[float], Sequence[float]] | None

    @property
    def group_rows(self) -> int:
        """Rows of one temporal patch."""
        return self.grid[1] * self.grid[2]

    @property
    def frame_count(self) -> int:
        """Places for frames, those that repeat the last one included."""
        return self.grid[0] * self.shape.temporal_patch_size

    def frame(self, position: int) -> npt.NDArray[np.uint8]:
        """RGB uint8 [height, width, 3]; 0 <= position < frame_count."""
        group, place = divmod(position, self.shape.temporal_patch_size)
        rows = self.rows[group * self.group_rows : (group + 1) * self.group_rows]
        if self.mean_std is not None:
            rows = denormalize_rows(rows, *self.mean_std)
        frame: npt.NDArray[np.uint8] = rebuild_frames(rows, self.grid[1], self.grid[2], self.shape)[place]
        return frame


def locate_pixels(
    header: pb.Header, tensors: Mapping[str, npt.NDArray[Any]], model: pb.Model | None
) -> list[ItemPixels] | str:
    """Each item's rows, or why they cannot be shown."""
    name = next((name for name in _PIXEL_TENSORS if name in tensors), None)
    if not header.items:
        return []
    if not all(item.HasField("patches") for item in header.items):
        return "how this model's tensors arrange pixels is not described: only their names and shapes are known"
    if name is None:
        return "the result has no pixels, as requested"
    rows = tensors[name]
    grids = [(item.patches.grid_t, item.patches.grid_h, item.patches.grid_w) for item in header.items]
    counts = [math.prod(grid) for grid in grids]
    if rows.ndim != 2 or min(map(min, grids)) < 1 or sum(counts) != len(rows):
        return f"{name} has the shape {list(rows.shape)}, which is not that of the items' grids"
    mean_std = None
    if rows.dtype != np.uint8:
        if model is None or len(model.image.mean) != 3 or len(model.image.std) != 3:
            return f"{name} is {rows.dtype}, and by which mean and deviation it is normalized is not known here"
        mean_std = (list(model.image.mean), list(model.image.std))
    found, first_row = [], 0
    for item, grid, count in zip(header.items, grids, counts, strict=True):
        shape = _shape_of(item, grid, rows.shape[1])
        if shape is None:
            return f"{item.key}: its grid, its size and its {item.token_count} tokens are not those of patches"
        found.append(ItemPixels(rows[first_row : first_row + count], first_row, grid, shape, mean_std))
        first_row += count
    return found


def _shape_of(item: pb.Item, grid: tuple[int, int, int], feature_count: int) -> PatchShape | None:
    """How an item is cut, worked out from its sizes; None where they contradict each other."""
    patch = item.patches.height_px // grid[1]
    if patch < 1 or (item.patches.height_px, item.patches.width_px) != (grid[1] * patch, grid[2] * patch):
        return None
    merge = math.isqrt(math.prod(grid) // item.token_count) if item.token_count > 0 else 0
    frames = feature_count // (3 * patch**2)
    shape = PatchShape(patch, merge, frames)
    whole = merge and frames and feature_count == 3 * frames * patch**2 and not grid[1] % merge and not grid[2] % merge
    return shape if whole and item.token_count * merge**2 == math.prod(grid) else None
