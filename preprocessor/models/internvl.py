"""InternVL 2.5, 3 and 3.5: an image is cut into square tiles, with a thumbnail of the whole; a frame of a video is one tile.

A row is a tile, its values ordered channel, y, x: of an image row by row from the top left, then the thumbnail (an image of one
tile has none); of a video frame by frame. So `rows.reshape(-1, 3, side, side)` are the `pixel_values` of transformers, in prompt
order. `tile_counts`, int64 [items], says how many rows belong to each item. A pixel budget counts the pixels of an image's tiles,
without the thumbnail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from preprocessor.errors import ModelNotFound
from preprocessor.media.spreads import count_asked
from preprocessor.models.family import Configuration, Family, ItemLayout, ModelSettings
from preprocessor.models.family.budget import NO_BOUNDS, refuse_most_below
from preprocessor.models.loaded import WriteFrame
from preprocessor.models.probe import ProbedMedium
from preprocessor.models.qwen2_vl import without_nulls
from preprocessor.text.placeholders import Placeholders, Replacement, image_token_types
from preprocessor.types.plan import ExpandedPrompt, ItemPlan, ItemRows
from preprocessor.types.request import Modality, Sampling
from preprocessor.types.timing import Stopwatch
from preprocessor.vision.frame_rows import row_writer
from preprocessor.vision.spec import PixelSpec, VideoSpec, parse_tile_spec, unsupported

_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "size": {"height": 384, "width": 384},
}
IMAGE_DEFAULTS = {**_CLIP, "min_patches": 1, "max_patches": 12}
"""transformers 5.23, GotOcr2ImageProcessor."""
VIDEO_DEFAULTS = {**_CLIP, "initial_shift": True, "do_sample_frames": False}
"""transformers 5.23, InternVLVideoProcessor."""
IMAGE_SEQ_LENGTH = 256
"""transformers 5.23, InternVLProcessor."""

MOST_TILES = 1024
"""A larger budget counts as this many tiles: 200 million pixels in tiles of 448 px. transformers has no such limit."""


@dataclass(frozen=True, slots=True)
class Details:
    """What a tile's tokens are: `tokens_a_tile` times `context` between `start` and `end`."""

    tokens_a_tile: int
    start: str
    context: str
    end: str
    image_ids: tuple[int, ...]


def read_pixels(image: Mapping[str, Any], video: Mapping[str, Any], name: str) -> tuple[PixelSpec, VideoSpec]:
    """Raises: `ModelNotFound`, `UNSUPPORTED_PROCESSOR`, also where tiles and frames differ in size or normalization."""
    image, video = {**IMAGE_DEFAULTS, **without_nulls(image)}, {**VIDEO_DEFAULTS, **without_nulls(video)}
    tiles = parse_tile_spec(image, f"{name}: image processor", image["min_patches"], image["max_patches"])
    source = f"{name}: video processor"
    frame = parse_tile_spec(video, source, image["min_patches"], image["max_patches"])
    if frame != tiles:
        raise ModelNotFound(
            f"{name}: tiles of images and frames of videos differ; one pixel tensor cannot hold both",
            reason="UNSUPPORTED_PROCESSOR",
        )
    if video["initial_shift"] is not True:
        raise unsupported(source, "initial_shift", video["initial_shift"], "true")
    if video.get("do_center_crop"):
        raise unsupported(source, "do_center_crop", True, "false")
    frame_count = video.get("num_frames") if video["do_sample_frames"] else None
    return tiles, VideoSpec(frame, fps=0, min_frames=1, max_frames=(1 << 31) - 1, frame_count=frame_count)


def read_details(configuration: Configuration) -> Details:
    """Source: transformers 5.23, InternVLProcessor, which takes the tokens from its tokenizer's attributes."""
    start, context, end = (
        configuration.token_named(f"{name}_image_token", default)
        for name, default in (("start", "<img>"), ("context", "<IMG_CONTEXT>"), ("end", "</img>"))
    )
    return Details(
        tokens_a_tile=configuration.processor.get("image_seq_length", IMAGE_SEQ_LENGTH),
        start=start,
        context=context,
        end=end,
        image_ids=tuple(configuration.id_of(token) for token in (context, start, end)),
    )


def read_placeholders(configuration: Configuration, modalities: frozenset[Modality]) -> Placeholders:
    """An image's token is the one that tiles are made of; a video has one of its own, in the place of its frames."""
    context = configuration.token_named("context_image_token", "<IMG_CONTEXT>")
    video = configuration.token_named("video_token", "<video>")
    ids = {Modality.IMAGE: configuration.id_of(context), Modality.VIDEO: configuration.id_of(video)}
    return Placeholders({Modality.IMAGE: context, Modality.VIDEO: video}, ids, {context: ids[Modality.IMAGE]})


