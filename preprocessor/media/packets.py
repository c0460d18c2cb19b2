"""What a packet's bytes tell: whether it is a random access point, whether it gives exactly one frame, whether others need it.

A container's keyframe flag is not enough. FFmpeg flags an H.264 packet with any recovery point as key, and after one a
decoder may need many frames until the picture is correct (intra refresh) or exact. So the random access points of H.264 are
IDR pictures, those of HEVC are IRAP pictures, both read from the bitstream. In an open group pictures follow the random access
point in the file and precede it on screen: they need the group before. `IndexedClip.random_access_frames` names the first
frame that does not.

A packet is not always a frame. The tests below find out from its bytes; where these do not tell, `shown` decodes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import av

from preprocessor.media.bitstream import (
    MPEG4_VOP,
    MPEG_PICTURE,
    TYPED,
    Packet,
    PictureType,
    av1_kinds,
    holds_gif_image,
    nal_heads,
    nal_length_size,
    picture_type,
)

_H264_IDR = 5
_HEVC_RASL = frozenset({8, 9})
_HEVC_BLA = range(16, 19)
_HEVC_IRAP = range(16, 22)
_HEVC_IDR = (19, 20)
_HEVC_END = (36, 37)  # of the sequence, of the bitstream
_HEVC_END_UNITS = (b"\x48\1", b"\x4a\1")  # they are nothing but a head
_HEVC_NO_PICTURE = frozenset(range(32, 48))  # headers, delimiters, messages
_H264_NO_PICTURE = frozenset(range(6, 14))
_VP8_SHOW_FRAME = 0x10  # RFC 6386, 9.1
_AV1_NO_PICTURE = frozenset({1, 2, 5, 8, 15})  # AV1 specification, 6.2.2: headers, delimiters, messages, padding
_SMALL_BYTES = 200  # a packet without a picture is no larger: it holds headers and messages
_MPEG4_NOT_CODED_BYTES = 8  # a frame "as before" is its header alone: ISO 14496-2, 6.2.5


_KEYFRAMES_ARE_RANDOM_ACCESS = frozenset({"vp8", "vp9", "libdav1d", "av1"})
"""Codecs whose keyframes refer to nothing before, nor does any frame shown after them."""

_BEGINS_AT_ANY_KEYFRAME = frozenset({"vp8", "vp9", "libvpx", "libvpx-vp9", "libdav1d", "av1", "theora", "h263", "flv"})
"""Codecs without frames that are shown before a keyframe and follow it in the file."""

REORDERED = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vc1"})
"""Codecs whose frames may be shown in another order than that of their packets."""


PacketTest = Callable[[Packet], bool]


class Frames(enum.Enum):
    """How far packets tell what a decoder shows of a codec."""

    AS_PACKETS = 0  # one frame a packet, but for those that `hidden_test` names
    AT_FIRST_SIGHT = 1  # so as far as is known; the first group is decoded to make sure
    BY_DECODING = 2  # only a decoder tells


_ONE_A_PACKET = frozenset(
    {
        *("h264", "hevc", "vp8", "vp9", "libvpx", "libvpx-vp9", "av1", "libdav1d"),
        *("mpeg1video", "mpeg2video", "mpeg4", "h263", "flv", "mjpeg", "prores", "dnxhd", "theora", "gif", "apng"),
    }
)
_FIELDS_MAY_BE_APART = frozenset({"h264", "mpeg2video", "vc1"})
_INTERLACED = range(2, 6)  # AVFieldOrder


def frames_of(codec: av.VideoCodecContext) -> Frames:
    """Streams of other codecs are decoded once: old codecs have packets that repeat a frame, delay it, or hold none."""
    if codec.name not in _ONE_A_PACKET and not codec.codec.intra_only and codec.name != "vc1":
        return Frames.BY_DECODING
    if codec.name == "vc1" or (codec.name in _FIELDS_MAY_BE_APART and is_interlaced(codec)):
        return Frames.AT_FIRST_SIGHT
    return Frames.AS_PACKETS


def is_interlaced(codec: av.VideoCodecContext) -> bool:
    """As the header says."""
    return codec.field_order in _INTERLACED


class RandomAccess(enum.Enum):
    """How decoding may start at a packet."""

    NONE = 0
    OPEN = 1  # frames behind it in the file may be shown before it, and need what comes before
    CLOSED = 2  # frames behind it in the file are shown after everything before it in the file


def random_access_test(codec: av.VideoCodecContext) -> Callable[[Packet], RandomAccess]:
    """Which random access point a packet flagged as key is. NONE in doubt: that costs time, never correctness."""
    if codec.codec.intra_only:
        return lambda _: RandomAccess.CLOSED
    if codec.name in TYPED:
        kind_of = picture_type(codec)
        return lambda packet: RandomAccess.OPEN if kind_of(packet) is PictureType.I else RandomAccess.NONE
    if codec.name in _KEYFRAMES_ARE_RANDOM_ACCESS:
        return lambda _: RandomAccess.OPEN
    kinds_of = _nal_kinds(codec)

    def h264_access(packet: Packet) -> RandomAccess:
        return RandomAccess.CLOSED if _H264_IDR in kinds_of(packet) else RandomAccess.NONE

    def hevc_access(packet: Packet) -> RandomAccess:
        kind = next((kind for kind in kinds_of(packet) if kind in _HEVC_IRAP), None)
        if kind is None:
            return RandomAccess.NONE
        return RandomAccess.CLOSED if kind in _HEVC_IDR else RandomAccess.OPEN

    return {"h264": h264_access, "hevc": hevc_access}.get(codec.name, lambda _: RandomAccess.NONE)


def usual_access(codec: av.VideoCodecContext) -> RandomAccess:
    """What a packet flagged as key nearly always is."""
    return RandomAccess.CLOSED if codec.codec.intra_only or codec.name == "h264" else RandomAccess.OPEN


def start_test(codec: av.VideoCodecContext) -> PacketTest:
    """Whether a decoder that starts at this packet shows every frame from there on.

    If not, frames behind it may refer to some before it; whether a decoder shows those differs by codec. A packet damaged beyond
    recognition counts as a start, so that the decoder reports the damage.
    """
    if codec.name in ("gif", "apng") or codec.codec.intra_only:
        return lambda _: True
    if codec.name in ("h264", "hevc"):
        access, has_picture = random_access_test(codec), _picture_test(codec)
        return lambda packet: access(packet) is RandomAccess.CLOSED or not has_picture(packet)
    if codec.name in _BEGINS_AT_ANY_KEYFRAME:
        return lambda packet: packet.is_keyframe
    return lambda _: False


def _picture_test(codec: av.VideoCodecContext) -> PacketTest:
    """Whether an H.264 or HEVC packet holds a slice of a picture."""
    kinds_of = _nal_kinds(codec)
    slices = range(1, 6) if codec.name == "h264" else range(32)
    return lambda packet: any(kind in slices for kind in kinds_of(packet))


def uncertainty_test(codec: av.VideoCodecContext) -> PacketTest | None:
    """Whether only a decoder tells how many frames a packet gives. None where packets of the codec always tell.

    MPEG-4 is packed by some writers: two frames in one packet, and later an empty one that stands for the second. Behind the end
    of an HEVC sequence it depends on more than the next packet what is skipped, and what is shown first.
    """
    if codec.name == "mpeg4":
        return lambda packet: packet.size <= _MPEG4_NOT_CODED_BYTES or bytes(packet).count(MPEG4_VOP) > 1
    return _hevc_end_test(codec) if codec.name == "hevc" else None


def hidden_test(codec: av.VideoCodecContext) -> PacketTest | None:
    """Whether no decoder shows a packet's frame. None where that does not happen.

    VP8 keeps apart what is only there for others to refer to. GIF parts hold comments, and packets of H.264, HEVC and AV1 headers
    or messages alone. In HEVC, behind a picture that begins a sequence anew, those that lead it and refer over it are skipped.
    """
    if codec.name in ("vp8", "libvpx"):
        return lambda packet: not memoryview(packet)[0] & _VP8_SHOW_FRAME
    if codec.name == "gif":
        return lambda packet: not holds_gif_image(bytes(packet))
    if codec.name == "h264":
        return _no_picture_test(_nal_kinds(codec), _H264_NO_PICTURE)
    if codec.name in ("mpeg1video", "mpeg2video"):
        return lambda packet: (
            packet.size <= _SMALL_BYTES and MPEG_PICTURE not in (data := bytes(packet)) and data[:3] == b"\0\0\1"
        )
    if codec.name in ("libdav1d", "av1"):
        return _no_picture_test(lambda packet: list(av1_kinds(bytes(packet))), _AV1_NO_PICTURE)
    return _hevc_hidden_test(codec) if codec.name == "hevc" else None


def _no_picture_test(kinds_of: Callable[[Packet], list[int]], others: frozenset[int]) -> PacketTest:
    """Whether all units of a packet are of other kinds than pictures. What has no unit is damaged, and not judged."""

    def has_no_picture(packet: Packet) -> bool:
        return packet.size <= _SMALL_BYTES and bool(kinds := kinds_of(packet)) and others.issuperset(kinds)

    return has_no_picture


def _hevc_hidden_test(codec: av.VideoCodecContext) -> PacketTest:
    """ITU-T H.265, 8.1.3: NoRaslOutputFlag. Of the first picture in a file `shown` tells."""
    kinds_of = _nal_kinds(codec)
    has_no_picture = _no_picture_test(kinds_of, _HEVC_NO_PICTURE)
    begins_anew = False

    def is_hidden(packet: Packet) -> bool:
        nonlocal begins_anew
        if packet.is_keyframe:
            begins_anew = any(kind in _HEVC_BLA for kind in kinds_of(packet))
        return has_no_picture(packet) or (begins_anew and not _HEVC_RASL.isdisjoint(kinds_of(packet)))

    return is_hidden


def _hevc_end_test(codec: av.VideoCodecContext) -> PacketTest:
    """Whether a sequence has ended before this packet's picture, and not with the file."""
    kinds_of = _nal_kinds(codec)
    has_ended = False

    def is_behind_end(packet: Packet) -> bool:
        nonlocal has_ended
        is_behind = has_ended or (packet.is_keyframe and any(kind in _HEVC_END for kind in kinds_of(packet)))
        has_ended = bytes(memoryview(packet)[-2:]) in _HEVC_END_UNITS
        return is_behind

    return is_behind_end


def _nal_kinds(codec: av.VideoCodecContext) -> Callable[[Packet], list[int]]:
    """The type of each NAL unit, of H.264 or HEVC."""
    length_size = nal_length_size(codec)
    if codec.name == "h264":
        return lambda packet: [head & 0x1F for head in nal_heads(packet, length_size)]
    return lambda packet: [head >> 1 & 0x3F for head in nal_heads(packet, length_size)]


def reference_test(codec: av.VideoCodecContext) -> PacketTest:
    """Whether other frames may refer to a packet's frame. True where it cannot be told cheaply."""
    length_size = nal_length_size(codec)
    if codec.name == "h264":  # nal_ref_idc of its slices

        def is_referenced(packet: Packet) -> bool:
            slices = [head for head in nal_heads(packet, length_size) if 1 <= head & 0x1F <= 5]
            return not slices or any(head & 0x60 for head in slices)  # none: damaged, so it could have been anything

        return is_referenced
    return lambda _: not codec.codec.intra_only
