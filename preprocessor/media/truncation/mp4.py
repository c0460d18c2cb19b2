"""ISO base media files (mp4, mov): ISO 14496-12."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_MP4_FIRST = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"sidx", b"moof"})


def boxes(data: bytes | memoryview, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and stated end of each box; the last may end beyond the file."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, start)
        if size == 1 and start + 16 <= end:
            size = struct.unpack_from(">Q", data, start + 8)[0]
        stop = start + size if size >= 8 else end
        yield name, start, stop
        start = stop


def is_mp4(data: bytes) -> bool:
    return data[4:8] in _MP4_FIRST


def mp4_is_cut(data: bytes) -> bool:
    """Without a whole `moov` nothing can be read. With one, its samples are looked up by the probe; fragments are judged here."""
    found = list(boxes(data))
    names = {name for name, _, stop in found if stop <= len(data)}
    if b"moov" not in names:
        return True
    is_fragmented = any(name == b"moof" for name, _, _ in found)
    if is_fragmented and found[-1][2] != len(data):
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
