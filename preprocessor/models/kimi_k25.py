"""Kimi K2.5: patches of a picture in its own size, shrunk only where it has too many; a video in chunks of four frames.

A row is a patch of one frame, in the order of its lines, not of merge blocks. The frames of a chunk share one run of tokens,
`00:00:01.500<|media_begin|>video<|media_content|>…<|media_end|>`, as many as one frame has.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.media.spreads import spread_from_start
from preprocessor.models.family import Family, ItemLayout, ModelSettings
from preprocessor.models.family.budget import MOST_ALONE
from preprocessor.models.loaded import WriteFrame
from preprocessor.models.probe import ProbedMedium
from preprocessor.models.qwen2_vl import grid_writer, patch_rows, read_patch_settings, without_nulls
from preprocessor.text.placeholders import Replacement
from preprocessor.types.plan import ItemPlan
from preprocessor.types.request import Modality, Sampling
from preprocessor.vision.spec import PixelSpec, VideoSpec, whole_number

# transformers 5.23, Kimi_K25ImageProcessor and Kimi_K25VideoProcessor.
_DEFAULTS = {
    "patch_size": 14,
    "merge_size": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "size": {"max_height": 512, "max_width": 512},
}
_IMAGE_DEFAULTS = {**_DEFAULTS, "max_patches": 16_384}
_VIDEO_DEFAULTS = {**_DEFAULTS, "max_patches": 4_096, "fps": 2, "temporal_patch_size": 4}

ANY_COUNT = (1 << 31) - 1  # the family bounds no video's frames


@dataclass(frozen=True, slots=True)
class SidePixelSpec(PixelSpec):
    """Attributes:
    max_side_px: Of a resized picture.
    """

    max_side_px: int = 0


@dataclass(frozen=True, slots=True)
class ChunkVideoSpec(VideoSpec):
    """Attributes:
    chunk_frames: Frames that share the tokens of one.
    """

    chunk_frames: int = 1


def read_pixels(image: Mapping[str, Any], video: Mapping[str, Any], name: str) -> tuple[SidePixelSpec, ChunkVideoSpec]:
    """A budget in px is `max_patches` patches; there is no least one."""
    image, video = {**_IMAGE_DEFAULTS, **without_nulls(image)}, {**_VIDEO_DEFAULTS, **without_nulls(video)}
    bounds = {"min_frames": 1, "max_frames": ANY_COUNT, "max_video_tokens": 0}
    images, videos = read_patch_settings(_as_patches(image, name), {**_as_patches(video, name), **bounds}, name)
    fields = {field.name: getattr(videos, field.name) for field in dataclasses.fields(VideoSpec)}
    fields["pixels"] = _with_side(videos.pixels, video, name)
    chunk_frames = whole_number(video, "temporal_patch_size", name)
    return _with_side(images, image, name), ChunkVideoSpec(**fields, chunk_frames=chunk_frames)


def _as_patches(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """In the terms of `parse_pixel_spec`."""
    size = {
        "shortest_edge": 1,
        "longest_edge": whole_number(settings, "max_patches", name) * whole_number(settings, "patch_size", name) ** 2,
    }
    return {**settings, "size": size, "temporal_patch_size": 1}


def _with_side(pixels: PixelSpec, settings: Mapping[str, Any], name: str) -> SidePixelSpec:
    fields = {field.name: getattr(pixels, field.name) for field in dataclasses.fields(PixelSpec)}
    return SidePixelSpec(**fields, max_side_px=whole_number(settings["size"], "max_height", name) * pixels.patch_size)


def sample_indices(total: int, rate: float, sampling: Sampling, spec: VideoSpec) -> npt.NDArray[np.int64]:
    """Equal steps from the first frame; their number from `frame_count`, else from fps.

    Source: transformers 5.23, video_utils.default_sample_indices_fn. Differs: a number above what the clip holds gives every
    frame, where the original raises.
    """
    count = sampling.frame_count
    if count is None and sampling.fps is None:
        count = spec.frame_count
    if count is None:
        fps = spec.fps if sampling.fps is None else sampling.fps
        count = max(1, int(min(total / rate * fps, total)))
    return spread_from_start(total, count)


def fit(height: int, width: int, pixels: SidePixelSpec) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width in px of a resized frame, and of the black canvas of whole tokens at whose top left it lies.

    Source: transformers 5.23, models/kimi_k25/image_processing_kimi_k25.py, navit_resize.
    """
    patch, side = pixels.patch_size, pixels.max_side_px
    patches = max(1.0, height // patch) * max(1.0, width // patch)
    most = pixels.max_pixels // patch**2
    scale = min(1.0, math.sqrt(most / patches), side / height, side / width)
    size = min(max(1, int(height * scale)), side), min(max(1, int(width * scale)), side)
    return size, (_whole(size[0], pixels.factor), _whole(size[1], pixels.factor))


def _whole(side: int, factor: int) -> int:
    return -(-side // factor) * factor


def layout(item: ProbedMedium, model: ModelSettings) -> ItemLayout:
    """One group a frame. The model also takes `chunk_grid_thw`, int64 [chunks, 3]: of an image one, of a video each chunk's.

    Source: transformers 5.23, Kimi_K25VideoProcessor and Kimi_K25Processor.replace_video_token.
    """
    pixels = model.pixels_of(item.medium.modality)
    assert isinstance(pixels, SidePixelSpec) and isinstance(model.video, ChunkVideoSpec)
    laid_out = patch_rows(item, model, *fit(*item.size_px, pixels))
    grid = laid_out.rows.grid
    assert grid is not None
    if item.frames is None:
        return dataclasses.replace(
            laid_out, tensors={**laid_out.tensors, "chunk_grid_thw": laid_out.tensors["grid_thw"]}
        )
    step = model.video.chunk_frames
    seconds = item.frames.prompt_times_seconds[::step].tolist()
    pad = model.placeholders.tokens[Modality.VIDEO]
    text = "".join(f"{clock(second)}<|media_begin|>video<|media_content|>{pad}<|media_end|>" for second in seconds)
    chunks = [(min(step, grid.t - first), grid.h, grid.w) for first in range(0, grid.t, step)]
    return dataclasses.replace(
        laid_out,
        spans=Replacement(text, (grid.h * grid.w // pixels.merge_size**2,) * len(chunks)),
        tensors={**laid_out.tensors, "chunk_grid_thw": np.array(chunks, np.int64)},
    )


def clock(second: float) -> str:
    """Such as 00:00:01.500. Source: transformers 5.23, Kimi_K25Processor.replace_video_token."""
    return time.strftime("%H:%M:%S", time.gmtime(second)) + f".{int(second % 1 * 1000):03d}"


def line_writer(item: ItemPlan, model: ModelSettings) -> WriteFrame:
    """Source: transformers 5.23, Kimi_K25ImageProcessor.patchify, which knows no merge blocks."""
    return grid_writer(item, dataclasses.replace(model.pixels_of(item.modality), merge_size=1))


FAMILY = Family(
    name="kimi_k25",
    model_types=("kimi_k25",),
    read_pixels=read_pixels,
    sample_indices=sample_indices,
    layout=layout,
    frame_writer=line_writer,
    image_bounds=MOST_ALONE,
    video_bounds=MOST_ALONE,
    else_generic=True,
)
