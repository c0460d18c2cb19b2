"""From a walk over packets to a clip's frames: which there are, in which order and at which times. Pure: no files.

A clip's frames are what a full decode shows, in its order. Presentation times give that order as long as the clock does not
restart. Decoding times that go backwards mean that it did (joined transport streams, for example): the frames that follow then
come after all before, and their times are moved accordingly.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from preprocessor.media.bitstream import TYPED, PictureType
from preprocessor.media.clip import NO_FRAME
from preprocessor.media.packets import RandomAccess
from preprocessor.media.shown import Shown
from preprocessor.media.walk import Walk

_MAX_REORDER_FRAMES = 32  # H.264 and HEVC allow 16


@dataclass(frozen=True, slots=True, eq=False)
class Order:
    """The frames of a clip.

    Attributes:
        pts: int64 [frame_count], ascending, in units of `time_base_seconds`.
        frame_of_packet, random_access_packets, random_access_frames: As of `IndexedClip`.
    """

    pts: npt.NDArray[np.int64]
    time_base_seconds: float
    random_access_packets: npt.NDArray[np.int64]
    random_access_frames: npt.NDArray[np.int64]
    frame_of_packet: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))


def starts_whole(walk: Walk, codec: str) -> bool:
    """Whether a decoder shows every frame of the first group, as far as packets tell."""
    if codec in TYPED:  # of these a decoder leaves out none but B-pictures that come before a second other picture
        return walk.types[0] is PictureType.I and PictureType.B not in walk.types[1:2]
    return walk.starts_whole


def with_start(walk: Walk, group: Shown, end: int) -> tuple[Walk, int]:
    """The walk with what a decoder showed of the first `end` packets, and at which of them it begins to.

    A packet behind the keyframe that cannot be decoded stays a frame: that is damage.
    """
    first_key = walk.keys[0] if walk.keys else 0
    shown = set(group.packets) | {ordinal for ordinal in group.failed if ordinal > first_key}
    is_frame = [is_frame and ordinal in shown for ordinal, is_frame in enumerate(walk.is_frame[:end])]
    first = 0 if any(is_frame[:first_key]) else first_key
    return dataclasses.replace(walk, is_frame=is_frame + walk.is_frame[end:]), first


def by_times(walk: Walk, first: int, reordered: bool, has_b_frames: bool, rate: float, unit: float) -> Order | None:
    """The order by presentation times, or by counting where there are none; None where only decoding tells.

    Args:
        first: Ordinal of the packet at which a decoder begins.
        reordered: Whether the codec can show frames in another order than that of their packets.
        has_b_frames: Whether this stream says that it does.
        rate: Frames a second, for frames without times.
        unit: Seconds of a tick of the packets' times.
    """
    packets = np.flatnonzero(walk.is_frame)
    given = [walk.pts[ordinal] for ordinal in packets.tolist()]
    if None in given or not given:
        return _counted(walk, first, np.arange(len(given)), 1 / rate)
    times = np.asarray(given, np.int64)
    if _is_cut_inside(walk, times):
        return None
    if reordered:
        closed = [ordinal for ordinal, access in walk.random_access_points if access is RandomAccess.CLOSED]
        is_closed = np.isin(packets, closed)
        starts = _clock_starts([walk.dts[ordinal] for ordinal in packets.tolist()], times, is_closed)
        if not is_closed[starts].all():
            return None  # only the decoder tells how it shows two parts that do not join at a closed group
    else:
        starts = _falls(times)
    runs = _runs(starts, times)
    order = np.concatenate([start + np.argsort(times[start:stop], kind="stable") for start, stop in runs])
    if walk.types:
        times = np.concatenate([np.sort(times[start:stop]) for start, stop in runs])
        by_type = _by_type(walk.types)  # of all packets: hidden ones are decoded, too
        order = np.searchsorted(packets, by_type[np.isin(by_type, packets)])
    elif np.abs(order - np.arange(len(order))).max() > _MAX_REORDER_FRAMES:
        return None
    else:
        times = times[order]
        if has_b_frames and len(order) > 2 and np.array_equal(order, np.arange(len(order))):
            # Decoding times in place of presentation times, as an AVI has them.
            return _counted(walk, first, _moved(times, starts), unit)
        if reordered and has_b_frames and any((np.diff(times[start:stop]) == 0).any() for start, stop in runs):
            return None  # only the decoder tells the order of two frames with one time
    times = _moved(times, starts)
    frame_of_packet = np.full(len(walk.pts), NO_FRAME, np.int32)
    frame_of_packet[packets[order]] = np.arange(len(order))
    return Order(times, unit, *_timed_access_points(walk, first, times, frame_of_packet), frame_of_packet)


def _is_cut_inside(walk: Walk, times: npt.NDArray[np.int64]) -> bool:
    """Whether frames are hidden between others that are shown: edit lists of several parts join what does not follow."""
    first, last = int(times.min()), int(times.max())
    return any((time := walk.pts[ordinal]) is not None and first < time < last for ordinal in walk.discarded)


def _by_type(types: list[PictureType]) -> npt.NDArray[np.int64]:
    """Display order of pictures by their types: a B-picture at once, any other when the next that is no B-picture comes.

    ISO 13818-2, 6.1.1.11; ISO 14496-2 alike.
    """
    order: list[int] = []
    held: int | None = None
    for place, kind in enumerate(types):
        if kind is PictureType.B:
            order.append(place)
            continue
        if held is not None:
            order.append(held)
        held = place
    return np.asarray(order if held is None else [*order, held], np.int64)


def by_places(order: Order, walk: Walk) -> Order:
    """The same frames at the places that their packets take in the file, which are the only times an AVI has.

    FFmpeg derives presentation times from later packets, and is wrong by the duration of a frame that stays longer.
    """
    places = [time for time, is_frame in zip(walk.dts, walk.is_frame, strict=True) if is_frame and time is not None]
    if len(places) != len(order.pts):
        return order
    return dataclasses.replace(order, pts=np.sort(np.asarray(places, np.int64)))


def by_decoding(walk: Walk, shown: tuple[int, ...], rate: float, unit: float) -> Order:
    """The order in which a decoder gave the frames; `shown` names their packets.

    Times are those of the packets, in ascending order: a packet that holds two frames states one time for both, and an empty
    one behind it the other.
    """
    given = [walk.pts[ordinal] if ordinal >= 0 else None for ordinal in shown]
    times = np.asarray([time for time in given if time is not None], np.int64)
    if len(times) == len(given):
        clock = np.asarray([time for time in walk.dts if time is not None], np.int64)
        times = _moved(times, _falls(times)) if len(_falls(clock)) else np.sort(times)
    if len(times) < len(given) or (np.diff(times) < 0).any():
        times, unit = np.arange(len(given)), 1 / rate
    return Order(times, unit, np.zeros(1, np.int64), np.zeros(1, np.int64))


def _clock_starts(dts: list[int | None], pts: npt.NDArray[np.int64], is_closed: npt.NDArray[np.bool_]) -> list[int]:
    """Places in decode order at which the clock starts anew.

    Either decoding times go backwards, or a closed group begins before something is shown that comes before it in the file:
    not every container states decoding times.
    """
    known = np.flatnonzero([time is not None for time in dts])
    falls = {int(known[fall]) for fall in _falls(np.array([dts[place] for place in known], np.int64))}
    latest = np.maximum.accumulate(pts)  # shown so far, in the run
    starts: list[int] = []
    for place in sorted(falls | set(np.flatnonzero(is_closed).tolist())):
        if place in falls or (place > 0 and pts[place] < latest[place - 1]):
            starts.append(place)
            latest[place:] = np.maximum.accumulate(pts[place:])
    return starts


def _falls(times: npt.NDArray[np.int64]) -> list[int]:
    """Places whose time is before that of the place in front."""
    falls: list[int] = (np.flatnonzero(np.diff(times) < 0) + 1).tolist()
    return falls


def _runs(starts: list[int], times: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    return list(itertools.pairwise([0, *starts, len(times)]))


def _moved(times: npt.NDArray[np.int64], starts: list[int]) -> npt.NDArray[np.int64]:
    """Times of runs in a row, each run moved to begin one usual interval after the last frame before it."""
    if not starts:
        return times
    steps = np.diff(times)
    usual = int(np.median(steps[steps > 0])) if (steps > 0).any() else 1
    moved = times.copy()
    for start, stop in _runs(starts, times)[1:]:
        moved[start:stop] += moved[start - 1] + usual - times[start]
    return moved


def _counted(walk: Walk, first: int, times: npt.NDArray[np.int64], unit: float) -> Order:
    """Frames numbered as they are decoded: only the number of a closed group's first is known before."""
    frames_before = np.concatenate(([0], np.cumsum(walk.is_frame)))
    packets, frames = [first], [0]
    for ordinal, access in walk.random_access_points:
        if access is RandomAccess.CLOSED and ordinal > packets[-1] and frames_before[ordinal] > frames[-1]:
            packets.append(ordinal)
            frames.append(int(frames_before[ordinal]))
    return Order(times, unit, np.asarray(packets, np.int64), np.asarray(frames, np.int64))


def _timed_access_points(
    walk: Walk, first: int, pts: npt.NDArray[np.int64], frame_of_packet: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`IndexedClip.random_access_packets` and `random_access_frames`."""
    packets, frames = [first], [0]
    for ordinal, _ in walk.random_access_points:
        frame = int(frame_of_packet[ordinal])
        if frame == NO_FRAME:  # an edit list begins behind its keyframe
            frame = int(np.searchsorted(pts, walk.pts[ordinal] or 0))
        if ordinal > packets[-1] and frame > frames[-1]:
            packets.append(ordinal)
            frames.append(frame)
    return np.asarray(packets, np.int64), np.asarray(frames, np.int64)
