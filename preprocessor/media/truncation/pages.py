"""Streams of tags, pages and packets: FLV, Ogg, MPEG program and transport streams."""

from __future__ import annotations

import struct

from preprocessor.media.truncation.chunks import begins

_TS_PACKET_BYTES = (188, 192, 204)  # plain, with a time in front (m2ts), with a checksum behind
_FLV_TAGS = frozenset({8, 9, 18})  # sound, picture, metadata; anything else is not FLV any more
_FLV_LAST_TAGS = 1.5  # a tag's time is its begin, so the last one lasts until the end


def is_flv(data: bytes) -> bool:
    return data[:3] == b"FLV"


def flv_is_cut(data: bytes) -> bool:
    """A tag ends beyond the file, or the last ones come before the stated duration and size.

    Source: Adobe Flash Video File Format Specification 10.1, annex E.
    """
    position = int.from_bytes(data[5:9], "big") + 4
    last_ms, longest_ms, first_tag_end = 0, 0, 0
    while position < len(data) and data[position] & 0x1F in _FLV_TAGS:
        stop = position + 11 + int.from_bytes(data[position + 1 : position + 4], "big")
        if stop > len(data) or position + 11 > len(data):
            return True
        time_ms = int.from_bytes(data[position + 4 : position + 7], "big") | data[position + 7] << 24
        longest_ms, last_ms = max(longest_ms, time_ms - last_ms), max(last_ms, time_ms)
        first_tag_end = first_tag_end or stop
        position = stop + 4
    if position > len(data) or _stated_number(data, b"filesize", first_tag_end) <= len(data):
        return position > len(data)  # each tag's length stands behind it once more
    stated_ms = _stated_number(data, b"duration", first_tag_end) * 1000
    return not stated_ms or last_ms + _FLV_LAST_TAGS * longest_ms < stated_ms


def _stated_number(data: bytes, name: bytes, end: int) -> float:
    """A number of the first tag, which holds the metadata; 0 where it is not there."""
    mark = len(name).to_bytes(2, "big") + name + b"\0"
    position = data.find(mark, 0, end)
    if position < 0 or position + len(mark) + 8 > len(data):
        return 0
    return float(struct.unpack_from(">d", data, position + len(mark))[0])


def is_ogg(data: bytes) -> bool:
    return data[:4] == b"OggS"


def ogg_is_cut(data: bytes) -> bool:
    """RFC 3533. The last page ends beyond the file. Many recorders do not mark it as the last."""
    position = 0
    while position + 27 <= len(data):
        if data[position : position + 4] != b"OggS":
            position = data.find(b"OggS", position)
            if position < 0:
                return False
            continue
        table = position + 27 + data[position + 26]
        position = table + sum(data[position + 27 : table])
    return position > len(data) or begins(data, position, b"OggS")


def is_program_stream(data: bytes) -> bool:
    return data[:4] == b"\0\0\1\xba"


def program_stream_is_cut(data: bytes) -> bool:
    """ISO 13818-1, 2.5.3. A packet ends beyond the file."""
    position = 0
    while position + 4 <= len(data):
        if data[position : position + 3] != b"\0\0\1":
            position = data.find(b"\0\0\1", position)  # padding, or the payload of what states no length
            if position < 0:
                return False
            continue
        code = data[position + 3]
        if code == 0xBA:
            is_mpeg2 = position + 4 < len(data) and data[position + 4] >> 6 == 1
            stuffing = data[position + 13] & 7 if is_mpeg2 and position + 13 < len(data) else 0
            position += 14 + stuffing if is_mpeg2 else 12
        elif code == 0xB9:
            position += 4
        elif code >= 0xBB:
            if position + 6 > len(data):
                return True
            position += 6 + int.from_bytes(data[position + 4 : position + 6], "big")
        else:
            position += 3
        if position > len(data):
            return True
    return begins(data, position, b"\0\0\1")


def is_transport_stream(data: bytes) -> bool:
    return _ts_packet_bytes(data) > 0


def transport_stream_is_cut(data: bytes) -> bool:
    """It ends inside a packet. Nothing else tells: a stream may end anywhere, and what is no packet may follow it."""
    size = _ts_packet_bytes(data)
    first = 4 if size == 192 else 0
    last = data.rfind(b"\x47", max(0, len(data) - size))
    while last >= 0:
        if last - 2 * size >= 0 and all(data[last - back * size] == 0x47 for back in (1, 2)):
            return last - first + size > len(data)  # begun, behind packets that are whole
        last = data.rfind(b"\x47", max(0, len(data) - size), last)
    return False


def _ts_packet_bytes(data: bytes) -> int:
    for size in _TS_PACKET_BYTES:
        first = 4 if size == 192 else 0
        if len(data) > 3 * size and all(data[first + size * index] == 0x47 for index in range(3)):
            return size
    return 0
