"""Duration and frame rate of a clip, from its frames' times and from what its file states.

A frame is on screen until the next one. When the last one ends, only the file can tell; each container does so in its own way,
or not at all:

| container | states |
|---|---|
| mp4, mov | the track's length, edit list included; else the sample's own duration |
| avi, mxf, ogg | the track's length |
| mkv, webm | the track's end in its tag DURATION; else the block's or the track's default duration, and the whole file's end |
| flv, asf | the whole file's end, which sound may put off |
| gif, apng | each frame's delay |
| ts, mpg, ivf, streams without a container | nothing: packets' durations are FFmpeg's guess from a rate |

If nothing is stated, the last frame stays for the clip's mean interval.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import av
import av.container
import av.stream
import numpy as np
import numpy.typing as npt

HALF_A_FRAME = 0.5
"""A frame that is off its place by more has another number."""

LEAST_FRAMES_FOR_A_GAP = 20
"""At least so many frames keep a constant rate if one is missing; a few slides, one of which stays twice as long, have none."""

_JITTER_FRAMES = 0.25  # of a frame beside a gap: by more, the rate drifts

_STATE_TRACK_LENGTH = {"mov", "avi", "mxf", "ogg"}  # FFmpeg's names of the demuxers
_STATE_FILE_END = {"matroska", "flv", "asf"}
_STATE_STAYS = {"mov", "matroska", "gif", "apng"}
_TAG_DURATION = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")  # as FFmpeg and mkvmerge write it

_LEAST_STAY_SECONDS = 0.0005  # below this a length says that the last frame's stay is not known: edit lists count in ms
_CLOCK_TICKS, _CLOCK_SECONDS = 2, 0.002  # how far off a length may be that was added up from rounded times


@dataclass(frozen=True, slots=True)
class StatedEnd:
    """Where the file says that a video track ends; in seconds, on the clock of its frames' times.

    Attributes:
        track_seconds: The track's own end; None where the file does not say, as below.
        file_seconds: The end of everything that the file holds.
        is_alone: The file holds no other picture, sound or subtitle, so its end is the track's.
        states_stays: Packets' durations are the file's own.
    """

    track_seconds: float | None = None
    file_seconds: float | None = None
    is_alone: bool = True
    states_stays: bool = False


UNSTATED = StatedEnd()
"""Of a file whose statements do not count: it is truncated, or its frames have no times."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Frames a second, and seconds from the first frame to the end of the last: frames = rate x duration."""

    rate: float
    duration_seconds: float


def stated_end(container: av.container.InputContainer, stream: av.VideoStream) -> StatedEnd:
    """What an open file says of its video's end."""
    names = set(container.format.name.split(","))
    track_seconds = file_seconds = None
    if names & _STATE_TRACK_LENGTH and stream.duration and stream.time_base:
        start = 0 if "avi" in names else stream.start_time or 0  # an AVI's frames are at the places of their packets
        track_seconds = float((start + stream.duration) * stream.time_base)
    elif "matroska" in names and (tag := _TAG_DURATION.fullmatch(stream.metadata.get("DURATION", ""))):
        track_seconds = int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    if names & _STATE_FILE_END and container.duration:
        file_seconds = container.duration / av.time_base
    others = [one for one in container.streams if one.index != stream.index and _is_presented(one)]
    return StatedEnd(track_seconds, file_seconds, not others, bool(names & _STATE_STAYS))


def clock_of(
    pts: npt.NDArray[np.int64],
    time_base_seconds: float,
    stated_rate: float,
    last_stay: int = 0,
    stated: StatedEnd = UNSTATED,
) -> Clock:
    """Rate and duration of a clip.

    Args:
        pts: The frames' times, ascending, in units of `time_base_seconds`; at least one.
        stated_rate: Average frames a second as the file states it, above 0. What the clip's own times give is rounded to its
            clock, so the stated rate goes before it where the two agree.
        last_stay: The last frame's duration as its packet has it, in the same units; 0 where it has none.
    """
    count, last_seconds = len(pts), float(pts[-1]) * time_base_seconds
    elapsed_seconds = float(pts[-1] - pts[0]) * time_base_seconds
    interval = mean_interval(elapsed_seconds, count, stated_rate)
    stay = last_stay * time_base_seconds if stated.states_stays else 0.0
    varies = places_missing((pts - pts[0]) * time_base_seconds) is None
    duration = elapsed_seconds + _stay(last_seconds, interval, varies, stay, stated)
    by_rate = count / stated_rate
    tolerance = min(max(_CLOCK_TICKS * time_base_seconds, _CLOCK_SECONDS), interval / 2)
    if abs(by_rate - duration) <= tolerance and by_rate > elapsed_seconds:
        return Clock(stated_rate, by_rate)
    return Clock(count / duration, duration)


def mean_interval(elapsed_seconds: float, count: int, rate: float) -> float:
    """Seconds from one frame to the next on average, where the last is shown `elapsed_seconds` after the first.

    By `rate`, in frames a second, where there is one frame, or one time.
    """
    return elapsed_seconds / (count - 1) if elapsed_seconds > 0 else 1 / rate


def places_missing(elapsed: npt.NDArray[np.float64]) -> int | None:
    """How many frames are missing between first and last of a constant rate, 0 or 1; None of a rate that varies.

    At a constant rate each frame is less than half a frame off its place. One place in many may be empty, for a recorder that
    drops a frame does not change its rate.

    Args:
        elapsed: Times in seconds from the first frame, ascending, float64 [n].
    """
    steps, last = len(elapsed) - 1, float(elapsed[-1])
    if last <= 0:
        return 0 if steps == 0 else None
    places = np.arange(len(elapsed))
    if np.abs(elapsed * (steps / last) - places).max() < HALF_A_FRAME:
        return 0
    off = elapsed * ((steps + 1) / last) - places  # by 0 before the gap and by 1 behind it
    is_gap = len(elapsed) >= LEAST_FRAMES_FOR_A_GAP and np.minimum(np.abs(off), np.abs(off - 1)).max() < _JITTER_FRAMES
    return 1 if is_gap else None


def _stay(last_seconds: float, interval: float, varies: bool, stay: float, stated: StatedEnd) -> float:
    """How long the last frame, shown at `last_seconds`, stays on screen, in seconds."""
    by_track = (stated.track_seconds or 0.0) - last_seconds
    if by_track > _LEAST_STAY_SECONDS:
        return by_track
    # If sound ends later than the picture, the file's end is not the picture's; it is still a better guess than the mean of
    # varying intervals.
    by_file = (stated.file_seconds or 0.0) - last_seconds
    stays = [stay, by_file] if stated.is_alone or (varies and not stay) else [stay]
    longest = max(stays)
    return longest if longest > _LEAST_STAY_SECONDS else interval


def _is_presented(stream: av.stream.Stream) -> bool:
    is_cover = bool(stream.disposition & av.stream.Disposition.attached_pic)
    return stream.type in ("video", "audio", "subtitle") and not is_cover
