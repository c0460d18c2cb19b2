"""Gemma 3: an image is one square tile, whatever its shape; with pan and scan, crops of a long image follow it as further tiles.

A row is a tile, its values ordered channel, y, x: an image as a whole, then its crops. So `rows.reshape(-1, 3, side, side)` are
the `pixel_values` of transformers. `tile_counts`, int64 [items], says how many rows belong to each image. There are no videos.

Pan and scan is off, as in transformers, whose processor overrules the configuration. A `max_pixel_count` of three tiles or more
turns it on, with at most as many crops as fit beside the whole image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from preprocessor.models.family import Configuration, Family, ItemLayout, ModelSettings
from preprocessor.models.family.budget import MOST_ALONE, refuse_most_below
from preprocessor.models.family.rules import no_video
from preprocessor.models.loaded import WriteFrame
from preprocessor.models.probe import ProbedMedium
from preprocessor.models.qwen2_vl import without_nulls
from preprocessor.text.placeholders import Placeholders, Replacement
from preprocessor.types.plan import ItemPlan, ItemRows
from preprocessor.types.request import Modality
from preprocessor.types.timing import Stopwatch
from preprocessor.vision.resize import resize_pixels
from preprocessor.vision.spec import PixelSpec, VideoSpec, parse_tile_spec, unsupported

IMAGE_DEFAULTS = {
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "size": {"height": 224, "width": 224},
    "resample": 2,
}
"""transformers 5.23, Gemma3ImageProcessor."""
IMAGE_SEQ_LENGTH = 256
"""transformers 5.23, Gemma3Processor."""
RESAMPLE_MODES = {2: "bilinear", 3: "bicubic"}
"""PIL.Image.Resampling, as preprocessor_config.json spells it → torch's name."""

# transformers 5.23, Gemma3Processor.images_kwargs.
MIN_CROP_PX = 256
MIN_RATIO = 1.2


@dataclass(frozen=True, slots=True)
class Details:
    """What a tile's tokens are: `tokens_a_tile` times `soft` between `start` and `end`; and how it is resized."""

    tokens_a_tile: int
    start: str
    soft: str
    end: str
    mode: str


def read_pixels(image: Mapping[str, Any], video: Mapping[str, Any], name: str) -> tuple[PixelSpec, VideoSpec]:
    image = {**IMAGE_DEFAULTS, **without_nulls(image)}
    if image["resample"] not in RESAMPLE_MODES:
        raise unsupported(f"{name}: image processor", "resample", image["resample"], "bilinear or bicubic")
    spec = parse_tile_spec({**image, "resample": 3}, f"{name}: image processor", 1, 1)
    return spec, VideoSpec(spec, fps=0, min_frames=0, max_frames=0)


def read_details(configuration: Configuration) -> Details:
    """Source: transformers 5.23, Gemma3Processor, which takes the tokens from its tokenizer's attributes."""
    return Details(
        tokens_a_tile=configuration.processor.get("image_seq_length", IMAGE_SEQ_LENGTH),
        start=configuration.token_named("boi_token", "<start_of_image>"),
        soft=configuration.token_named("image_token", "<image_soft_token>"),
        end=configuration.token_named("eoi_token", "<end_of_image>"),
        mode=RESAMPLE_MODES[{**IMAGE_DEFAULTS, **without_nulls(configuration.image)}["resample"]],
    )


def read_placeholders(configuration: Configuration, modalities: frozenset[Modality]) -> Placeholders:
    """A prompt has the token that begins an image; what is repeated is another one."""
    start = configuration.token_named("boi_token", "<start_of_image>")
    soft = configuration.token_named("image_token", "<image_soft_token>")
    return Placeholders(
        {Modality.IMAGE: start}, {Modality.IMAGE: configuration.id_of(start)}, {soft: configuration.id_of(soft)}
    )


def crop_boxes(height: int, width: int, most: int) -> list[tuple[slice, slice]]:
    """Lines and columns of the crops that pan and scan makes: side by side along the longer side; none of a squarish image.

    Args:
        most: Crops at most; with less than two there are none.
    Source: transformers 5.23, Gemma3ImageProcessor.pan_and_scan_batched.
    """
    longer, shorter = max(height, width), min(height, width)
    if most < 2 or longer / shorter < MIN_RATIO:
        return []
    count = min(math.floor(longer / MIN_CROP_PX), math.floor(longer / shorter + 0.5))
    count = min(most, max(2, count))
    length = math.ceil(longer / count)
    if min(length, shorter) < MIN_CROP_PX:
        return []
    parts = [slice(start, start + length) for start in range(0, length * count, length)]
    whole = slice(0, shorter)
    return [(whole, part) if width >= height else (part, whole) for part in parts]


def most_crops(model: ModelSettings) -> int:
    """Tiles that the budget holds beside the whole image."""
    return model.image.max_pixels // model.image.patch_size**2 - 1


def layout(item: ProbedMedium, model: ModelSettings) -> ItemLayout:
    """Source: transformers 5.23, Gemma3Processor.replace_image_token."""
    details: Details = model.details
    side = model.image.patch_size
    refuse_most_below(item.medium, side**2, "one tile")
    crop_count = len(crop_boxes(*item.size_px, most_crops(model)))
    tile = f"\n\n{details.start}{details.soft}{details.end}\n\n"
    text = tile
    if crop_count:
        text = f"Here is the original image {tile} and here are some crops to help you see better "
        text += " ".join([tile] * crop_count)
    row_count = 1 + crop_count
    return ItemLayout(
        rows=ItemRows(1, row_count, 1, width_px=side, height_px=side),
        spans=Replacement(text, (details.tokens_a_tile,) * row_count),
        tensors={"tile_counts": np.array([row_count], np.int64)},
    )


def tile_writer(item: ItemPlan, model: ModelSettings) -> WriteFrame:
    """Source: transformers 5.23, Gemma3ImageProcessor._preprocess."""
    details: Details = model.details
    side = model.image.patch_size
    height, width = item.picture.height_px, item.picture.width_px
    # The item's own budget is not known here; its rows tell how many crops there are.
    boxes = crop_boxes(height, width, item.rows.group_rows - 1)

    def write(frame: npt.NDArray[np.uint8], rows: npt.NDArray[np.uint8], places: slice, stopwatch: Stopwatch) -> None:
        for row, box in zip(rows, [(slice(None), slice(None)), *boxes], strict=True):
            tile = resize_pixels(frame[box], (side, side), details.mode)
            stopwatch.end("resize")
            cv2.split(tile, list(row.reshape(3, side, side)))
            stopwatch.end("patch")

    return write


FAMILY = Family(
    name="gemma3",
    model_types=("gemma3",),
    read_pixels=read_pixels,
    read_details=read_details,
    read_placeholders=read_placeholders,
    sample_indices=no_video,
    layout=layout,
    frame_writer=tile_writer,
    modalities=frozenset({Modality.IMAGE}),
    image_bounds=MOST_ALONE,
    text_in_parts=True,
    else_generic=True,
)
