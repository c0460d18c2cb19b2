"""The first pass over a file: which frames there are, when each is shown, and the random access points.

Headers may be wrong about counts, durations and rates. A packet carries its presentation time without being decoded, so one walk
over the packets is enough for nearly every file (`walk`, `order`). If it is not, frames are decoded (`shown`): the first group
of a file that was cut out of another, or the whole of a file whose packets are not frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import av
import av.container
import av.error

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, LimitExceeded
from preprocessor.media.arriving import arrived_bytes
from preprocessor.media.clip import IndexedClip
from preprocessor.media.clock import UNSTATED, Clock, StatedEnd, clock_of, stated_end
from preprocessor.media.container import read_packets, truncated
from preprocessor.media.order import Order, by_decoding, by_places, by_times, starts_whole, with_start
from preprocessor.media.orientation import may_be_turned, orientation
from preprocessor.media.packets import REORDERED, Frames, frames_of, is_interlaced
from preprocessor.media.shown import Shown, shown_frames
from preprocessor.media.sides import check_sides
from preprocessor.media.streams import check_streams, open_video, video_streams
from preprocessor.media.truncation import ends_early
from preprocessor.media.walk import Walk, walk_packets
from preprocessor.types.request import OnDamage

_NO_TIMESTAMPS = 0x0080  # FFmpeg's AVFMT_NOTIMESTAMPS
_SIZE_NOT_READ = frozenset({"vp8", "libvpx", "theora", "av1", "libdav1d", "flv", "h263"})
"""Codecs of which FFmpeg believes the size that the container states until a frame is decoded."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Stream:
    """What one stream's header and packets say."""

    codec: str
    width: int
    height: int
    has_b_frames: bool
    is_interlaced: bool
    frames: Frames
    index: int
    walk: Walk
    stated_frame_count: int
    format_name: str
    rate: float
    stated_rate: float  # 0 where there is no average, and `rate` is a guess: transformers has no other
    time_base_seconds: float
    end: StatedEnd
    others: tuple[int, ...]


def probe_file(
    data: bytes, limits: Limits, key: str, check: Callable[[], None], on_damage: OnDamage = OnDamage.FAIL
) -> IndexedClip:
    """Walk over a file that FFmpeg reads; see `video.probe_video`."""
    is_cut = ends_early(data)
    if is_cut and on_damage is OnDamage.FAIL:
        raise truncated(key)
    stream = _read_stream(data, limits, key, check, on_damage)
    for index in stream.others:
        if stream.walk.pts:
            break
        stream = _read_stream(data, limits, key, check, on_damage, index)
    walk = stream.walk
    frame_count = sum(walk.is_frame)
    is_truncated = is_cut or walk.is_cut or stream.stated_frame_count > len(walk.pts)
    if is_truncated and on_damage is OnDamage.FAIL:
        raise truncated(key, f", after {frame_count} whole frames")
    if not frame_count:
        raise CorruptMedia(f"{key}: the video stream holds no frames", media_key=key)
    if not stream.rate or not stream.time_base_seconds:
        raise CorruptMedia(f"{key}: the video states neither a frame rate nor a time base", media_key=key)

    order, size = _order(data, stream, limits, key, check)
    if not len(order.pts):
        raise CorruptMedia(f"{key}: no frame of the video stream can be decoded", media_key=key)
    clock = _clock(stream, order, is_truncated)
    check_span(clock.duration_seconds, limits, key)
    degrees, is_mirrored, width, height = 0, False, stream.width, stream.height
    if may_be_turned(data, stream.format_name) or stream.codec in _SIZE_NOT_READ:
        frame = _first_frame(data, key, limits, check, stream.index)
        if frame is not None:
            degrees, is_mirrored = orientation(frame)
            size = (frame.width, frame.height)
    if size is not None:
        width, height = size
        check_frame_size(width, height, limits, key)
    if degrees % 180:
        width, height = height, width
    return IndexedClip(
        codec=stream.codec,
        width_px=width,
        height_px=height,
        rate=clock.rate,
        duration_seconds=clock.duration_seconds,
        time_base_seconds=order.time_base_seconds,
        pts=order.pts,
        rotation_degrees=degrees,
        frame_of_packet=order.frame_of_packet,
        random_access_packets=order.random_access_packets,
        random_access_frames=order.random_access_frames,
        stream_index=stream.index,
        is_mirrored=is_mirrored,
        is_truncated=is_truncated,
        stated_frame_count=stream.stated_frame_count,
        stated_rate=stream.stated_rate or clock.rate,
        is_interlaced=stream.is_interlaced,
        max_frame_pixels=limits.max_frame_pixels,
    )


