"""Which frames of a clip to use: metadata in, indices out. Pure: numbers only, no files.

One policy layer for every model. A caller names frames himself (indices, times, every frame), or how many he wants (fps, a
count, or nothing); then the model family's rule spreads that many over the clip. The rule knows only a number of frames and
a rate, so it serves both bases: over frame numbers, as transformers does, or over time, where a frame stays on screen until
the next one. On a constant frame rate the two are the same; on a varying one, index x average rate names wrong moments.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from preprocessor.errors import InvalidRequest
from preprocessor.types.asked import Sampling, SamplingBasis
from preprocessor.types.found import ClipInfo, FrameChoice

Spread = Callable[[int, float], npt.NDArray[np.int64]]
"""A family's rule with the caller's wish bound to it: (frames, frames a second) → ascending indices below `frames`."""

# Half a frame off its place, and a frame number names another frame.
_CONSTANT_RATE_TOLERANCE_FRAMES = 0.5


def check_sampling(sampling: Sampling, key: str) -> None:
    """Refuse what no clip could satisfy, before the file is looked at.

    Raises:
        InvalidRequest: `SAMPLING_CONFLICT` where several ways are asked at once; `INVALID_SAMPLING` for a bad value.
    """
    ways = {
        "fps": sampling.fps is not None,
        "frame_count": sampling.frame_count is not None,
        "indices": sampling.indices is not None,
        "times_seconds": sampling.times_seconds is not None,
        "every_frame": sampling.every_frame,
    }
    asked = [way for way, is_asked in ways.items() if is_asked]
    if len(asked) > 1:
        raise InvalidRequest(
            f"{key}: {' and '.join(asked)} are given together; choose one", reason="SAMPLING_CONFLICT", media_key=key
        )
    bounds = (sampling.start_seconds, sampling.end_seconds)
    if (sampling.indices is not None or sampling.times_seconds is not None) and bounds != (None, None):
        raise InvalidRequest(
            f"{key}: {asked[0]} name the frames; start_seconds and end_seconds do not go with them",
            reason="SAMPLING_CONFLICT",
            media_key=key,
        )
    for name, value in (("fps", sampling.fps), ("frame_count", sampling.frame_count)):
        _require(value is None or (math.isfinite(value) and value > 0), name, value, "a number above 0", key)
    for name, value in zip(("start_seconds", "end_seconds"), bounds, strict=True):
        _require(value is None or (math.isfinite(value) and value >= 0), name, value, "a number of at least 0", key)
    start, end = bounds
    _require(start is None or end is None or start < end, "end_seconds", end, f"more than start_seconds ({start})", key)
    if sampling.indices is not None:
        is_ascending = all(a <= b for a, b in itertools.pairwise(sampling.indices))
        is_sound = bool(sampling.indices) and sampling.indices[0] >= 0 and is_ascending
        _require(is_sound, "indices", _shown(sampling.indices), "at least one, ascending, from 0", key)
    if sampling.times_seconds is not None:
        times = sampling.times_seconds
        is_ascending = all(a <= b for a, b in itertools.pairwise(times))
        is_sound = bool(times) and all(map(math.isfinite, times)) and times[0] >= 0 and is_ascending
        _require(is_sound, "times_seconds", _shown(times), "at least one, ascending, from 0", key)


def choose_frames(clip: ClipInfo, sampling: Sampling, spread: Spread, key: str) -> FrameChoice:
    """Choose which frames to decode.

    Args:
        clip: Header facts; at least one frame.
        sampling: Checked by `check_sampling`.
        spread: Used where the caller does not name frames.
        key: The caller's name for the clip, for messages.
    Raises:
        InvalidRequest: `FRAME_OUT_OF_RANGE` for an index or time beyond the clip; `NO_FRAMES_IN_RANGE` where no frame is
            shown between start and end.
    """
    elapsed = (clip.pts - clip.pts[0]) * clip.time_base_seconds
    end_seconds = float(elapsed[-1]) + _mean_interval(clip, elapsed)
    basis = _basis(clip, elapsed, sampling.basis)
    if sampling.indices is not None:
        return _by_index(clip, elapsed, _named_indices(clip, sampling.indices, key), clip.frame_count, basis)
    if sampling.times_seconds is not None:
        moments = np.asarray(sampling.times_seconds, np.float64)
        if moments[-1] >= end_seconds:
            raise _out_of_range(f"{key}: the clip ends at {end_seconds:.3f} s; {moments[-1]:g} s is asked", key)
        return _by_time(clip, elapsed, moments, 0, clip.frame_count, _rate_of(moments, clip.rate))
    first, last = _window(clip, elapsed, sampling, key)
    if sampling.every_frame:
        return _by_index(clip, elapsed, np.arange(first, last), last - first, basis)
    if basis is SamplingBasis.INDEX:
        return _by_index(clip, elapsed, first + spread(last - first, clip.rate), last - first, basis)
    window_seconds = (end_seconds if last == clip.frame_count else float(elapsed[last])) - float(elapsed[first])
    rate = (last - first) / window_seconds
    moments = elapsed[first] + spread(last - first, rate) / rate
    return _by_time(clip, elapsed, moments, first, last, len(moments) / window_seconds)


def count_for_fps(total: int, rate: float, fps: float, *, least: int, most: int) -> int:
    """Frames that `fps` a second makes of `total` frames at `rate`, within [least, most] and never more than there are.

    Source: transformers 5.23, Qwen3VLVideoProcessor.sample_frames, whose truncation toward zero this keeps.
    """
    return min(max(int(min(total / rate * fps, most)), least), most, total)


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


def whole_patches(count: float, temporal_patch_size: int) -> int:
    """The largest multiple of `temporal_patch_size` that is not above `count`; one frame stays one."""
    return max(math.floor(count / temporal_patch_size) * temporal_patch_size, 1)


def _by_index(
    clip: ClipInfo,
    elapsed: npt.NDArray[np.float64],
    indices: npt.NDArray[np.int64],
    window_count: int,
    basis: SamplingBasis,
) -> FrameChoice:
    """Frames by number; a prompt states when they are shown where the rate varies, else number / rate as transformers does."""
    return FrameChoice(
        indices=indices,
        times_seconds=clip.times_seconds[indices],
        prompt_times_seconds=indices / clip.rate if basis is SamplingBasis.INDEX else elapsed[indices],
        sampled_fps=len(indices) / window_count * clip.rate,
        basis=basis,
    )


def _by_time(
    clip: ClipInfo,
    elapsed: npt.NDArray[np.float64],
    moments: npt.NDArray[np.float64],
    first: int,
    last: int,
    sampled_fps: float,
) -> FrameChoice:
    """The frames on screen at these moments, counted in seconds from the first frame."""
    on_screen = np.searchsorted(elapsed, moments + _clock_error(clip, elapsed), side="right") - 1
    indices = np.clip(on_screen, first, last - 1).astype(np.int64)
    return FrameChoice(
        indices=indices,
        times_seconds=clip.times_seconds[indices],
        prompt_times_seconds=moments,
        sampled_fps=sampled_fps,
        basis=SamplingBasis.TIME,
    )


def _rate_of(moments: npt.NDArray[np.float64], otherwise: float) -> float:
    """How many of these moments there are a second."""
    span = float(moments[-1] - moments[0])
    return (len(moments) - 1) / span if span > 0 else otherwise


def _named_indices(clip: ClipInfo, indices: tuple[int, ...], key: str) -> npt.NDArray[np.int64]:
    if indices[-1] >= clip.frame_count:
        raise _out_of_range(f"{key}: the clip has {clip.frame_count} frames; index {indices[-1]} is asked", key)
    return np.asarray(indices, np.int64)


def _window(clip: ClipInfo, elapsed: npt.NDArray[np.float64], sampling: Sampling, key: str) -> tuple[int, int]:
    """First frame shown at or after start, and first at or after end."""
    error = _clock_error(clip, elapsed)
    start, end = sampling.start_seconds, sampling.end_seconds
    first = 0 if start is None else int(np.searchsorted(elapsed, start - error))
    last = len(elapsed) if end is None else int(np.searchsorted(elapsed, end - error))
    if first >= last:
        raise InvalidRequest(
            f"{key}: no frame is shown from {sampling.start_seconds or 0:g} s to "
            f"{'the end' if sampling.end_seconds is None else f'{sampling.end_seconds:g} s'}; "
            f"the last one is at {elapsed[-1]:.3f} s",
            reason="NO_FRAMES_IN_RANGE",
            media_key=key,
        )
    return first, last


def _basis(clip: ClipInfo, elapsed: npt.NDArray[np.float64], asked: SamplingBasis) -> SamplingBasis:
    if asked is not SamplingBasis.AUTO:
        return asked
    off_frames = np.abs(elapsed * clip.rate - np.arange(clip.frame_count)).max()
    return SamplingBasis.INDEX if off_frames < _CONSTANT_RATE_TOLERANCE_FRAMES else SamplingBasis.TIME


def _mean_interval(clip: ClipInfo, elapsed: npt.NDArray[np.float64]) -> float:
    """Seconds from one frame to the next, on average; what the last frame is taken to stay on screen."""
    return float(elapsed[-1]) / (clip.frame_count - 1) if elapsed[-1] > 0 else 1 / clip.rate


def _clock_error(clip: ClipInfo, elapsed: npt.NDArray[np.float64]) -> float:
    """How far a frame's time may lie from the moment that it means: a file's clock ticks (a millisecond in mkv) and rounds.

    Half a tick, and never so much that another frame might be meant.
    """
    return min(0.51 * clip.time_base_seconds, _mean_interval(clip, elapsed) / 20)


def _require(holds: bool, name: str, value: object, accepted: str, key: str) -> None:
    if not holds:
        raise InvalidRequest(f"{key}: {name} is {value}; give {accepted}", reason="INVALID_SAMPLING", media_key=key)


def _out_of_range(message: str, key: str) -> InvalidRequest:
    return InvalidRequest(message, reason="FRAME_OUT_OF_RANGE", media_key=key)


def _shown(values: tuple[object, ...], most: int = 8) -> str:
    """A list for a message, cut where it is long."""
    return ", ".join(map(str, values[:most])) + (", …" if len(values) > most else "") or "empty"
