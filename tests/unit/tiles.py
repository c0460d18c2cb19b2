"""A family whose rows are tiles: all of what a further kind of model needs on the fast path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.media.spreads import spread_evenly
from preprocessor.models.family import Family, ItemLayout, ModelSettings
from preprocessor.models.loaded import WriteFrame
from preprocessor.models.probe import ProbedMedium
from preprocessor.text.placeholders import Replacement
from preprocessor.types.plan import ItemPlan, ItemRows
from preprocessor.types.timing import Stopwatch
from preprocessor.vision.patches import write_patches
from preprocessor.vision.resize import resizer
from preprocessor.vision.spec import PixelSpec, VideoSpec

TOKENS_A_TILE = 4


def layout(item: ProbedMedium, model: ModelSettings) -> ItemLayout:
    """An image is 2 x 2 tiles and a thumbnail; of a video each frame is one tile."""
    pad, side = model.placeholders.tokens[item.medium.modality], model.image.patch_size
    if item.frames is None:
        rows = ItemRows(group_count=1, group_rows=5, group_frames=1, width_px=2 * side, height_px=2 * side)
        text = "".join(f"tile {number}: {pad}" for number in range(4)) + f"all: {pad}"
    else:
        rows = ItemRows(item.frame_count, group_rows=1, group_frames=1, width_px=side, height_px=side)
        text = pad * item.frame_count
    spans = Replacement(text, (TOKENS_A_TILE,) * rows.row_count)
    return ItemLayout(rows, spans, {"tile_counts": np.array([rows.row_count], np.int32)})


def tile_writer(item: ItemPlan, model: ModelSettings) -> WriteFrame:
    side = model.image.patch_size
    source = (item.picture.height_px, item.picture.width_px)
    whole = resizer(source, (item.rows.height_px, item.rows.width_px), item.frame_count)
    thumbnail = resizer(source, (side, side), item.frame_count)

    def write(frame: npt.NDArray[np.uint8], rows: npt.NDArray[np.uint8], places: slice, stopwatch: Stopwatch) -> None:
        tile_count = 4 if len(rows) == 5 else 1
        write_patches(whole(frame), model.image, rows[:tile_count], places)
        if len(rows) > tile_count:
            write_patches(thumbnail(frame), model.image, rows[tile_count:], places)
        stopwatch.end("patch")

    return write


def read_pixels(image: Mapping[str, Any], video: Mapping[str, Any], name: str) -> tuple[PixelSpec, VideoSpec]:
    tile = PixelSpec(image["size"]["height"], 1, 1, 1, 1 << 20, tuple(image["image_mean"]), tuple(image["image_std"]))
    return tile, VideoSpec(tile, fps=2, min_frames=1, max_frames=8)


TILES = Family(
    name="tiles",
    model_types=("tiles",),
    read_pixels=read_pixels,
    sample_indices=lambda total, rate, sampling, spec: spread_evenly(total, sampling.frame_count or 8),
    layout=layout,
    frame_writer=tile_writer,
)
