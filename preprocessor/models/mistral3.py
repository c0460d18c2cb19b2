"""Mistral 3 (Small 3.1 and later, Ministral 3) and Pixtral: an image in its own shape, a break token behind each line of tokens.

A row is a patch, its values ordered channel, y, x; patches run line by line from the top left. `grid_thw` tells their numbers,
with t = 1, and `image_sizes`, int64 [items, 2], height and width in px. An image as the model takes it is
`rows.reshape(h, w, 3, p, p).permute(2, 0, 3, 1, 4).reshape(3, h * p, w * p)`, where p is the patch size; transformers puts the
images of a prompt into one `pixel_values`, with zeros below and to the right. There are no videos. A `max_pixel_count` bounds
the square that an image has to fit in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.errors import ModelNotFound, UnsupportedMedia
from preprocessor.models.family import Configuration, Family, ItemLayout, ModelSettings
from preprocessor.models.family.budget import MOST_ALONE, refuse_most_below
from preprocessor.models.family.rules import no_video
from preprocessor.models.loaded import WriteFrame
from preprocessor.models.probe import ProbedMedium
from preprocessor.models.qwen2_vl import without_nulls
from preprocessor.text.placeholders import Placeholders, Replacement, image_token_types
from preprocessor.types.plan import ExpandedPrompt, Grid, ItemPlan, ItemRows
from preprocessor.types.request import Modality
from preprocessor.vision.frame_rows import row_writer
from preprocessor.vision.spec import PixelSpec, VideoSpec, parse_pixel_spec, unsupported

IMAGE_DEFAULTS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "size": {"longest_edge": 1024},
}
"""transformers 5.23, PixtralImageProcessor."""
PROCESSOR_DEFAULTS = {
    "patch_size": 16,
    "spatial_merge_size": 1,
    "image_token": "[IMG]",
    "image_break_token": "[IMG_BREAK]",
    "image_end_token": "[IMG_END]",
}
"""transformers 5.23, PixtralProcessor."""


@dataclass(frozen=True, slots=True)
class Details:
    """Tokens behind the lines of an image and behind its last one, and the side of the square that an image fits in, px."""

    line_break: str
    end: str
    image_ids: tuple[int, ...]
    longest_edge: int


def read_pixels(image: Mapping[str, Any], video: Mapping[str, Any], name: str) -> tuple[PixelSpec, VideoSpec]:
    """The patch is the processor's, which overrules the image processor's own.

    Source: transformers 5.23, PixtralProcessor._process_images.
    """
    processor, source = _processor(image), f"{name}: image processor"
    image = {**IMAGE_DEFAULTS, **without_nulls(image)}
    if image.get("do_center_crop"):
        raise unsupported(source, "do_center_crop", True, "false")
    patches = {
        "patch_size": processor["patch_size"],
        "merge_size": processor["spatial_merge_size"],
        "temporal_patch_size": 1,
        "min_pixels": 1,
        "max_pixels": _longest_edge(image, source) ** 2,
    }
    spec = parse_pixel_spec({**image, **patches}, source)
    return spec, VideoSpec(spec, fps=0, min_frames=0, max_frames=0)


def read_details(configuration: Configuration) -> Details:
    """Source: transformers 5.23, PixtralProcessor.__init__."""
    needs_name = configuration.config.get("model_type") == "llava"
    named = configuration.processor.get("processor_class") or configuration.image.get("processor_class")
    if (named or needs_name) and named != "PixtralProcessor":
        raise ModelNotFound(f"{configuration.name}: its processor is {named}", reason="UNSUPPORTED_PROCESSOR")
    processor = _processor(configuration.image)
    tokens = [processor[f"image_{name}token"] for name in ("", "break_", "end_")]
    image = {**IMAGE_DEFAULTS, **without_nulls(configuration.image)}
    return Details(
        line_break=tokens[1],
        end=tokens[2],
        image_ids=tuple(configuration.id_of(token) for token in tokens),
        longest_edge=_longest_edge(image, configuration.name),
    )


def read_placeholders(configuration: Configuration, modalities: frozenset[Modality]) -> Placeholders:
    token = _processor(configuration.image)["image_token"]
    return Placeholders({Modality.IMAGE: token}, {Modality.IMAGE: configuration.id_of(token)})


def fit_image(height: int, width: int, *, factor: int, longest_edge: int) -> tuple[int, int]:
    """Height and width in px after resizing: shrunk to fit the square, aspect kept, then raised to multiples of `factor`.

    Returns:
        A side of 0 where the other one is too long.
    Source: transformers 5.23, pixtral, get_resize_output_image_size.
    """
    ratio = max(height / longest_edge, width / longest_edge)
    if ratio > 1:
        height, width = math.floor(height / ratio), math.floor(width / ratio)
    return ((height - 1) // factor + 1) * factor, ((width - 1) // factor + 1) * factor


def layout(item: ProbedMedium, model: ModelSettings) -> ItemLayout:
    """Source: transformers 5.23, PixtralProcessor.replace_image_token."""
    details: Details = model.details
    factor, longest_edge = model.image.factor, details.longest_edge
    refuse_most_below(item.medium, factor**2, "one token's square")
    if item.medium.max_pixels is not None:
        longest_edge = math.isqrt(item.medium.max_pixels) // factor * factor
    height, width = fit_image(*item.size_px, factor=factor, longest_edge=longest_edge)
    if not height * width:
        stored_height, stored_width = item.size_px
        raise UnsupportedMedia(
            f"{item.medium.key}: the picture is {stored_width}x{stored_height}; its shorter side is less than a pixel "
            f"where the longer one is {longest_edge}",
            reason="EXTREME_ASPECT_RATIO",
            media_key=item.medium.key,
        )
    grid = Grid(1, height // model.image.patch_size, width // model.image.patch_size)
    line_count, line_length = height // factor, width // factor
    pad = model.placeholders.tokens[Modality.IMAGE]
    text = f"{pad}{details.line_break}" * (line_count - 1) + f"{pad}{details.end}"
    return ItemLayout(
        rows=ItemRows(1, grid.patch_count, 1, width_px=width, height_px=height, grid=grid),
        spans=Replacement(text, (line_length,) * line_count),
        tensors={
            "grid_thw": np.array([(grid.t, grid.h, grid.w)], np.int64),
            "image_sizes": np.array([(height, width)], np.int64),
        },
    )


def patch_writer(item: ItemPlan, model: ModelSettings) -> WriteFrame:
    """Patches in lines, not in the blocks that become a token: `merge_size` plays no part."""
    line_by_line = PixelSpec(model.image.patch_size, 1, 1, 1, 1, model.image.mean, model.image.std)
    source = (item.picture.height_px, item.picture.width_px)
    return row_writer(source, (item.rows.height_px, item.rows.width_px), 1, line_by_line)


def token_types(prompt: ExpandedPrompt, items: Sequence[ItemPlan], model: ModelSettings) -> npt.NDArray[np.int32]:
    """Breaks and ends count as an image's. Source: transformers 5.23, PixtralProcessor.image_token_ids."""
    return image_token_types(prompt, model.details.image_ids)


def _processor(image: Mapping[str, Any]) -> dict[str, Any]:
    return {**PROCESSOR_DEFAULTS, **without_nulls(image.get("processor", {}))}


def _longest_edge(image: Mapping[str, Any], source: str) -> int:
    size = image["size"]
    edge = size.get("longest_edge")
    if not isinstance(edge, int) or edge < 1 or len(without_nulls(size)) != 1:
        raise unsupported(source, "size", dict(size), "a longest_edge alone")
    return edge


FAMILY = Family(
    name="mistral3",
    model_types=("mistral3", "pixtral", "llava"),  # of LLaVA those alone that have Pixtral's processor
    read_pixels=read_pixels,
    read_details=read_details,
    read_placeholders=read_placeholders,
    sample_indices=no_video,
    layout=layout,
    frame_writer=patch_writer,
    token_types=token_types,
    modalities=frozenset({Modality.IMAGE}),
    image_bounds=MOST_ALONE,
    text_in_parts=True,
    else_generic=True,
)
