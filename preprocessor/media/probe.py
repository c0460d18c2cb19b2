"""A walk over a video's packets: which frames there are, when each is shown, and where decoding may start.

Headers lie about counts, durations and rates; packets do not. A packet carries its presentation time without being decoded,
so nothing is decoded here (but one frame where the file may want its picture turned, see `orientation`).

Two kinds of file need more thought:

* Some say nothing about presentation: an elementary stream has no times, and an AVI only those of decoding, from which
  FFmpeg makes up presentation times that run in decode order. Where frames are reordered and the times are not, or are
  missing, packets only give the number of frames; their order comes from decoding (`IndexedClip.frame_of_packet` is empty).
* Some begin in the middle of a group. What no decoder shows (frames before the first keyframe, and those after it that
  refer back over it) is not counted.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import av
import av.container
import av.error
import numpy as np
import numpy.typing as npt

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, LimitExceeded
from preprocessor.media.clip import NO_FRAME, IndexedClip
from preprocessor.media.container import check_streams, open_video, read_packets
from preprocessor.media.orientation import may_be_turned, orientation
from preprocessor.media.packets import Entry, entry_test, hidden_test, leading_test
from preprocessor.media.sides import check_sides
from preprocessor.types.asked import OnDamage

_RIFF_SIZE_UNKNOWN = 0x7FFFFFFF  # writers that cannot seek back leave this or more
_EBML_HEAD = b"\x1a\x45\xdf\xa3"
_MKV_SEGMENT = b"\x18\x53\x80\x67"
_NO_TIMESTAMPS = 0x0080  # FFmpeg's AVFMT_NOTIMESTAMPS
_INTERLACED = range(2, 6)  # AVFieldOrder
_MAX_REORDER_FRAMES = 32  # H.264 and HEVC allow 16
_NO_TIME = -(1 << 63)  # below every presentation time: FFmpeg's own "none"


@dataclass(slots=True)
class _Walk:
    """One entry a packet, in decode order.

    Attributes:
        pts: Presentation times in the stream's units; None where the file gives none.
        is_frame: Whether a decoder shows the packet's frame.
        entries: Ordinals at which decoding may start, and how.
        first_key: Ordinal of the first packet marked as keyframe.
        is_cut: The file ends inside a packet, or cannot be read on.
    """

    pts: list[int | None] = field(default_factory=list)
    is_frame: list[bool] = field(default_factory=list)
    entries: list[tuple[int, Entry]] = field(default_factory=list)
    first_key: int | None = None
    is_cut: bool = False


def probe_file(
    data: bytes, limits: Limits, key: str, check: Callable[[], None], on_damage: OnDamage = OnDamage.FAIL
) -> IndexedClip:
    """Walk over a file that FFmpeg reads; see `video.probe_video`."""
    with open_video(data, key, limits.max_frame_pixels, check) as (container, stream):
        check_streams(container, limits, key)
        codec = stream.codec_context
        codec_name, width, height, reorders = codec.name, codec.width, codec.height, codec.has_b_frames
        if not width or not height:  # a decoder may have refused to look at a frame that is too large
            check_frame_size(*_stated_size(data, limits, key, check), limits, key)
        check_frame_size(width, height, limits, key)
        walk = _walk_packets(container, stream, limits, key, check, on_damage)
        stated = len(stream.index_entries) if "mov" in container.format.name else 0
        format_name = container.format.name
        has_no_times = bool(container.format.flags & _NO_TIMESTAMPS)
        # the average rate of a stream without times is FFmpeg's 25; its guess comes from the bitstream
        rates = (
            (stream.guessed_rate, stream.average_rate) if has_no_times else (stream.average_rate, stream.guessed_rate)
        )
        is_interlaced = codec.field_order in _INTERLACED
        rate = float(rates[0] or rates[1] or 0)
        time_base_seconds = float(stream.time_base or 0)
    frame_count = sum(walk.is_frame)
    is_truncated = walk.is_cut or stated > len(walk.pts) or _stated_bytes(data) > len(data)
    if is_truncated and on_damage is OnDamage.FAIL:
        raise CorruptMedia(
            f"{key}: the file ends early, after {frame_count} whole frames; send the complete file",
            reason="TRUNCATED_MEDIA",
            media_key=key,
        )
    if not frame_count:
        raise CorruptMedia(f"{key}: the video stream holds no frames", media_key=key)
    if not rate or not time_base_seconds:
        raise CorruptMedia(f"{key}: the video states neither a frame rate nor a time base", media_key=key)

    pts, frame_of_packet, time_base_seconds = _order_frames(walk, reorders, rate, time_base_seconds)
    check_span(float(pts[-1] - pts[0]) * time_base_seconds, limits, key)
    entry_packets, entry_frames = _entries(walk, pts, frame_of_packet)
    degrees, is_mirrored = _orientation(data, key, limits, check) if may_be_turned(data, format_name) else (0, False)
    if degrees % 180:
        width, height = height, width
    return IndexedClip(
        codec=codec_name,
        width_px=width,
        height_px=height,
        rate=rate,
        duration_seconds=frame_count / rate,
        time_base_seconds=time_base_seconds,
        pts=pts,
        rotation_degrees=degrees,
        frame_of_packet=frame_of_packet,
        entry_packets=entry_packets,
        entry_frames=entry_frames,
        is_mirrored=is_mirrored,
        is_truncated=is_truncated,
        stated_frame_count=stated,
        is_interlaced=is_interlaced,
        max_frame_pixels=limits.max_frame_pixels,
    )


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
            f"{key}: the last frame is shown {seconds:.0f} s after the first; at most {limits.max_clip_seconds} s are accepted",
            reason="VIDEO_TOO_LONG",
            media_key=key,
        )


def too_many_frames(limits: Limits, key: str) -> LimitExceeded:
    return LimitExceeded(
        f"{key}: the video holds more than the {limits.max_clip_frames} frames that are accepted",
        reason="TOO_MANY_FRAMES",
        media_key=key,
    )


def _stated_size(data: bytes, limits: Limits, key: str, check: Callable[[], None]) -> tuple[int, int]:
    """Width and height as the header has them, without a look at a frame."""
    with open_video(data, key, limits.max_frame_pixels, check, decoders=["none"]) as (_, stream):
        return stream.codec_context.width, stream.codec_context.height


def _walk_packets(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    limits: Limits,
    key: str,
    check: Callable[[], None],
    on_damage: OnDamage,
) -> _Walk:
    walk = _Walk()
    codec = stream.codec_context
    entry_of, is_hidden, is_droppable = entry_test(codec), hidden_test(codec), leading_test(codec)
    leads_before = _NO_TIME  # frames shown before this time lead the first keyframe, as long as they follow it at once
    last: av.Packet[av.VideoStream] | None = None
    indexed_key = -1
    if "mov" in container.format.name:  # its index knows a keyframe even where the packet is damaged beyond recognition
        indexed_key = next((ordinal for ordinal, entry in enumerate(stream.index_entries) if entry.is_keyframe), -1)
    try:
        for packet in read_packets(container, stream, key, check):
            ordinal, pts = len(walk.pts), packet.pts
            if ordinal >= limits.max_clip_frames:
                raise too_many_frames(limits, key)
            is_frame = not (packet.is_discard or (is_hidden is not None and is_hidden(packet)))
            if packet.is_keyframe or ordinal == indexed_key:
                if walk.first_key is None:
                    walk.first_key, leads_before = ordinal, _NO_TIME if pts is None else pts
                if (entry := entry_of(packet)) is not Entry.NONE:
                    walk.entries.append((ordinal, entry))
            elif leads_before != _NO_TIME and pts is not None:
                if pts > leads_before:
                    leads_before = _NO_TIME
                elif pts < leads_before and is_droppable(packet):
                    is_frame = False
            walk.pts.append(pts)
            walk.is_frame.append(is_frame)
            last = packet
    except CorruptMedia:
        if on_damage is OnDamage.FAIL:
            raise
        walk.is_cut = True
    if (
        last is not None and last.is_corrupt
    ):  # FFmpeg's mark for a packet that the end of the file cuts short; elsewhere the decoder is to judge
        walk.is_cut, walk.is_frame[-1] = True, False
    for ordinal in range(walk.first_key or 0):  # no decoder shows what comes before all keyframes
        walk.is_frame[ordinal] = False
    return walk


def _order_frames(
    walk: _Walk, reorders: bool, rate: float, time_base_seconds: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], float]:
    """Presentation times, `IndexedClip.frame_of_packet`, and the unit of the times in seconds."""
    packets = np.flatnonzero(walk.is_frame)
    given = [walk.pts[ordinal] for ordinal in packets.tolist()]
    counted = np.zeros(0, np.int32)
    if None in given:
        return np.arange(len(given)), counted, 1 / rate
    times = np.asarray(given, np.int64)
    order = np.argsort(times, kind="stable")
    if np.abs(order - np.arange(len(order))).max() > _MAX_REORDER_FRAMES:
        return np.arange(len(given)), counted, 1 / rate  # the clock starts anew inside the file
    if reorders and len(order) > 2 and np.array_equal(order, np.arange(len(order))):
        return times, counted, time_base_seconds
    frame_of_packet = np.full(len(walk.pts), NO_FRAME, np.int32)
    frame_of_packet[packets[order]] = np.arange(len(order))
    return times[order], frame_of_packet, time_base_seconds


def _entries(
    walk: _Walk, pts: npt.NDArray[np.int64], frame_of_packet: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`IndexedClip.entry_packets` and `entry_frames`."""
    packets, frames = [walk.first_key or 0], [0]
    frames_before = np.concatenate(([0], np.cumsum(walk.is_frame)))
    for ordinal, entry in walk.entries:
        if not len(frame_of_packet):  # frames are counted: only a closed group's first number is sure
            frame = int(frames_before[ordinal]) if entry is Entry.CLOSED else 0
        elif walk.is_frame[ordinal]:
            frame = int(frame_of_packet[ordinal])
        else:  # an edit list begins behind its keyframe
            frame = int(np.searchsorted(pts, walk.pts[ordinal] or 0))
        if frame > frames[-1]:
            packets.append(ordinal)
            frames.append(frame)
    return np.asarray(packets, np.int64), np.asarray(frames, np.int64)


