"""Whether a file ends before its own structure says that it does.

An upload that was cut must fail with one reason, wherever it was cut: inside the index, inside a frame, or between two. FFmpeg
reads what is there and often says nothing. So the outermost structure of each container is walked here: boxes, chunks,
elements, pages or packets with a length in front, a few bytes read of each.

Only what must be there counts. A total that writers get wrong (the size of a RIFF, of a Matroska segment) does not make a file
short if what writers put last (an index) is there whole. Streams without any length, such as raw H.264, cannot tell.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping

_UNKNOWN_32 = 0x7FFFFFFF  # writers that cannot seek back leave this or more as a size
_AVI_HAS_INDEX = 0x10  # AVIF_HASINDEX
_MKV_SEGMENT, _MKV_CLUSTER = 0x18538067, 0x1F43B675
_MKV_LAST = frozenset({0x1C53BB6B, 0x1254C367, 0x1043A770, 0x1941A469})  # Cues, Tags, Chapters, Attachments
_MP4_FIRST = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"sidx", b"moof"})
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_IS_BROADCAST = 1
_TS_PACKET_BYTES = (188, 192, 204)  # plain, with a time in front (m2ts), with a checksum behind
_MXF_KEY = b"\x06\x0e\x2b\x34"


def ends_early(data: bytes) -> bool:
    """Whether the file's structure shows that its end is missing; False where it does not tell."""
    return any(is_kind(data) and is_cut(data) for is_kind, is_cut in _KINDS.items())


# -- ISO base media (mp4, mov): ISO 14496-12, 4.2 ----------------------------------------------------------------------


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and stated end of each box; the last may end beyond the file."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, start)
        if size == 1 and start + 16 <= end:
            size = struct.unpack_from(">Q", data, start + 8)[0]
        stop = start + size if size >= 8 else end
        yield name, start, stop
        start = stop


def _is_mp4(data: bytes) -> bool:
    return data[4:8] in _MP4_FIRST


def _mp4_is_cut(data: bytes) -> bool:
    """Without a whole `moov` nothing can be read. With one, its samples are looked up by the probe; fragments are judged here."""
    found = list(boxes(data))
    names = {name for name, _, stop in found if stop <= len(data)}
    if b"moov" not in names:
        return True
    is_fragmented = any(name == b"moof" for name, _, _ in found)
    if is_fragmented and found[-1][2] > len(data):
        return True
    if any(name == b"sidx" and _indexed_end(data, start, stop) > len(data) for name, start, stop in found):
        return True
    moov = next((start, stop) for name, start, stop in found if name == b"moov")
    return not is_fragmented and data.find(b"mvex", *moov) >= 0 and b"mdat" not in names


def _indexed_end(data: bytes, start: int, stop: int) -> int:
    """Where the last segment ends that a `sidx` box lists. ISO 14496-12, 8.16.3."""
    if stop > len(data) or stop - start < 32:
        return stop
    is_long = data[start + 8] > 0
    position = start + 12 + 8 + (8 if is_long else 4)
    offset = int.from_bytes(data[position : position + (8 if is_long else 4)], "big")
    position += (8 if is_long else 4) + 2
    count = int.from_bytes(data[position : position + 2], "big")
    if position + 2 + 12 * count > stop:
        return stop
    sizes: tuple[int, ...] = struct.unpack_from(">" + "I8x" * count, data, position + 2)
    return stop + offset + sum(size & 0x7FFFFFFF for size in sizes)


# -- Matroska and WebM: RFC 8794, RFC 9559 -----------------------------------------------------------------------------


def _is_matroska(data: bytes) -> bool:
    return data[:4] == b"\x1a\x45\xdf\xa3"


def _matroska_is_cut(data: bytes) -> bool:
    """The segment ends beyond the file, and what writers put behind the clusters is not there."""
    last, has_cluster = 0, False
    segment_end: int | None = None
    for element, stop in _elements(data):
        if element == _MKV_SEGMENT:
            segment_end = stop
        elif stop is not None and stop > len(data):
            return True
        has_cluster |= element == _MKV_CLUSTER
        last = element
    is_short = segment_end is not None and segment_end > len(data)
    return is_short and not (has_cluster and last in _MKV_LAST)


def _elements(data: bytes) -> Iterator[tuple[int, int | None]]:
    """Id and stated end (None: not known when written) of the top elements and of the segment's own."""
    position = 0
    while position < len(data):
        id_length = 9 - data[position].bit_length()
        size_at = position + id_length
        if id_length > 4 or size_at >= len(data):
            return
        element = int.from_bytes(data[position:size_at], "big")
        length = 9 - data[size_at].bit_length()  # leading zero bits tell how many bytes follow
        if length > 8:
            return
        size = int.from_bytes(data[size_at : size_at + length], "big") & ((1 << 7 * length) - 1)
        start = size_at + length
        is_known = size != (1 << 7 * length) - 1
        yield element, start + size if is_known else None
        if element == _MKV_SEGMENT:
            position = start
        elif is_known:
            position = start + size
        else:
            return


