"""Matroska and WebM: RFC 8794, RFC 9559."""

from __future__ import annotations

from collections.abc import Iterator

_MKV_SEGMENT, _MKV_CLUSTER = 0x18538067, 0x1F43B675
_MKV_LAST = frozenset({0x1C53BB6B, 0x1254C367, 0x1043A770, 0x1941A469})  # Cues, Tags, Chapters, Attachments
_MKV_KNOWN = _MKV_LAST | {0x1A45DFA3, _MKV_CLUSTER, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0xEC, 0xBF}
"""With the head, SeekHead, Info, Tracks, and what fills or checks."""


def is_matroska(data: bytes) -> bool:
    return data[:4] == b"\x1a\x45\xdf\xa3"


def matroska_is_cut(data: bytes) -> bool:
    """The segment ends beyond the file, and what writers put behind the clusters is not there."""
    last, has_cluster = 0, False
    segment_end: int | None = None
    for element, stop in _elements(data):
        if element == _MKV_SEGMENT:
            segment_end = stop
        elif element not in _MKV_KNOWN:  # what follows the file is no part of it
            break
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
