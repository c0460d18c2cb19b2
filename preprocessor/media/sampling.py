"""Which frames of a clip to use: metadata in, indices out. Pure: numbers only, no files.

One policy layer for every model. A caller names frames explicitly (indices, times, every frame), or how many it wants (fps, a
count, or nothing); then the model family's rule spreads that many over the clip. The rule knows only a number of frames and
a rate, so it serves both bases: over frame numbers, as transformers does, or over time, where a frame stays on screen until
the next one. On a constant frame rate the two are the same; on a varying one, index x average rate names wrong moments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preprocessor.errors import InvalidRequest
from preprocessor.media.clock import HALF_A_FRAME, LEAST_FRAMES_FOR_A_GAP, mean_interval, places_missing
from preprocessor.types.request import Sampling, SamplingBasis
from preprocessor.types.source import ClipInfo, FrameChoice

Spread = Callable[[int, float], npt.NDArray[np.int64]]
"""A family's rule with the caller's wish bound to it: (frames, frames a second) → ascending indices below `frames`."""

_STATED_RATE_TOLERANCE_FRAMES = 1.01  # one, as far as a file's clock can tell


def choose_frames(clip: ClipInfo, sampling: Sampling, spread: Spread, key: str) -> FrameChoice:
    """Choose which frames to decode.

    Args:
        clip: Header facts; at least one frame.
        sampling: Checked by `sampling_checks.check_sampling`.
        spread: Used where the caller does not name frames.
        key: The caller's name for the clip, for messages.
    Raises:
        InvalidRequest: `FRAME_OUT_OF_RANGE` for an index or time beyond the clip; `NO_FRAMES_IN_RANGE` where the clip ends
            before start.
    """
    timeline = _Timeline.of(clip)
    basis = _basis(clip, timeline, sampling.basis)
    whole = _Window(0, clip.frame_count, 0.0, timeline.end)
    if sampling.indices is not None:
        return _by_index(clip, timeline, _named_indices(clip, sampling.indices, key), whole, basis)
    if sampling.times_seconds is not None:
        moments = np.asarray(sampling.times_seconds, np.float64)
        if moments[-1] >= timeline.surely_before:
            message = f"{key}: the clip ends at {_shown_end(timeline)} s; {moments[-1]:.10g} s is asked"
            raise _out_of_range(message, "times_seconds", key)
        return _by_time(clip, timeline, moments, whole, _rate_of(moments, clip.rate))
    window = _window(timeline, sampling, key)
    every = np.arange(window.first, window.stop)
    if sampling.every_frame:
        return _by_index(clip, timeline, every, window, basis)
    if basis is SamplingBasis.INDEX:
        return _by_index(clip, timeline, window.first + spread(len(every), clip.index_rate), window, basis)
    rate = len(every) / window.seconds
    places = spread(len(every), rate)
    if _takes_every(len(every), rate, len(places), sampling, spread):
        return _by_index(clip, timeline, every, window, basis)
    return _by_time(clip, timeline, window.start + places / rate, window, len(places) / window.seconds)


@dataclass(frozen=True, slots=True, eq=False)
class _Timeline:
    """When a clip's frames are on screen, in seconds from the first: each until the next one, the last until `end`.

    A frame's time may lie a little off the moment that it means, for a file's clock ticks (a millisecond in mkv) and rounds:
    half a tick, and never so much that another frame might be meant.

    Attributes:
        begins: When each frame is first shown, ascending, float64 [frame_count].
        earliest, latest: The same with the clock's error taken off and added.
        surely_before: `end` with the clock's error taken off.
    """

    begins: npt.NDArray[np.float64]
    earliest: npt.NDArray[np.float64]
    latest: npt.NDArray[np.float64]
    end: float
    surely_before: float

    @staticmethod
    def of(clip: ClipInfo) -> _Timeline:
        begins = (clip.pts - clip.pts[0]) * clip.time_base_seconds
        end = max(clip.duration_seconds, float(begins[-1]))
        errors = np.minimum(0.51 * clip.time_base_seconds, np.diff(begins, append=end, prepend=0.0) / 20)
        latest = np.maximum.accumulate(begins + errors[:-1])  # of two frames at one time, the second has no error
        return _Timeline(begins, begins - errors[:-1], latest, end, end - float(errors[-1]))

    def on_screen(self, moments: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """The frame at each of these moments; the first before it is shown, the last after the end."""
        return np.maximum(np.searchsorted(self.earliest, moments, side="right") - 1, 0).astype(np.int64)


@dataclass(frozen=True, slots=True)
class _Window:
    """The frames first to before `stop`, on screen from `start` to `end`, in seconds from the clip's first frame."""

    first: int
    stop: int
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


