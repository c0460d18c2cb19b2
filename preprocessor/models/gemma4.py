"""Gemma 4, the sizes without sound: an image in its own shape, as large as its soft tokens allow; a video frame by frame.

A row is a patch, its values ordered y, x, channel; patches run line by line from the top left, of a video frame after frame.
`grid_thw` tells their numbers along time, height and width. transformers pads each image or frame to the most patches that it
may have, and gives each patch its column and line: those of row r within a frame of w columns are (r % w, r // w).
A token is pooling x pooling patches. A `max_pixel_count` chooses the largest number of soft tokens that the models know
(70, 140, 280, 560 or 1120, for an image or a frame) whose pixels it holds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.errors import ModelNotFound
from preprocessor.media.spreads import count_asked
from preprocessor.models.family import Configuration, Family, ItemLayout, ModelSettings
from preprocessor.models.family.budget import MOST_ALONE, refuse_most_below
from preprocessor.models.loaded import WriteFrame
from preprocessor.models.probe import ProbedMedium
from preprocessor.models.qwen2_vl import without_nulls
from preprocessor.text.placeholders import Placeholders, Replacement
from preprocessor.types.plan import Grid, ItemPlan, ItemRows
from preprocessor.types.request import Modality, Sampling
from preprocessor.types.timing import Stopwatch
from preprocessor.vision.resize import resize_pixels
from preprocessor.vision.spec import PixelSpec, VideoSpec, parse_pixel_spec, unsupported

_NEUTRAL = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
_DEFAULTS = {**_NEUTRAL, "patch_size": 16, "pooling_kernel_size": 3}
IMAGE_DEFAULTS = {**_DEFAULTS, "max_soft_tokens": 280, "do_normalize": False}
"""transformers 5.23, Gemma4ImageProcessor."""
VIDEO_DEFAULTS = {**_DEFAULTS, "max_soft_tokens": 70, "do_normalize": True, "num_frames": 32, "do_sample_frames": True}
"""transformers 5.23, Gemma4VideoProcessor."""
SOFT_TOKENS = (70, 140, 280, 560, 1120)
"""transformers 5.23, gemma4, _SUPPORTED_SOFT_TOKENS."""
VIDEO_TOKEN = "<|video|>"
"""transformers 5.23, Gemma4Processor.__init__, which adds it to a tokenizer that has none."""


@dataclass(frozen=True, slots=True)
class Details:
    """The tokens around an image or a frame."""

    start: str
    end: str


def read_pixels(image: Mapping[str, Any], video: Mapping[str, Any], name: str) -> tuple[PixelSpec, VideoSpec]:
    """Raises: `ModelNotFound`, `UNSUPPORTED_PROCESSOR`, also where an image differs from a frame in more than its budget.

    As published, frames are normalized with a mean of 0 and a deviation of 1, images not at all.
    """
    image, video = {**IMAGE_DEFAULTS, **without_nulls(image)}, {**VIDEO_DEFAULTS, **without_nulls(video)}
    images = _parse(image, f"{name}: image processor")
    frames = _parse(video, f"{name}: video processor")
    if dataclasses.replace(frames, max_pixels=images.max_pixels, normalizes=images.normalizes) != images:
        raise ModelNotFound(
            f"{name}: image and video processor differ in more than their pixel budget; one pixel tensor cannot hold both",
            reason="UNSUPPORTED_PROCESSOR",
        )
    frame_count = video.get("num_frames") if video["do_sample_frames"] else None
    return images, VideoSpec(frames, fps=0, min_frames=1, max_frames=(1 << 31) - 1, frame_count=frame_count)


def read_details(configuration: Configuration) -> Details:
    """Source: transformers 5.23, Gemma4Processor, which takes the tokens from its tokenizer's attributes."""
    if configuration.config.get("audio_config"):
        raise ModelNotFound(
            f"{configuration.name}: it takes sounds, which this family does not", reason="UNSUPPORTED_PROCESSOR"
        )
    return Details(
        start=configuration.token_named("boi_token", "<|image>"), end=configuration.token_named("eoi_token", "<image|>")
    )


def read_placeholders(configuration: Configuration, modalities: frozenset[Modality]) -> Placeholders:
    """Source: transformers 5.23, Gemma4Processor.__init__."""
    image = configuration.token_named("image_token", "<|image|>")
    configuration.tokenizer.add_special_tokens({"additional_special_tokens": [VIDEO_TOKEN]})
    tokens = {Modality.IMAGE: image, Modality.VIDEO: VIDEO_TOKEN}
    return Placeholders(tokens, {modality: configuration.id_of(token) for modality, token in tokens.items()})


def sample_indices(total: int, rate: float, sampling: Sampling, spec: VideoSpec) -> npt.NDArray[np.int64]:
    """The first frames of equal parts; every frame where neither caller nor configuration says how many.

    Source: transformers 5.23, video_utils.default_sample_indices_fn. Differs: a caller's fps goes before the configuration's
    `num_frames`, and a count above what the clip holds gives every frame, where the original raises.
    """
    count = count_asked(total, rate, sampling, spec.frame_count)
    return np.arange(count, dtype=np.int64) * total // count


