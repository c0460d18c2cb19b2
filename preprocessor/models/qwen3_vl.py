"""Qwen3-VL, dense and mixture of experts; Qwen3.5 and 3.6; Qwen3.8 (`qwen4_exp`); Cosmos-Reason 2 and Cosmos3 Reasoner.

A video is written frame pair by frame pair, each between vision markers behind the time at which it is shown:
`<1.2 seconds><|vision_start|>…<|vision_end|>`. The template's markers around the whole video stay or go (`VideoMarkers`).
Positions count every pair as an image of its own. The pixel budget of a
video counts all its frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.media.spreads import count_for_fps, spread_evenly
from preprocessor.models.family import Family, ItemLayout, ModelSettings
from preprocessor.models.family.budget import CAPPED_BOUNDS
from preprocessor.models.probe import ProbedMedium
from preprocessor.models.qwen2_vl import merged_grids, patch_layout, patch_writer, read_patch_settings, without_nulls
from preprocessor.models.video_markers import VideoMarkers
from preprocessor.text.placeholders import Replacement
from preprocessor.types.plan import ExpandedPrompt, Grid, ItemPlan
from preprocessor.types.request import Sampling
from preprocessor.vision.geometry import fit_video as fit_whole_video
from preprocessor.vision.positions import mrope_tensors
from preprocessor.vision.spec import PixelSpec, VideoSpec

VIDEO_DEFAULTS = {"fps": 2, "min_frames": 4, "max_frames": 768, "max_video_tokens": 768}
"""transformers 5.23, Qwen3VLVideoProcessor."""


def read_pixels(image: Mapping[str, Any], video: Mapping[str, Any], name: str) -> tuple[PixelSpec, VideoSpec]:
    pixels, settings = read_patch_settings(image, {**VIDEO_DEFAULTS, **without_nulls(video)}, name)
    # Qwen3VLVideoProcessor samples; where a model's files say that it does not, transformers uses every frame.
    return pixels, dataclasses.replace(settings, takes_every_frame=video.get("do_sample_frames") is False)


def sample_indices(total: int, rate: float, sampling: Sampling, spec: VideoSpec) -> npt.NDArray[np.int64]:
    """Evenly from the first frame to the last; their number from `frame_count`, else from fps.

    Source: transformers 5.23, Qwen3VLVideoProcessor.sample_frames. Differs: a `frame_count` above what the clip holds
    gives every frame once, where the original repeats frames.
    """
    count = sampling.frame_count
    if count is None:
        fps = sampling.fps if sampling.fps is not None else spec.fps
        count = count_for_fps(total, rate, fps, least=spec.min_frames, most=spec.max_frames)
    return spread_evenly(total, count)


def fit_video(frame_count: int, height: int, width: int, spec: VideoSpec) -> tuple[int, int]:
    """Source: transformers 5.23, Qwen3VLVideoProcessor.resize, `cap_pixels_per_frame` included.

    A single frame counts as a whole temporal patch; the original refuses it.
    """
    pixels = spec.pixels
    frame_count = max(frame_count, pixels.temporal_patch_size)
    max_pixels = pixels.max_pixels
    if spec.cap_pixels_per_frame:
        even_share = max_pixels // frame_count
        capped = min(spec.max_video_tokens * pixels.factor**2, even_share)
        max_pixels = frame_count * max(capped, int(pixels.min_pixels * 1.05))
    return fit_whole_video(
        frame_count,
        height,
        width,
        temporal_factor=pixels.temporal_patch_size,
        factor=pixels.factor,
        min_pixels=pixels.min_pixels,
        max_pixels=max_pixels,
    )


def layout(item: ProbedMedium, model: ModelSettings) -> ItemLayout:
    """As Qwen2-VL, but for a video's size and text."""
    laid_out = patch_layout(item, model, fit_video)
    if item.frames is None:
        return laid_out
    pair_count = laid_out.rows.group_count
    (token_count,) = laid_out.spans.span_lengths
    seconds = pair_times(item.frames.prompt_times_seconds, model.video.pixels.temporal_patch_size)
    text = video_text(seconds, laid_out.spans.text, model.vision_markers)
    surrounding = model.vision_markers if model.video_markers is VideoMarkers.REPLACE else ("", "")
    return dataclasses.replace(
        laid_out, spans=Replacement(text, (token_count // pair_count,) * pair_count, surrounding)
    )


def video_text(pair_seconds: Sequence[float], placeholder: str, vision_markers: tuple[str, str]) -> str:
    """Source: transformers 5.23, Qwen3VLProcessor.replace_video_token; 5.9 has the same text."""
    start, end = vision_markers
    return "".join(f"<{second:.1f} seconds>{start}{placeholder}{end}" for second in pair_seconds)


def pair_times(times_seconds: npt.NDArray[np.float64], temporal_patch_size: int) -> list[float]:
    """Seconds of each temporal patch: the mean of its first and last frame's, the last frame repeated as padding.

    Source: transformers 5.23, Qwen3VLProcessor._calculate_timestamps.
    """
    times = times_seconds.tolist()
    times += times[-1:] * (-len(times) % temporal_patch_size)
    return [
        (times[first] + times[first + temporal_patch_size - 1]) / 2
        for first in range(0, len(times), temporal_patch_size)
    ]


def prompt_tensors(
    prompt: ExpandedPrompt, items: Sequence[ItemPlan], model: ModelSettings
) -> dict[str, npt.NDArray[Any]]:
    """Each span is one frame pair or one image: a grid of t = 1."""
    grids = [Grid(t=1, h=grid.h, w=grid.w) for grid in merged_grids(items, model)]
    return mrope_tensors(len(prompt.token_ids), prompt.spans, [grids[item] for item in prompt.spans[:, 0].tolist()])


FAMILY = Family(
    name="qwen3_vl",
    model_types=("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "cosmos3_omni"),
    read_pixels=read_pixels,
    sample_indices=sample_indices,
    layout=layout,
    frame_writer=patch_writer,
    prompt_tensors=prompt_tensors,
    marks_frames=True,
    video_bounds=CAPPED_BOUNDS,
)