def _by_index(
    clip: ClipInfo, timeline: _Timeline, indices: npt.NDArray[np.int64], window: _Window, basis: SamplingBasis
) -> FrameChoice:
    """Frames by number.

    A prompt states when they are shown, within the window, where the rate varies; else number / rate as transformers does.
    """
    by_number = basis is SamplingBasis.INDEX
    rate = clip.index_rate
    return FrameChoice(
        indices=indices,
        times_seconds=clip.times_seconds[indices],
        prompt_times_seconds=indices / rate if by_number else np.maximum(timeline.begins[indices], window.start),
        sampled_fps=len(indices) / (window.stop - window.first) * rate if by_number else len(indices) / window.seconds,
        basis=basis,
    )


def _by_time(
    clip: ClipInfo, timeline: _Timeline, moments: npt.NDArray[np.float64], window: _Window, sampled_fps: float
) -> FrameChoice:
    """The frames on screen at these moments, counted in seconds from the first frame."""
    indices = np.clip(timeline.on_screen(moments), window.first, window.stop - 1)
    return FrameChoice(
        indices=indices,
        times_seconds=clip.times_seconds[indices],
        prompt_times_seconds=moments,
        sampled_fps=sampled_fps,
        basis=SamplingBasis.TIME,
    )


def _takes_every(count: int, rate: float, taken: int, sampling: Sampling, spread: Spread) -> bool:
    """Whether at least as many frames are asked as there are, so that moments would only repeat some and drop others.

    A family may take fewer than it is asked, such as whole pairs alone: would it take more of twice as many frames in the
    same time, then their number was what bound it.
    """
    asked = sampling.frame_count or 0
    return taken >= count or asked >= count or len(spread(2 * count, 2 * rate)) > taken


def _rate_of(moments: npt.NDArray[np.float64], otherwise: float) -> float:
    """How many of these moments there are a second."""
    span = float(moments[-1] - moments[0])
    return (len(moments) - 1) / span if span > 0 else otherwise


def _named_indices(clip: ClipInfo, indices: tuple[int, ...], key: str) -> npt.NDArray[np.int64]:
    if indices[-1] >= clip.frame_count:
        raise _out_of_range(
            f"{key}: the clip has {clip.frame_count} frames; index {indices[-1]} is asked", "indices", key
        )
    return np.asarray(indices, np.int64)


def _window(timeline: _Timeline, sampling: Sampling, key: str) -> _Window:
    """The frames that are on screen at any moment from start to before end."""
    count, start = len(timeline.begins), sampling.start_seconds or 0.0
    end = timeline.end if sampling.end_seconds is None else min(sampling.end_seconds, timeline.end)
    if start >= timeline.surely_before:
        raise InvalidRequest(
            f"{key}: no frame is on screen from {start:.10g} s on; the clip ends at {_shown_end(timeline)} s",
            reason="NO_FRAMES_IN_RANGE",
            field="media[].sampling.start_seconds",
            media_key=key,
        )
    # the frame on screen at start, or the first of several that begin there
    first = min(int(timeline.on_screen(np.array([start]))[0]), int(np.searchsorted(timeline.latest, start)))
    stop = count if sampling.end_seconds is None else int(np.searchsorted(timeline.latest, end))
    stop = max(stop, first + 1)
    frames_end = timeline.end if stop == count else float(timeline.begins[stop])
    start = max(start, float(timeline.begins[first]))
    end = min(end, frames_end)
    return _Window(first, stop, start, end if end > start else frames_end)


def _basis(clip: ClipInfo, timeline: _Timeline, asked: SamplingBasis) -> SamplingBasis:
    """INDEX where the clip's own times are those of a constant rate, and the stated average names no more than a neighbour.

    The average may be a frame off: for a frame that was dropped, one that the file hides, or a last one that it does not say
    the length of. A last frame that stays for longer is a rate that varies.
    """
    if asked is not SamplingBasis.AUTO:
        return asked
    begins, count = timeline.begins, clip.frame_count
    missing = places_missing(begins)
    may_end_late = missing == 0 and count >= LEAST_FRAMES_FOR_A_GAP  # the last frame may be the one that was dropped
    stay_frames = (timeline.end - begins[-1]) / mean_interval(float(begins[-1]), count, clip.index_rate)
    off_frames = np.abs(begins * clip.index_rate - np.arange(count)).max()
    is_constant = (
        missing is not None
        and stay_frames < 1 + may_end_late + HALF_A_FRAME
        and off_frames < _STATED_RATE_TOLERANCE_FRAMES
    )
    return SamplingBasis.INDEX if is_constant else SamplingBasis.TIME


def _shown_end(timeline: _Timeline) -> str:
    """The end for a message, rounded down: what is asked beyond it is never below what is said."""
    return f"{math.floor(timeline.end * 1000 + 1e-6) / 1000:.3f}"


def _out_of_range(message: str, name: str, key: str) -> InvalidRequest:
    return InvalidRequest(message, reason="FRAME_OUT_OF_RANGE", field=f"media[].sampling.{name}", media_key=key)