def _stated_bytes(data: bytes) -> int:
    """How long the file says it is, for the containers that say so in front; 0 where it does not."""
    if data[:4] == b"RIFF" and len(data) >= 8:
        size = int(struct.unpack_from("<I", data, 4)[0])
        return size + 8 if size < _RIFF_SIZE_UNKNOWN else 0
    if data[:4] == _EBML_HEAD:
        position = data.find(_MKV_SEGMENT, 4, 256) + 4
        if position < 4 or position + 8 > len(data) or not data[position]:
            return 0
        length = 9 - data[position].bit_length()  # RFC 8794, 4: leading zero bits tell how many bytes follow
        size = int.from_bytes(data[position : position + length], "big") & ((1 << 7 * length) - 1)
        return position + length + size if size != (1 << 7 * length) - 1 else 0  # all ones: not known when written
    return 0


def _orientation(data: bytes, key: str, limits: Limits, check: Callable[[], None]) -> tuple[int, bool]:
    """As `orientation`, of the first frame that decodes; upright where none does."""
    with open_video(data, key, limits.max_frame_pixels, check) as (container, stream):
        try:
            for packet in read_packets(container, stream, key, check):
                try:
                    frames = stream.codec_context.decode(packet)
                except av.error.FFmpegError:
                    continue
                if frames:
                    return orientation(frames[0])
            frames = stream.codec_context.decode(None)
        except (CorruptMedia, av.error.FFmpegError):
            frames = []
    return orientation(frames[0]) if frames else (0, False)