def _read_stream(
    data: bytes,
    limits: Limits,
    key: str,
    check: Callable[[], None],
    on_damage: OnDamage,
    stream_index: int | None = None,
) -> _Stream:
    with open_video(data, key, limits.max_frame_pixels, check, stream_index=stream_index) as (container, stream):
        check_streams(container, limits, key)
        codec = stream.codec_context
        if not codec.width or not codec.height:  # a decoder may have refused to look at a frame that is too large
            check_frame_size(*_stated_size(data, limits, key, check), limits, key)
        check_frame_size(codec.width, codec.height, limits, key)
        walk = walk_packets(container, stream, limits, key, check, on_damage, arrived_bytes(data))
        has_no_times = bool(container.format.flags & _NO_TIMESTAMPS)
        # the average rate of a stream without times is FFmpeg's 25; its guess comes from the bitstream
        rates = (
            (stream.guessed_rate, stream.average_rate) if has_no_times else (stream.average_rate, stream.guessed_rate)
        )
        return _Stream(
            codec=codec.name,
            width=codec.width,
            height=codec.height,
            has_b_frames=bool(codec.has_b_frames),
            is_interlaced=is_interlaced(codec),
            frames=frames_of(codec),
            index=stream.index,
            walk=walk,
            stated_frame_count=_indexed_frames(container, stream, len(walk.pts)),
            format_name=container.format.name,
            rate=float(rates[0] or rates[1] or 0),
            stated_rate=float(rates[0] or 0),
            time_base_seconds=float(stream.time_base or 0),
            end=stated_end(container, stream),
            others=tuple(other.index for other in video_streams(container) if other.index != stream.index),
        )


def _indexed_frames(container: av.container.InputContainer, stream: av.VideoStream, packet_count: int) -> int:
    """Packets that the file's index lists; 0 if it has none. An index entry of 0 bytes is no packet."""
    if "mov" not in container.format.name:
        return 0
    entry_count = len(stream.index_entries)
    if entry_count <= packet_count:
        return entry_count
    return sum(entry.size > 0 for entry in stream.index_entries)


def _order(
    data: bytes, stream: _Stream, limits: Limits, key: str, check: Callable[[], None]
) -> tuple[Order, tuple[int, int] | None]:
    """The clip's frames, and the size of one that had to be decoded for them."""
    walk, rate, unit = stream.walk, stream.rate, stream.time_base_seconds

    def shown(packet_count: int | None = None) -> Shown:
        return shown_frames(data, key, limits.max_frame_pixels, check, stream.index, packet_count)

    size, first, is_by_packets = None, 0, stream.frames is not Frames.BY_DECODING and not walk.is_uncertain
    if is_by_packets and (stream.frames is Frames.AT_FIRST_SIGHT or not starts_whole(walk, stream.codec)):
        end = walk.keys[1] if len(walk.keys) > 1 else len(walk.pts)
        group = shown(end)
        size = group.size
        is_by_packets = group.is_one_a_packet and (stream.frames is Frames.AS_PACKETS or group.covers(walk, end))
        if is_by_packets:
            walk, first = with_start(walk, group, end)
    order = by_times(walk, first, stream.codec in REORDERED, stream.has_b_frames, rate, unit) if is_by_packets else None
    if order is not None:
        is_counted = order.time_base_seconds != unit
        return by_places(order, walk) if stream.format_name == "avi" and not is_counted else order, size
    whole = shown()
    return by_decoding(walk, whole.packets, rate, unit), whole.size


def _clock(stream: _Stream, order: Order, is_truncated: bool) -> Clock:
    end = stream.end
    if order.time_base_seconds != stream.time_base_seconds:
        end = UNSTATED  # frames are counted, and their clock is not the file's
    elif is_truncated:
        end = StatedEnd(states_stays=end.states_stays)
    walk, last = stream.walk, int(order.pts[-1])
    stays = (
        stay
        for stay, pts, is_frame in zip(walk.stays, walk.pts, walk.is_frame, strict=True)
        if is_frame and pts == last
    )
    return clock_of(order.pts, order.time_base_seconds, stream.rate, max(stays, default=0), end)


def check_frame_size(width: int, height: int, limits: Limits, key: str) -> None:
    """Raises:
    LimitExceeded: `FRAME_TOO_LARGE`, `SIDE_TOO_LONG`.
    CorruptMedia: There is no size.
    """
    if width * height > limits.max_frame_pixels:
        raise LimitExceeded(
            f"{key}: frames are {width}x{height}; at most {limits.max_frame_pixels} pixels a frame are accepted",
            reason="FRAME_TOO_LARGE",
            media_key=key,
        )
    check_sides(width, height, limits, key)
    if width <= 0 or height <= 0:
        raise CorruptMedia(f"{key}: the video states no frame size, and its first frames show none", media_key=key)


def check_span(seconds: float, limits: Limits, key: str) -> None:
    """Raises:
    LimitExceeded: `VIDEO_TOO_LONG`.
    """
    if seconds > limits.max_clip_seconds:
        raise LimitExceeded(
            f"{key}: the video lasts {seconds:.10g} s; at most {limits.max_clip_seconds} s are accepted",
            reason="VIDEO_TOO_LONG",
            media_key=key,
        )


def _stated_size(data: bytes, limits: Limits, key: str, check: Callable[[], None]) -> tuple[int, int]:
    """Width and height of the header; no frame is decoded."""
    with open_video(data, key, limits.max_frame_pixels, check, decoders=["none"]) as (_, stream):
        return stream.codec_context.width, stream.codec_context.height


def _first_frame(
    data: bytes, key: str, limits: Limits, check: Callable[[], None], stream_index: int
) -> av.VideoFrame | None:
    """The first frame that decodes; None where none does."""
    with open_video(data, key, limits.max_frame_pixels, check, stream_index=stream_index) as (container, stream):
        try:
            for packet in read_packets(container, stream, key, check):
                try:
                    frames = stream.codec_context.decode(packet)
                except av.error.FFmpegError:
                    continue
                if frames:
                    return frames[0]
            frames = stream.codec_context.decode(None)
        except (CorruptMedia, av.error.FFmpegError):
            frames = []
    return frames[0] if frames else None