# -- AVI ---------------------------------------------------------------------------------------------------------------


def _is_avi(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:11] == b"AVI"


def _avi_is_cut(data: bytes) -> bool:
    """The list of frames ends beyond the file, or the index behind it is missing. A RIFF's own size is often wrong."""
    frames_end, riff_end, has_index, says_index = 0, 0, False, False
    position = 0
    while position + 12 <= len(data) and data[position : position + 4] == b"RIFF":
        size = _size(data, position)
        riff_end = position + 8 + size if 0 < size < _UNKNOWN_32 else 0
        position += 12
        while position + 8 <= len(data) and data[position : position + 4] != b"RIFF":
            name, size = data[position : position + 4], _size(data, position)
            if name == b"LIST" and data[position + 8 : position + 12] == b"movi":
                frames_end = position + 8 + size if 0 < size < _UNKNOWN_32 else 0
                if not frames_end or frames_end > len(data):
                    return frames_end > 0 and not _ends_with_index(data)
            elif name == b"LIST" and data[position + 8 : position + 12] == b"hdrl":
                header = data.find(b"avih", position, position + 64)
                says_index = header >= 0 and bool(
                    data[header + 20 : header + 21] and data[header + 20] & _AVI_HAS_INDEX
                )
            elif name == b"idx1":
                has_index = position + 8 + size <= len(data)
                if not has_index:
                    return True
            position += 8 + size + size % 2
    return riff_end > len(data) and (not frames_end or (says_index and not has_index))


def _size(data: bytes, position: int) -> int:
    return int.from_bytes(data[position + 4 : position + 8], "little")


def _ends_with_index(data: bytes) -> bool:
    position = data.rfind(b"idx1")
    return position >= 0 and 0 <= len(data) - (position + 8 + _size(data, position)) <= 1


# -- FLV: Adobe Flash Video File Format Specification 10.1, annex E ----------------------------------------------------


def _is_flv(data: bytes) -> bool:
    return data[:3] == b"FLV"


def _flv_is_cut(data: bytes) -> bool:
    """A tag ends beyond the file, or its last tag comes before the duration and the size that it states."""
    position = int.from_bytes(data[5:9], "big") + 4
    last_ms, first_tag_end = 0, 0
    while position < len(data):
        stop = position + 11 + int.from_bytes(data[position + 1 : position + 4], "big")
        if stop > len(data) or position + 11 > len(data):
            return True
        last_ms = max(last_ms, int.from_bytes(data[position + 4 : position + 7], "big") | data[position + 7] << 24)
        first_tag_end = first_tag_end or stop
        position = stop + 4
    stated_bytes = _stated_number(data, b"filesize", first_tag_end)
    stated_ms = _stated_number(data, b"duration", first_tag_end) * 1000
    return stated_bytes > len(data) and (not stated_ms or last_ms < stated_ms - _FLV_LAST_FRAME_MS)


_FLV_LAST_FRAME_MS = 1  # a tag's time is its begin: only a file of one frame a millisecond could be misjudged


def _stated_number(data: bytes, name: bytes, end: int) -> float:
    """A number of the first tag, which holds the metadata; 0 where it is not there."""
    mark = len(name).to_bytes(2, "big") + name + b"\0"
    position = data.find(mark, 0, end)
    if position < 0 or position + len(mark) + 8 > len(data):
        return 0
    return float(struct.unpack_from(">d", data, position + len(mark))[0])


# -- Ogg: RFC 3533 -----------------------------------------------------------------------------------------------------


def _is_ogg(data: bytes) -> bool:
    return data[:4] == b"OggS"


def _ogg_is_cut(data: bytes) -> bool:
    """The last page ends beyond the file, or a stream has no last page: each must have one that is marked so."""
    position, is_open = 0, dict[bytes, bool]()
    while position + 27 <= len(data):
        if data[position : position + 4] != b"OggS":
            position = data.find(b"OggS", position)
            if position < 0:
                break
            continue
        table = position + 27 + data[position + 26]
        is_last_of_stream = bool(data[position + 5] & 4)
        is_open[data[position + 14 : position + 18]] = not is_last_of_stream
        position = table + sum(data[position + 27 : table])
    return position > len(data) or any(is_open.values()) or _begins(data, position, b"OggS")


