"""Which frames of a clip to use: metadata in, indices out. Pure; each policy is a plain function of ints and floats."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from preprocessor.errors import InvalidRequest
from preprocessor.types import Sampling


def check_sampling(sampling: Sampling, key: str) -> None:
    """Refuse what no clip could satisfy, before the file is looked at.

    Raises:
        InvalidRequest: `SAMPLING_CONFLICT` where fps and frame count are both given; `INVALID_SAMPLING` for a bad value.
    """
    if sampling.fps is not None and sampling.frame_count is not None:
        raise InvalidRequest(
            f"{key}: fps and frame_count are both given; choose one", reason="SAMPLING_CONFLICT", media_key=key
        )
    if sampling.fps is not None and not (math.isfinite(sampling.fps) and sampling.fps > 0):
        raise InvalidRequest(
            f"{key}: fps is {sampling.fps}; it must be a number above 0", reason="INVALID_SAMPLING", media_key=key
        )
    if sampling.frame_count is not None and sampling.frame_count < 1:
        raise InvalidRequest(
            f"{key}: frame_count is {sampling.frame_count}; it must be at least 1",
            reason="INVALID_SAMPLING",
            media_key=key,
        )


def count_for_fps(total: int, rate: float, fps: float, *, least: int, most: int) -> int:
    """Frames that `fps` a second makes of `total` frames at `rate`, within [least, most] and never more than there are.

    Source: transformers 5.23, Qwen3VLVideoProcessor.sample_frames, whose truncation toward zero this keeps.
    """
    return min(max(int(total / rate * fps), least), most, total)


def spread_evenly(total: int, count: int) -> npt.NDArray[np.int64]:
    """`count` indices from the first frame to the last, evenly spaced, rounded half to even.

    Source: transformers 5.23, Qwen3VLVideoProcessor.sample_frames. Differs: a count above `total` gives `total`, where
    the original repeats frames.
    """
    return np.linspace(0, total - 1, min(count, total)).round().astype(np.int64)