def sample_indices(total: int, rate: float, sampling: Sampling, spec: VideoSpec) -> npt.NDArray[np.int64]:
    """The middle frames of equal parts; every frame where neither caller nor configuration says how many.

    Source: transformers 5.23, InternVLVideoProcessor.sample_frames. Differs: a caller's fps goes before the configuration's
    `num_frames`; a count above what the clip holds gives every frame, and an fps that gives none gives one, where the
    original raises.
    """
    count = count_asked(total, rate, sampling, spec.frame_count)
    indices: npt.NDArray[np.int64] = (
        torch.arange(total / count / 2, total, total / count).int().numpy().astype(np.int64)
    )
    return indices[:count]


def tile_grid(height: int, width: int, side: int, least: int, most: int) -> tuple[int, int]:
    """Columns and rows of an image's tiles: the grid whose shape is next to the image's.

    Of two that are equally near, the one of more tiles where the image has more than half of its pixels.

    Args:
        least, most: Bounds on the number of tiles.
    Source: transformers 5.23, got_ocr2, get_optimal_tiled_canvas and get_all_supported_aspect_ratios.
    """
    grids = [(columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    grids = sorted((grid for grid in grids if grid[0] * grid[1] >= least), key=lambda grid: grid[0] * grid[1])
    nearest, distance = (1, 1), float("inf")
    for columns, rows in grids:
        off = abs(width / height - columns / rows)
        if off < distance or (off == distance and width * height > 0.5 * side * side * columns * rows):
            nearest, distance = (columns, rows), off
    return nearest


def layout(item: ProbedMedium, model: ModelSettings) -> ItemLayout:
    """Source: transformers 5.23, InternVLProcessor, replace_image_token and replace_video_token."""
    details: Details = model.details
    pixels, side = model.image, model.image.patch_size
    if item.frames is None:
        refuse_most_below(item.medium, side**2, "one tile")
        most = min(max(pixels.max_pixels // side**2, 1), MOST_TILES)
        columns, lines = tile_grid(*item.size_px, side, -(-pixels.min_pixels // side**2), most)
        tile_count = columns * lines
        row_count = tile_count + (tile_count > 1)
        rows = ItemRows(1, row_count, 1, width_px=columns * side, height_px=lines * side)
        text = f"{details.start}{details.context}{details.end}"
        lengths = [row_count * details.tokens_a_tile]
    else:
        row_count = item.frame_count
        rows = ItemRows(row_count, 1, 1, width_px=side, height_px=side)
        text = "\n".join(f"Frame{n}: {details.start}{details.context}{details.end}" for n in range(1, row_count + 1))
        lengths = [details.tokens_a_tile] * row_count
    return ItemLayout(rows, Replacement(text, tuple(lengths)), {"tile_counts": np.array([row_count], np.int64)})


def tile_writer(item: ItemPlan, model: ModelSettings) -> WriteFrame:
    """Source: transformers 5.23, GotOcr2ImageProcessor.crop_image_to_patches; InternVLVideoProcessor."""
    pixels, side, size = model.image, model.image.patch_size, (item.rows.height_px, item.rows.width_px)
    source = (item.picture.height_px, item.picture.width_px)
    tile_count = size[0] * size[1] // side**2
    whole = row_writer(source, size, item.frame_count, pixels)
    thumbnail = row_writer(source, (side, side), 1, pixels) if tile_count > 1 else None

    def write(frame: npt.NDArray[np.uint8], rows: npt.NDArray[np.uint8], places: slice, stopwatch: Stopwatch) -> None:
        whole(frame, rows[:tile_count], places, stopwatch)
        if thumbnail is not None:
            thumbnail(frame, rows[tile_count:], places, stopwatch)

    return write


def token_types(prompt: ExpandedPrompt, items: Sequence[ItemPlan], model: ModelSettings) -> npt.NDArray[np.int32]:
    """Frames count as images, and so do the tokens around a tile.

    Source: transformers 5.23, InternVLProcessor.image_token_ids.
    """
    return image_token_types(prompt, model.details.image_ids)


FAMILY = Family(
    name="internvl",
    model_types=("internvl",),
    read_pixels=read_pixels,
    read_details=read_details,
    read_placeholders=read_placeholders,
    sample_indices=sample_indices,
    layout=layout,
    frame_writer=tile_writer,
    token_types=token_types,
    video_bounds=NO_BOUNDS,  # frames have one size
    text_in_parts=True,
    else_generic=True,
)
