"""Files made of chunks that state their size: AVI, ASF, MXF, PNG, GIF, IVF, AIFF, AU."""

from __future__ import annotations

_UNKNOWN_32 = 0x7FFFFFFF  # writers that cannot seek back leave this or more as a size
_AVI_HAS_INDEX = 0x10  # AVIF_HASINDEX
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_IS_BROADCAST = 1
_MXF_KEY = b"\x06\x0e\x2b\x34"
_GIF_EXTENSION, _GIF_IMAGE = 0x21, 0x2C
_AU_UNKNOWN = 0xFFFFFFFF


def is_avi(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:11] == b"AVI"


def avi_is_cut(data: bytes) -> bool:
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


def is_asf(data: bytes) -> bool:
    return data[:16] == _ASF_HEADER


def asf_is_cut(data: bytes) -> bool:
    """The file properties state its size, unless it was sent while it was recorded."""
    header_bytes = int.from_bytes(data[16:24], "little")
    if header_bytes > len(data):
        return True
    position = data.find(_ASF_FILE_PROPERTIES, 0, header_bytes)
    if position < 0 or position + 92 > len(data):
        return False
    is_broadcast = data[position + 88] & _ASF_IS_BROADCAST
    return not is_broadcast and int.from_bytes(data[position + 40 : position + 48], "little") > len(data)


def is_png(data: bytes) -> bool:
    return data[:8] == b"\x89PNG\r\n\x1a\n"


def png_is_cut(data: bytes) -> bool:
    """There is no last chunk."""
    position = 8
    while position + 12 <= len(data):
        if data[position + 4 : position + 8] == b"IEND":
            return False
        position += 12 + int.from_bytes(data[position : position + 4], "big")
    return True


def is_mxf(data: bytes) -> bool:
    return data[:4] == _MXF_KEY


def mxf_is_cut(data: bytes) -> bool:
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
    return begins(data, position, _MXF_KEY)


def is_gif(data: bytes) -> bool:
    return data[:4] == b"GIF8"


def gif_is_cut(data: bytes) -> bool:
    """It ends inside a block. That the trailer alone is missing costs nothing, and some writers forget it."""
    position = gif_head_bytes(data)
    while position < len(data) and data[position] in (_GIF_EXTENSION, _GIF_IMAGE):
        if data[position] == _GIF_IMAGE:
            position += 11 + _color_table_bytes(data[position + 9 : position + 10])
        else:
            position += 2
        position = behind_gif_blocks(data, position)
    return position > len(data)


def gif_head_bytes(data: bytes) -> int:
    """Length of header, screen descriptor and the colours of all."""
    return 13 + _color_table_bytes(data[10:11])


def behind_gif_blocks(data: bytes, position: int) -> int:
    """Where the run of blocks of data that begins at a position is over; beyond the file if it is cut. GIF89a, 15."""
    while position < len(data) and data[position]:
        position += 1 + data[position]
    return position + 1


def _color_table_bytes(packed: bytes) -> int:
    return 3 << (packed[0] & 7) + 1 if packed and packed[0] & 0x80 else 0


def is_ivf(data: bytes) -> bool:
    return data[:4] == b"DKIF"


def ivf_is_cut(data: bytes) -> bool:
    """A frame ends beyond the file."""
    position = int.from_bytes(data[6:8], "little")
    while position < len(data):
        position += 12 + int.from_bytes(data[position : position + 4], "little")
    return position > len(data)


def begins(data: bytes, position: int, mark: bytes) -> bool:
    """Whether the file's last bytes are the begin of a mark, or of what follows it."""
    rest = data[position : position + len(mark)]
    return bool(rest) and mark.startswith(rest)


def is_aiff(data: bytes) -> bool:
    return data[:4] == b"FORM" and data[8:11] == b"AIF"


def aiff_is_cut(data: bytes) -> bool:
    return 8 + int.from_bytes(data[4:8], "big") > len(data)


def is_au(data: bytes) -> bool:
    return data[:4] == b".snd"


def au_is_cut(data: bytes) -> bool:
    size = int.from_bytes(data[8:12], "big")
    return size != _AU_UNKNOWN and int.from_bytes(data[4:8], "big") + size > len(data)