# -- MPEG: ISO 13818-1, 2.4.3 and 2.5.3 --------------------------------------------------------------------------------


def _is_program_stream(data: bytes) -> bool:
    return data[:4] == b"\0\0\1\xba"


def _program_stream_is_cut(data: bytes) -> bool:
    """A packet ends beyond the file."""
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
    return _begins(data, position, b"\0\0\1")


def _is_transport_stream(data: bytes) -> bool:
    return _ts_packet_bytes(data) > 0


def _transport_stream_is_cut(data: bytes) -> bool:
    """It ends inside a packet. Nothing else tells: a stream may end anywhere."""
    return len(data) % _ts_packet_bytes(data) != 0


def _ts_packet_bytes(data: bytes) -> int:
    for size in _TS_PACKET_BYTES:
        first = 4 if size == 192 else 0
        if len(data) > 3 * size and all(data[first + size * index] == 0x47 for index in range(3)):
            return size
    return 0


# -- others ------------------------------------------------------------------------------------------------------------


def _is_asf(data: bytes) -> bool:
    return data[:16] == _ASF_HEADER


def _asf_is_cut(data: bytes) -> bool:
    """The file properties state its size, unless it was sent while it was recorded."""
    header_bytes = int.from_bytes(data[16:24], "little")
    if header_bytes > len(data):
        return True
    position = data.find(_ASF_FILE_PROPERTIES, 0, header_bytes)
    if position < 0 or position + 92 > len(data):
        return False
    is_broadcast = data[position + 88] & _ASF_IS_BROADCAST
    return not is_broadcast and int.from_bytes(data[position + 40 : position + 48], "little") > len(data)


def _is_png(data: bytes) -> bool:
    return data[:8] == b"\x89PNG\r\n\x1a\n"


def _png_is_cut(data: bytes) -> bool:
    """There is no last chunk."""
    position = 8
    while position + 12 <= len(data):
        if data[position + 4 : position + 8] == b"IEND":
            return False
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return True


def _is_mxf(data: bytes) -> bool:
    return data[:4] == _MXF_KEY


def _mxf_is_cut(data: bytes) -> bool:
    """A value ends beyond the file. SMPTE 336M: a key of 16 bytes, a length, the value."""
    position = 0
    while position + 17 <= len(data) and data[position : position + 4] == _MXF_KEY:
        length, value = data[position + 16], position + 17
        if length & 0x80:
            value += length & 0x7F
            length = int.from_bytes(data[position + 17 : value], "big")
        position = value + length
        if position > len(data):
            return True
    return _begins(data, position, _MXF_KEY)


def _is_gif(data: bytes) -> bool:
    return data[:4] == b"GIF8"


def _gif_is_cut(data: bytes) -> bool:
    """It ends inside a block. That the trailer alone is missing costs nothing, and some writers forget it."""
    position = 13 + _color_table_bytes(data[10:11])
    while position < len(data) and data[position] in (_GIF_EXTENSION, _GIF_IMAGE):
        if data[position] == _GIF_IMAGE:
            position += 11 + _color_table_bytes(data[position + 9 : position + 10])
        else:
            position += 2
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
    return position > len(data)


_GIF_EXTENSION, _GIF_IMAGE = 0x21, 0x2C


def _color_table_bytes(packed: bytes) -> int:
    return 3 << (packed[0] & 7) + 1 if packed and packed[0] & 0x80 else 0


def _is_ivf(data: bytes) -> bool:
    return data[:4] == b"DKIF"


def _ivf_is_cut(data: bytes) -> bool:
    """A frame ends beyond the file."""
    position = int.from_bytes(data[6:8], "little")
    while position < len(data):
        position += 12 + int.from_bytes(data[position : position + 4], "little")
    return position > len(data)


def _begins(data: bytes, position: int, mark: bytes) -> bool:
    """Whether the file's last bytes are the begin of a mark, or of what follows it."""
    rest = data[position : position + len(mark)]
    return bool(rest) and mark.startswith(rest)


_KINDS: Mapping[Callable[[bytes], bool], Callable[[bytes], bool]] = {
    _is_mp4: _mp4_is_cut,
    _is_matroska: _matroska_is_cut,
    _is_avi: _avi_is_cut,
    _is_flv: _flv_is_cut,
    _is_ogg: _ogg_is_cut,
    _is_program_stream: _program_stream_is_cut,
    _is_transport_stream: _transport_stream_is_cut,
    _is_asf: _asf_is_cut,
    _is_png: _png_is_cut,
    _is_mxf: _mxf_is_cut,
    _is_gif: _gif_is_cut,
    _is_ivf: _ivf_is_cut,
}
