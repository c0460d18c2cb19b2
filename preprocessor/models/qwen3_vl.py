"""Qwen3-VL, dense and mixture of experts.

A video is written frame pair by frame pair, each between vision markers behind the time at which it is shown:
`<1.2 seconds><|vision_start|>…<|vision_end|>`. Positions count every pair as an image of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from preprocessor.media.sampling import count_for_fps, spread_evenly
from preprocessor.models.family import Family, Model
from preprocessor.text.prompt import Replacement
from preprocessor.types import ClipInfo, ExpandedPrompt, Grid, ItemPlan, Modality, Sampling
from preprocessor.vision.geometry import fit_image, fit_video
from preprocessor.vision.positions import mrope_positions
from preprocessor.vision.spec import PixelSpec, VideoSpec

_VISION_START, _VISION_END = "<|vision_start|>", "<|vision_end|>"


def choose_frames(clip: ClipInfo, sampling: Sampling, spec: VideoSpec) -> npt.NDArray[np.int64]:
    """Frames spread evenly from first to last; their number from `frame_count`, else from fps.

    Source: transformers 5.23, Qwen3VLVideoProcessor.sample_frames. Differs: a `frame_count` above what the clip holds
    gives every frame once, where the original repeats frames.
    """
    count = sampling.frame_count
    if count is None:
        fps = sampling.fps if sampling.fps is not None else spec.fps
        count = count_for_fps(clip.frame_count, clip.rate, fps, least=spec.min_frames, most=spec.max_frames)
    return spread_evenly(clip.frame_count, count)


def resized_image(height: int, width: int, spec: PixelSpec) -> tuple[int, int]:
    return fit_image(height, width, factor=spec.factor, min_pixels=spec.min_pixels, max_pixels=spec.max_pixels)


def resized_video(frame_count: int, height: int, width: int, spec: VideoSpec) -> tuple[int, int]:
    """Source: transformers 5.23, Qwen3VLVideoProcessor.resize, `cap_pixels_per_frame` included.

    A single frame counts as a whole temporal patch; the original refuses it.
    """
    pixels = spec.pixels
    frame_count = max(frame_count, pixels.temporal_patch_size)
    max_pixels = pixels.max_pixels
    if spec.frame_token_cap is not None:
        even_share = max_pixels // frame_count
        capped = min(spec.frame_token_cap * pixels.factor**2, even_share)
        max_pixels = frame_count * max(capped, int(pixels.min_pixels * 1.05))
    return fit_video(
        frame_count,
        height,
        width,
        temporal_factor=pixels.temporal_patch_size,
        factor=pixels.factor,
        min_pixels=pixels.min_pixels,
        max_pixels=max_pixels,
    )


def replace_image(item: ItemPlan, model: Model) -> Replacement:
    return Replacement(model.placeholders.tokens[Modality.IMAGE], (item.token_count,))


def replace_video(item: ItemPlan, model: Model) -> Replacement:
    """Timestamps are index / average rate, as transformers computes them, not presentation times.

    A template's own vision markers stay around the whole video: transformers 5.23 replaces the placeholder alone.
    """
    assert isinstance(item.source, ClipInfo) and item.frames is not None
    pad = model.placeholders.tokens[Modality.VIDEO]
    seconds = pair_times(item.frames.indices, item.source.rate, model.video.pixels.temporal_patch_size)
    text = "".join(f"<{second:.1f} seconds>{_VISION_START}{pad}{_VISION_END}" for second in seconds)
    return Replacement(text, (item.token_count // item.grid.t,) * item.grid.t)


def pair_times(indices: npt.NDArray[np.int64], rate: float, temporal_patch_size: int) -> list[float]:
    """Seconds of each temporal patch: the mean of its first and last frame's, the last frame repeated as padding.

    Source: transformers 5.23, Qwen3VLProcessor._calculate_timestamps.
    """
    times = [index / rate for index in indices.tolist()]
    times += times[-1:] * (-len(times) % temporal_patch_size)
    return [
        (times[first] + times[first + temporal_patch_size - 1]) / 2
        for first in range(0, len(times), temporal_patch_size)
    ]


def positions(prompt: ExpandedPrompt, items: Sequence[ItemPlan], model: Model) -> tuple[npt.NDArray[np.int32], int]:
    """Each span is one frame pair or one image: a grid of t = 1."""
    merge = model.image.merge_size
    grids = [Grid(t=1, h=items[i].grid.h // merge, w=items[i].grid.w // merge) for i in prompt.spans[:, 0].tolist()]
    return mrope_positions(len(prompt.token_ids), prompt.spans, grids)


FAMILY = Family(
    name="qwen3_vl",
    model_types=("qwen3_vl", "qwen3_vl_moe"),
    choose_frames=choose_frames,
    fit_image=resized_image,
    fit_video=resized_video,
    replace_image=replace_image,
    replace_video=replace_video,
    positions=positions,
)
