"""What families' rules of sampling are made of: how many frames to take, and which ones of a number of frames.

Pure functions of whole numbers and rates: each names the processor of transformers whose rounding it keeps.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from preprocessor.types.request import Sampling


def count_for_fps(total: int, rate: float, fps: float, *, least: int, most: int) -> int:
    """Frames that `fps` a second makes of `total` frames at `rate`, within [least, most] and never more than there are.

    Source: transformers 5.23, Qwen3VLVideoProcessor.sample_frames, whose truncation toward zero this keeps.
    """
    return min(max(int(min(total / rate * fps, most)), least), most, total)


def count_asked(total: int, rate: float, sampling: Sampling, own: int | None) -> int:
    """Frames to take of `total` at `rate` a second: the caller's number, or what its fps makes of the clip, else the model's own.

    Args:
        own: None where the model takes every frame.
    Returns:
        At least 1 and at most `total`.
    Source: transformers 5.23, video_utils.default_sample_indices_fn, whose truncation toward zero this keeps.
    """
    count = sampling.frame_count
    if count is None and sampling.fps is not None:
        count = int(min(total / rate * sampling.fps, total))
    if count is None:
        count = total if own is None else own
    return min(max(count, 1), total)


def spread_evenly(total: int, count: int) -> npt.NDArray[np.int64]:
    """`count` indices from the first frame to the last, evenly spaced, rounded half to even.

    Source: transformers 5.23, Qwen3VLVideoProcessor.sample_frames. Differs: a count above `total` gives `total`, where
    the original repeats frames.
    """
    return np.linspace(0, total - 1, min(count, total)).round().astype(np.int64)


def spread_by_steps(total: int, count: int) -> npt.NDArray[np.int64]:
    """`count` indices in equal steps from the first frame, each rounded down; the last step ends before the last frame.

    Source: transformers 5.23, Qwen2VLVideoProcessor.sample_frames; torch's arange itself, whose rounding is part of it.
    """
    indices: npt.NDArray[np.int64] = torch.arange(0, total, total / count).int().numpy().astype(np.int64)
    return indices[:count]


def spread_from_start(total: int, count: int) -> npt.NDArray[np.int64]:
    """`count` indices in equal steps from the first frame, each rounded down in whole numbers.

    Source: transformers 5.23, video_utils.default_sample_indices_fn. Differs: a count above `total` gives `total`, where the
    original raises.
    """
    count = min(count, total)
    return np.arange(count, dtype=np.int64) * total // count


def whole_patches(count: float, temporal_patch_size: int) -> int:
    """The largest multiple of `temporal_patch_size` that is not above `count`; one frame stays one."""
    return max(math.floor(count / temporal_patch_size) * temporal_patch_size, 1)
