"""MiniMax-M3: Qwen2-VL's patches and sizes; each pair of frames behind its time, a video's grid cut into segments.

transformers' own processor leaves a video's frames and their size to its caller unless told otherwise: its `videos_kwargs` say
`do_resize: False`, and `do_sample_frames` is false. Here both are done, by the settings that its video processor has for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from preprocessor.models.family import Family, ItemLayout, ModelSettings
from preprocessor.models.kimi_k25 import ANY_COUNT, sample_indices
from preprocessor.models.probe import ProbedMedium
from preprocessor.models.qwen2_vl import patch_layout, patch_writer, read_patch_settings, without_nulls
from preprocessor.text.placeholders import Replacement
from preprocessor.vision.geometry import fit_image
from preprocessor.vision.spec import PixelSpec, VideoSpec

# transformers 5.23, MiniMaxM3VLImageProcessor and MiniMaxM3VLVideoProcessor.
_DEFAULTS = {
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_IMAGE_SIZE = {"shortest_edge": 4 * 28 * 28, "longest_edge": 451_584}
_VIDEO_DEFAULTS = {**_DEFAULTS, "min_pixels": 4 * 28 * 28, "max_pixels": 768 * 28 * 28, "fps": 1.0}
_SEGMENT_PATCHES = 4


@dataclass(frozen=True, slots=True)
class SegmentVideoSpec(VideoSpec):
    """Attributes:
    segment_patches: Temporal patches of a segment at most; None where a video is one.
    """

    segment_patches: int | None = _SEGMENT_PATCHES


def read_pixels(image: Mapping[str, Any], video: Mapping[str, Any], name: str) -> tuple[PixelSpec, SegmentVideoSpec]:
    """`total_pixels`, `min_frames` and `max_frames` are not heeded, as in transformers."""
    segment_patches = video.get("vision_segment_max_frames", _SEGMENT_PATCHES)
    image, video = {**_DEFAULTS, **without_nulls(image)}, {**_VIDEO_DEFAULTS, **without_nulls(video)}
    if not isinstance(image.get("size"), Mapping):  # published as [672, 672], which transformers replaces too
        image["size"] = _IMAGE_SIZE
    bounds = {"min_frames": 1, "max_frames": ANY_COUNT, "max_video_tokens": 0}
    images, videos = read_patch_settings(image, {**video, **bounds}, name)
    fields = {field.name: getattr(videos, field.name) for field in dataclasses.fields(VideoSpec)}
    return images, SegmentVideoSpec(**fields, segment_patches=segment_patches)


def fit_video(frame_count: int, height: int, width: int, spec: VideoSpec) -> tuple[int, int]:
    """Source: transformers 5.23, MiniMaxM3VLVideoProcessor._preprocess with `do_resize`; the budget counts one frame."""
    pixels = spec.pixels
    return fit_image(height, width, factor=pixels.factor, min_pixels=pixels.min_pixels, max_pixels=pixels.max_pixels)


def layout(item: ProbedMedium, model: ModelSettings) -> ItemLayout:
    """As Qwen2-VL, with other texts. The model also takes `chunk_grid_thw`, int64 [segments, 3]: of an image one.

    Source: transformers 5.23, `replace_image_token` and `replace_video_token` of MiniMaxM3VLProcessor.
    """
    assert isinstance(model.video, SegmentVideoSpec)
    laid_out = patch_layout(item, model, fit_video)
    grid, pad = laid_out.rows.grid, laid_out.spans.text
    assert grid is not None
    (token_count,) = laid_out.spans.span_lengths
    picture = f"]<]start of image[>[{pad}]<]end of image[>["
    if item.frames is None:
        spans, segment = Replacement(picture, (token_count,)), 1
    else:
        seconds = item.frames.prompt_times_seconds[:: model.video.pixels.temporal_patch_size].tolist()
        text = "".join(f"]<]{second:.1f} seconds[>[{picture}" for second in seconds)
        spans, segment = Replacement(text, (token_count // grid.t,) * grid.t), model.video.segment_patches or grid.t
    segments = [(min(segment, grid.t - first), grid.h, grid.w) for first in range(0, grid.t, segment)]
    return dataclasses.replace(
        laid_out, spans=spans, tensors={**laid_out.tensors, "chunk_grid_thw": np.array(segments, np.int64)}
    )


FAMILY = Family(
    name="minimax_m3_vl",
    model_types=("minimax_m3_vl",),
    read_pixels=read_pixels,
    sample_indices=sample_indices,  # transformers 5.23: both classes have BaseVideoProcessor's
    layout=layout,
    frame_writer=patch_writer,
    else_generic=True,
)