def fit_image(height: int, width: int, *, patch: int, pooling: int, most_patches: int) -> tuple[int, int]:
    """Height and width in px after resizing: the largest multiples of a token's side that keep the aspect within the budget.

    Source: transformers 5.23, gemma4, get_aspect_ratio_preserving_size.
    """
    side = pooling * patch
    scale = math.sqrt(most_patches * patch**2 / (height * width))
    fitted_height = math.floor(scale * height / side) * side
    fitted_width = math.floor(scale * width / side) * side
    longest = most_patches // pooling**2 * side
    if fitted_height == 0 and fitted_width:
        fitted_height, fitted_width = side, min(width // height * side, longest)
    elif fitted_width == 0 and fitted_height:
        fitted_height, fitted_width = min(height // width * side, longest), side
    return fitted_height, fitted_width


def layout(item: ProbedMedium, model: ModelSettings) -> ItemLayout:
    """Source: transformers 5.23, Gemma4Processor, replace_image_token and replace_video_token."""
    medium, details = item.medium, model.details
    pixels = model.pixels_of(medium.modality)
    patch, pooling = pixels.patch_size, pixels.merge_size
    most_patches = _soft_tokens(item, pixels) * pooling**2
    height, width = fit_image(*item.size_px, patch=patch, pooling=pooling, most_patches=most_patches)
    grid = Grid(item.frame_count, height // patch, width // patch)
    token_count = grid.h * grid.w // pooling**2
    whole = f"{details.start}{model.placeholders.tokens[medium.modality]}{details.end}"
    times = [] if item.frames is None else item.frames.prompt_times_seconds.tolist()
    text = " ".join(f"{int(at // 60):02d}:{int(at % 60):02d} {whole}" for at in times) or whole
    return ItemLayout(
        rows=ItemRows(grid.t, grid.h * grid.w, 1, width_px=width, height_px=height, grid=grid),
        spans=Replacement(text, (token_count,) * grid.t),
        tensors={"grid_thw": np.array([(grid.t, grid.h, grid.w)], np.int64)},
    )


def patch_writer(item: ItemPlan, model: ModelSettings) -> WriteFrame:
    """Source: transformers 5.23, gemma4, convert_image_to_patches and convert_video_to_patches."""
    patch, size = model.image.patch_size, (item.rows.height_px, item.rows.width_px)
    grid_height, grid_width = size[0] // patch, size[1] // patch
    line = np.dtype(f"V{3 * patch}")  # a patch's line, moved as a whole

    def write(frame: npt.NDArray[np.uint8], rows: npt.NDArray[np.uint8], places: slice, stopwatch: Stopwatch) -> None:
        resized = np.ascontiguousarray(resize_pixels(frame, size))
        stopwatch.end("resize")
        lines = resized.reshape(size[0], size[1] * 3).view(line).reshape(grid_height, patch, grid_width)
        rows.view(line).reshape(grid_height, grid_width, patch)[:] = lines.transpose(0, 2, 1)
        stopwatch.end("patch")

    return write


def _soft_tokens(item: ProbedMedium, pixels: PixelSpec) -> int:
    asked = pixels.max_pixels // pixels.factor**2
    if item.medium.max_pixels is None:
        return asked
    refuse_most_below(
        item.medium, SOFT_TOKENS[0] * pixels.factor**2, f"this model's least picture of {SOFT_TOKENS[0]} tokens"
    )
    return max(count for count in SOFT_TOKENS if count <= asked)


def _parse(config: Mapping[str, Any], source: str) -> PixelSpec:
    if config["max_soft_tokens"] not in SOFT_TOKENS:
        raise unsupported(source, "max_soft_tokens", config["max_soft_tokens"], f"one of {SOFT_TOKENS}")
    normalizes = bool(config["do_normalize"])
    named = {
        "merge_size": config["pooling_kernel_size"],
        "temporal_patch_size": 1,
        "min_pixels": 1,
        "max_pixels": config["max_soft_tokens"] * (config["patch_size"] * config["pooling_kernel_size"]) ** 2,
        "do_normalize": True,
        **({} if normalizes else _NEUTRAL),
    }
    spec = dataclasses.replace(parse_pixel_spec({**config, **named}, source), normalizes=normalizes)
    if len(set(zip(spec.mean, spec.std, strict=True))) != 1:  # the channels of a row alternate
        raise unsupported(source, "image_mean", list(spec.mean), "one mean and deviation for all channels")
    return spec


FAMILY = Family(
    name="gemma4",
    model_types=("gemma4",),
    read_pixels=read_pixels,
    read_details=read_details,
    read_placeholders=read_placeholders,
    sample_indices=sample_indices,
    layout=layout,
    frame_writer=patch_writer,
    image_bounds=MOST_ALONE,
    video_bounds=MOST_ALONE,
    text_in_parts=True,
    else_generic=True,
)
