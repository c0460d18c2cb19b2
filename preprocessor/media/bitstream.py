"""The units of a packet, as far as they tell what kind of picture it holds: nothing here is decoded.

NAL units of H.264 and HEVC, open bitstream units of AV1, picture headers of MPEG-1, -2 and -4, blocks of GIF.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import av

from preprocessor.media.truncation.chunks import behind_gif_blocks, gif_head_bytes

if TYPE_CHECKING:  # PyAV's class is generic only to type checkers
    Packet = av.Packet[av.VideoStream]
else:
    Packet = av.Packet

_GIF_IMAGE = 0x2C
MPEG4_VOP = b"\0\0\1\xb6"
MPEG_PICTURE = b"\0\0\1\0"

TYPED = frozenset({"mpeg1video", "mpeg2video", "mpeg4"})
"""Codecs whose pictures state their type, which decides alone in which order a decoder shows them."""


class PictureType(enum.Enum):
    """I refers to no other picture, P to earlier ones, B also to one that is shown later."""

    I = 1  # noqa: E741  # the standards' own names
    P = 2
    B = 3


def picture_type(codec: av.VideoCodecContext) -> Callable[[Packet], PictureType]:
    """The type of a packet's first picture, of a codec in `TYPED`; I or P by the container's mark where none is found.

    ISO 13818-2, 6.3.9: picture_coding_type. ISO 14496-2, 6.3.5: vop_coding_type; a sprite counts as P.
    """
    if codec.name == "mpeg4":
        return lambda packet: _typed(packet, MPEG4_VOP, 4, lambda byte: (byte >> 6) + 1)
    return lambda packet: _typed(packet, MPEG_PICTURE, 5, lambda byte: byte >> 3 & 7)


def _typed(packet: Packet, mark: bytes, offset: int, number: Callable[[int], int]) -> PictureType:
    data = bytes(packet)
    position = data.find(mark)
    if position < 0 or position + offset >= len(data):
        return PictureType.I if packet.is_keyframe else PictureType.P
    kind = number(data[position + offset])
    return PictureType(kind) if 1 <= kind <= 3 else PictureType.P


def nal_length_size(codec: av.VideoCodecContext) -> int:
    """Bytes of the length before each NAL unit; 0 where start codes part them. ISO 14496-15, 5.3.3.1 and 8.3.3.1."""
    extradata = codec.extradata or b""
    position = 4 if codec.name == "h264" else 21
    if len(extradata) <= position or extradata[0] != 1:
        return 0
    return (extradata[position] & 3) + 1


def nal_heads(packet: Packet, length_size: int) -> Iterator[int]:
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


def av1_kinds(data: bytes) -> Iterator[int]:
    """The type of each open bitstream unit. AV1 specification, 5.3."""
    position = 0
    while position < len(data):
        head = data[position]
        yield head >> 3 & 15
        position += 2 if head & 4 else 1
        if not head & 2:
            return
        size, shift = 0, 0
        while position < len(data):
            byte = data[position]
            size |= (byte & 0x7F) << shift
            position, shift = position + 1, shift + 7
            if byte < 0x80:
                break
        position += size


def holds_gif_image(data: bytes) -> bool:
    """Whether an image descriptor is among the blocks of a part of a GIF. GIF89a, 20 and appendix A."""
    position = gif_head_bytes(data) if data[:3] == b"GIF" and len(data) > 12 else 0
    while position < len(data):
        if data[position] == _GIF_IMAGE:
            return True
        position = behind_gif_blocks(data, position + 2)
    return False
