"""What a packet's first bytes tell: whether decoding may start at it, and whether its frame is ever shown.

A container's keyframe mark is not enough. FFmpeg marks an H.264 packet with any recovery point as key, and after one a
decoder may need many frames until the picture is right (intra refresh) or exact. So H.264 is entered at IDR pictures alone
and HEVC at IRAP pictures, read from the bitstream itself. Pictures that follow an HEVC entry in the file and precede it on
screen (open groups) need the group before; `IndexedClip.entry_frames` says from which frame on an entry is enough.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import av

_H264_IDR = 5
_HEVC_RASL = (8, 9)
_HEVC_IRAP = range(16, 22)
_HEVC_IDR = (19, 20)
_VP8_SHOW_FRAME = 0x10  # RFC 6386, 9.1

_KEYFRAME_IS_ENTRY = frozenset({"vp8", "vp9", "libdav1d", "av1", "mpeg4", "mpeg1video", "mpeg2video"})
"""Codecs whose keyframes refer to nothing before, nor does any frame shown after them."""


if TYPE_CHECKING:  # PyAV's class is generic only to type checkers
    Packet = av.Packet[av.VideoStream]
else:
    Packet = av.Packet
PacketTest = Callable[[Packet], bool]


class Entry(enum.Enum):
    """How decoding may start at a packet."""

    NONE = 0
    OPEN = 1  # frames behind it in the file may be shown before it, and need what comes before
    CLOSED = 2  # frames behind it in the file are shown after everything before it in the file


def entry_test(codec: av.VideoCodecContext) -> Callable[[Packet], Entry]:
    """How decoding may start at a packet marked as key. A hesitant answer costs time, never pixels."""
    if codec.codec.intra_only:
        return lambda _: Entry.CLOSED
    if codec.name in _KEYFRAME_IS_ENTRY:
        return lambda _: Entry.OPEN
    length_size = _nal_length_size(codec)

    def h264_entry(packet: Packet) -> Entry:
        is_idr = any(head & 0x1F == _H264_IDR for head in _nal_heads(packet, length_size))
        return Entry.CLOSED if is_idr else Entry.NONE

    def hevc_entry(packet: Packet) -> Entry:
        kind = next(
            (kind for head in _nal_heads(packet, length_size) if (kind := head >> 1 & 0x3F) in _HEVC_IRAP), None
        )
        if kind is None:
            return Entry.NONE
        return Entry.CLOSED if kind in _HEVC_IDR else Entry.OPEN

    return {"h264": h264_entry, "hevc": hevc_entry}.get(codec.name, lambda _: Entry.NONE)


def leading_test(codec: av.VideoCodecContext) -> PacketTest:
    """Whether a frame that follows the file's first keyframe and is shown before it refers to what is not in the file.

    No decoder shows such a frame. HEVC names them; in other codecs every such frame is one.
    """
    if codec.name != "hevc":
        return lambda _: True
    length_size = _nal_length_size(codec)
    return lambda packet: any(head >> 1 & 0x3F in _HEVC_RASL for head in _nal_heads(packet, length_size))


def hidden_test(codec: av.VideoCodecContext) -> PacketTest | None:
    """Whether a packet's frame is only there for others to refer to. VP8 alone keeps those apart; None elsewhere."""
    if codec.name not in ("vp8", "libvpx"):
        return None
    return lambda packet: not memoryview(packet)[0] & _VP8_SHOW_FRAME


def reference_test(codec: av.VideoCodecContext) -> PacketTest:
    """Whether other frames may refer to a packet's frame. True where it cannot be told cheaply."""
    length_size = _nal_length_size(codec)
    if codec.name == "h264":  # nal_ref_idc of its slices

        def is_referenced(packet: Packet) -> bool:
            slices = [head for head in _nal_heads(packet, length_size) if 1 <= head & 0x1F <= 5]
            return not slices or any(head & 0x60 for head in slices)  # none: damaged, so it could have been anything

        return is_referenced
    return lambda _: not codec.codec.intra_only


def _nal_length_size(codec: av.VideoCodecContext) -> int:
    """Bytes of the length before each NAL unit; 0 where start codes part them. ISO 14496-15, 5.3.3.1 and 8.3.3.1."""
    extradata = codec.extradata or b""
    position = 4 if codec.name == "h264" else 21
    if len(extradata) <= position or extradata[0] != 1:
        return 0
    return (extradata[position] & 3) + 1


def _nal_heads(packet: Packet, length_size: int) -> Iterator[int]:
    """The first byte of each NAL unit."""
    data = memoryview(packet)
    position = 0
    if length_size:
        while position + length_size < len(data):
            yield data[position + length_size]
            position += length_size + int.from_bytes(data[position : position + length_size], "big")
        return
    stream = bytes(data)
    while (position := stream.find(b"\0\0\1", position) + 3) > 2 and position < len(stream):
        yield stream[position]
