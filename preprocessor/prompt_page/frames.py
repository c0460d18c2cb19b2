"""The rows of the pixel tensor → the frames that they were cut from, item by item. Nothing is decoded again.

The grids are in the header of an answer, the sizes of a patch in the model's description, and the order of rows is the family's.
All of it may come from a file that anyone wrote, so it is checked against the tensor's shape.
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

_IN_BLOCKS = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_omni", "qwen2_5_omni"),
    *("glm4v", "glm46v", "glm5_next", "minimax_m3_vl"),
)
_IN_LINES = ("kimi_k25", "mistral3")
_IN_LINES_CHANNELS_LAST = ("gemma4",)
PATCH_FAMILIES = frozenset({*_IN_BLOCKS, *_IN_LINES, *_IN_LINES_CHANNELS_LAST})
"""Families whose rows are patches; of others the order of rows is not known here."""

_PIXEL_TENSORS = ("pixel_patches", "pixel_values")


@dataclass(frozen=True, slots=True, eq=False)
class ItemPixels:
    """One item's rows of the pixel tensor.

    Attributes:
        first_row: Of the item in the tensor.
        grid: Patches along time, height and width.
        merge_size: Patches a side that become one token.
        mean_std: By which the rows are normalized; None for uint8.
    """

    rows: npt.NDArray[Any]
    first_row: int
    grid: tuple[int, int, int]
    shape: PatchShape
    merge_size: int
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
    if model is None:
        return "the model's settings are not known, nor how its rows are arranged"
    if model.family not in PATCH_FAMILIES or not all(item.HasField("patches") for item in header.items):
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
        if len(model.image.mean) != 3 or len(model.image.std) != 3:
            return f"{name} is {rows.dtype}, and by which mean and deviation it is normalized is not known here"
        mean_std = (list(model.image.mean), list(model.image.std))
    found, first_row = [], 0
    for item, grid, count in zip(header.items, grids, counts, strict=True):
        settings = model.video if item.modality == pb.MODALITY_VIDEO else model.image
        shape, merge = _shape_of(model.family, settings), settings.merge_size
        if shape is None or shape.feature_count != rows.shape[1] or grid[1] % merge or grid[2] % merge:
            return f"{item.key}: its grid, or the size of a row, is not what the model's settings say"
        found.append(ItemPixels(rows[first_row : first_row + count], first_row, grid, shape, merge, mean_std))
        first_row += count
    return found


def _shape_of(family: str, settings: pb.PixelSettings) -> PatchShape | None:
    """How a model's frames are cut; None for settings that are none."""
    if min(settings.patch_size_px, settings.merge_size, settings.temporal_patch_size) < 1:
        return None
    block = settings.merge_size if family in _IN_BLOCKS else 1
    is_channels_last = family in _IN_LINES_CHANNELS_LAST
    return PatchShape(settings.patch_size_px, block, settings.temporal_patch_size, is_channels_last)
