"""Qwen2-VL: a video is one run of placeholders, its pixel budget counts one frame, its positions one step a frame pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.media.sampling import spread_by_steps, whole_patches
from preprocessor.models.family import Family, Model
from preprocessor.text.prompt import Replacement
from preprocessor.types.plan import ExpandedPrompt, Grid, ItemPlan
from preprocessor.types.request import Modality, Sampling
from preprocessor.vision.geometry import fit_image
from preprocessor.vision.positions import mrope_positions
from preprocessor.vision.spec import VideoSpec

# transformers 5.23, Qwen2VLVideoProcessor; fps is that of the reference implementation, which transformers leaves unset.
VIDEO_DEFAULTS = {"fps": 2, "min_frames": 4, "max_frames": 768, "max_video_tokens": 128_000}


def sample_indices(total: int, rate: float, sampling: Sampling, spec: VideoSpec) -> npt.NDArray[np.int64]:
    """Equal steps from the first frame; their number is a multiple of the temporal patch size.

    Source: transformers 5.23, Qwen2VLVideoProcessor.sample_frames. Differs: a `frame_count` above what the clip holds is cut
    to it, and a clip of one frame gives that frame, where the original raises.
    """
    patch = spec.pixels.temporal_patch_size
    frame_count = sampling.frame_count
    if frame_count is None and sampling.fps is None:  # transformers would let its own count overrule the caller's fps
        frame_count = spec.frame_count
    if frame_count is not None:
        return spread_by_steps(total, whole_patches(min(round(frame_count / patch) * patch, total), patch))
    fps = sampling.fps if sampling.fps is not None else spec.fps
    most = whole_patches(min(spec.max_frames, total), patch)
    count = min(max(total / rate * fps, spec.min_frames), most, total)
    return spread_by_steps(total, whole_patches(count, patch))


def fit_video(frame_count: int, height: int, width: int, spec: VideoSpec) -> tuple[int, int]:
    """Source: transformers 5.23, Qwen2VLVideoProcessor.resize, `cap_pixels_per_frame` included."""
    pixels = spec.pixels
    max_pixels = pixels.max_pixels
    if spec.cap_pixels_per_frame:
        whole_video = int(spec.max_video_tokens * pixels.factor * pixels.factor * 0.9)
        even_share = whole_video * pixels.temporal_patch_size // frame_count
        max_pixels = max(min(max_pixels, even_share), int(pixels.min_pixels * 1.05))
    return fit_image(height, width, factor=pixels.factor, min_pixels=pixels.min_pixels, max_pixels=max_pixels)


def replace_video(item: ItemPlan, model: Model) -> Replacement:
    return Replacement(model.placeholders.tokens[Modality.VIDEO], (item.token_count,))


def positions(prompt: ExpandedPrompt, items: Sequence[ItemPlan], model: Model) -> tuple[npt.NDArray[np.int32], int]:
    return mrope_positions(len(prompt.token_ids), prompt.spans, merged_grids(items, model))


def merged_grids(items: Sequence[ItemPlan], model: Model) -> list[Grid]:
    """Each item's grid in tokens; its spans are the items."""
    merge = model.image.merge_size
    return [Grid(t=item.grid.t, h=item.grid.h // merge, w=item.grid.w // merge) for item in items]


def no_extra_tensors(items: Sequence[ItemPlan], model: Model) -> dict[str, npt.NDArray[Any]]:
    return {}


FAMILY = Family(
    name="qwen2_vl",
    model_types=("qwen2_vl",),
    video_defaults=VIDEO_DEFAULTS,
    sample_indices=sample_indices,
    fit_video=fit_video,
    replace_video=replace_video,
    positions=positions,
    extra_tensors=no_extra_tensors,
)
