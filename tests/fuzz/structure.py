"""How a media file is built: its elements with their length fields, found without believing them further than the file goes.

A parser here is to find the elements of a good file, and to make what it can of one that is mutated already. It never raises.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

Order = Literal["big", "little"]


@dataclass(frozen=True, slots=True)
class SizeField:
    """Where an element says how long it is.

    Attributes:
        counts_from: The offset from which the length runs, so that `counts_from + value` is the element's end.
        is_vint: An EBML number, whose first bits are its own length (RFC 8794, 4).
    """

    offset: int
    width: int
    order: Order
    counts_from: int
    is_vint: bool = False

    def write(self, data: bytearray, value: int) -> None:
        """Put a value there, cut to what fits."""
        bits = 7 * self.width if self.is_vint else 8 * self.width
        value &= (1 << bits) - 1
        if self.is_vint:
            value |= 1 << bits
        data[self.offset : self.offset + self.width] = value.to_bytes(self.width, self.order)


@dataclass(frozen=True, slots=True)
class Element:
    """A box, chunk, page, unit or block: bytes `start` to `end`, of which those from `body` on are content.

    Attributes:
        ancestors: Places in the file's list of the elements around it, outermost first.
    """

    start: int
    body: int
    end: int
    size: SizeField | None = None
    ancestors: tuple[int, ...] = ()


Parser = Callable[[bytes], list[Element]]

_BOX_PARENTS = frozenset(
    b"moov trak mdia minf dinf stbl edts udta mvex moof traf mfra iprp ipco meta ilst stsd tref schi sinf".split()
)
_BOX_SKIPS = {b"meta": 4, b"stsd": 8}  # version and flags, and a count, before the children
_EBML_PARENTS = frozenset(
    bytes.fromhex(one)
    for one in (
        *("1a45dfa3", "18538067", "1549a966", "1654ae6b", "ae", "e0", "e1", "1f43b675", "a0", "1c53bb6b", "bb", "b7"),
        *("114d9b74", "4dbb", "1254c367", "7373", "67c8", "6d80", "6240", "5034"),
    )
)
_MAX_DEPTH = 12
_MAX_ELEMENTS = 3000


def boxes(data: bytes) -> list[Element]:
    """ISO 14496-12, 4.2: mp4, mov, HEIF, AVIF."""
    found: list[Element] = []

    def walk(position: int, end: int, ancestors: tuple[int, ...]) -> None:
        while position + 8 <= end and len(found) < _MAX_ELEMENTS:
            size, kind = struct.unpack_from(">I4s", data, position)
            field, body = SizeField(position, 4, "big", position), position + 8
            if size == 1 and position + 16 <= end:
                size = struct.unpack_from(">Q", data, position + 8)[0]
                field, body = SizeField(position + 8, 8, "big", position), position + 16
            stop = min(end, position + size) if size >= 8 else end
            found.append(Element(position, min(body, stop), stop, field, ancestors))
            if kind in _BOX_PARENTS and len(ancestors) < _MAX_DEPTH:
                walk(body + _BOX_SKIPS.get(kind, 0), stop, (*ancestors, len(found) - 1))
            position = stop

    walk(0, len(data), ())
    return found


def ebml(data: bytes) -> list[Element]:
    """RFC 8794: Matroska, WebM."""
    found: list[Element] = []

    def vint_length(position: int, end: int) -> int:
        return 9 - data[position].bit_length() if position < end and data[position] else 0

    def walk(position: int, end: int, ancestors: tuple[int, ...]) -> None:
        while position < end and len(found) < _MAX_ELEMENTS:
            id_length = vint_length(position, end)
            field_at = position + id_length
            width = vint_length(field_at, end)
            if not id_length or not width or field_at + width > end:
                return
            body = field_at + width
            size = int.from_bytes(data[field_at:body], "big") & ((1 << 7 * width) - 1)
            stop = min(end, body + size)
            found.append(Element(position, body, stop, SizeField(field_at, width, "big", body, True), ancestors))
            if data[position:field_at] in _EBML_PARENTS and len(ancestors) < _MAX_DEPTH:
                walk(body, stop, (*ancestors, len(found) - 1))
            position = stop

    walk(0, len(data), ())
    return found


def _chunks(order: Order, lists: frozenset[bytes], skip: int) -> Parser:
    def parse(data: bytes) -> list[Element]:
        found: list[Element] = []

        def walk(position: int, end: int, ancestors: tuple[int, ...]) -> None:
            while position + 8 <= end and len(found) < _MAX_ELEMENTS:
                size = int.from_bytes(data[position + 4 : position + 8], order)
                stop = min(end, position + 8 + size + size % 2)
                field = SizeField(position + 4, 4, order, position + 8)
                found.append(Element(position, position + 8, stop, field, ancestors))
                if data[position : position + 4] in lists and len(ancestors) < _MAX_DEPTH:
                    walk(position + 8 + skip, stop, (*ancestors, len(found) - 1))
                position = stop

        walk(0, len(data), ())
        return found

    return parse


riff = _chunks("little", frozenset((b"RIFF", b"LIST", b"ANMF")), 4)
"""AVI, WAV, WebP."""
iff = _chunks("big", frozenset((b"FORM",)), 4)
"""AIFF."""


def png_chunks(data: bytes) -> list[Element]:
    """RFC 2083, 3.2; the check sum belongs to the element."""
    found, position = [], 8
    while position + 12 <= len(data):
        stop = min(len(data), position + 12 + int.from_bytes(data[position : position + 4], "big"))
        found.append(Element(position, position + 8, stop, SizeField(position, 4, "big", position + 12)))
        position = stop
    return found


def jpeg_segments(data: bytes) -> list[Element]:
    """ITU-T T.81, B.1.1.4; entropy-coded data belongs to the segment before it."""
    marks = [match.start() for match in re.finditer(rb"\xff[^\x00\xff\xd0-\xd7]", data)]
    ends = [*marks[1:], len(data)]
    return [
        Element(start, min(start + 4, end), end, SizeField(start + 2, 2, "big", start + 2) if end - start > 4 else None)
        for start, end in zip(marks, ends, strict=False)
    ]


def gif_blocks(data: bytes) -> list[Element]:
    """GIF89a, appendix B: extensions and images with their sub-blocks, each sub-block an element of its own."""
    found: list[Element] = []
    position = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0)
    found.append(Element(0, 6, min(position, len(data))))
    while position < len(data) and len(found) < _MAX_ELEMENTS:
        start = position
        if data[start] == 0x21:
            position = start + 2
        elif data[start] == 0x2C and start + 10 <= len(data):
            flags = data[start + 9]
            position = start + 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        else:
            break
        parent, blocks = len(found), []
        found.append(Element(start, start + 1, start))  # its end is put right below
        while position < len(data) and data[position]:
            stop = min(len(data), position + 1 + data[position])
            blocks.append(
                Element(position, position + 1, stop, SizeField(position, 1, "little", position + 1), (parent,))
            )
            position = stop
        position = min(position + 1, len(data))
        found[parent] = Element(start, start + 1, position)
        found.extend(blocks)
    return found


def tiff_entries(data: bytes) -> list[Element]:
    """TIFF 6.0, section 2: the entries of every directory; their counts stand where other elements have their lengths."""
    order: Order = "little" if data[:2] == b"II" else "big"
    found: list[Element] = []
    directory, seen = int.from_bytes(data[4:8], order), set[int]()
    while 8 <= directory <= len(data) - 2 and directory not in seen:
        seen.add(directory)
        count = int.from_bytes(data[directory : directory + 2], order)
        entries = range(directory + 2, min(directory + 2 + 12 * count, len(data) - 12), 12)
        found += [Element(entry, entry + 8, entry + 12, SizeField(entry + 4, 4, order, entry)) for entry in entries]
        after = directory + 2 + 12 * count
        directory = int.from_bytes(data[after : after + 4], order)
    return found


def flv_tags(data: bytes) -> list[Element]:
    """Adobe Flash Video File Format 10.1, annex E."""
    found, position = [Element(0, 3, min(13, len(data)))], 13
    while position + 11 <= len(data):
        size = int.from_bytes(data[position + 1 : position + 4], "big")
        stop = min(len(data), position + 11 + size + 4)
        found.append(Element(position, position + 11, stop, SizeField(position + 1, 3, "big", position + 15)))
        position = stop
    return found


def _between(mark: bytes, head: int) -> Parser:
    """Elements that begin with a mark, each up to the next."""

    def parse(data: bytes) -> list[Element]:
        starts = [match.start() for match in re.finditer(re.escape(mark), data)]
        ends = [*starts[1:], len(data)]
        return [Element(start, min(start + head, end), end) for start, end in zip(starts, ends, strict=False)]

    return parse


ogg_pages = _between(b"OggS", 27)
nal_units = _between(b"\0\0\1", 5)
adts_frames = _between(b"\xff\xf1", 7)
mp3_frames = _between(b"\xff\xfb", 4)


def _fixed(first: int, size: int, head: int) -> Parser:
    def parse(data: bytes) -> list[Element]:
        return [
            Element(start, min(start + head, len(data)), min(start + size, len(data)))
            for start in range(first, len(data), size)
        ]

    return parse


ts_packets = _fixed(0, 188, 4)
pieces = _fixed(0, 32, 4)
"""For what has no structure that is worth a parser here."""


def ivf_frames(data: bytes) -> list[Element]:
    """The frames behind the file's header of 32 bytes."""
    found, position = [Element(0, 4, min(32, len(data)))], 32
    while position + 12 <= len(data):
        stop = min(len(data), position + 12 + int.from_bytes(data[position : position + 4], "little"))
        found.append(Element(position, position + 12, stop, SizeField(position, 4, "little", position + 12)))
        position = stop
    return found


def flac_blocks(data: bytes) -> list[Element]:
    """RFC 9639, 8.1, and the frames behind by their sync codes."""
    found, position = [], 4
    while position + 4 <= len(data):
        stop = min(len(data), position + 4 + int.from_bytes(data[position + 1 : position + 4], "big"))
        found.append(Element(position, position + 4, stop, SizeField(position + 1, 3, "big", position + 4)))
        is_last, position = data[position] & 0x80, stop
        if is_last:
            break
    return found + [
        Element(position + one.start, position + one.body, position + one.end)
        for one in _between(b"\xff\xf8", 6)(data[position:])
    ]


PARSERS: Mapping[str, Parser] = {
    "adts": adts_frames,
    "boxes": boxes,
    "ebml": ebml,
    "flac": flac_blocks,
    "flv": flv_tags,
    "gif": gif_blocks,
    "iff": iff,
    "ivf": ivf_frames,
    "jpeg": jpeg_segments,
    "mp3": mp3_frames,
    "nal": nal_units,
    "ogg": ogg_pages,
    "pieces": pieces,
    "png": png_chunks,
    "riff": riff,
    "tiff": tiff_entries,
    "ts": ts_packets,
}


def leaves(elements: list[Element]) -> Iterator[Element]:
    """Those that hold no others."""
    parents = {place for element in elements for place in element.ancestors}
    return (element for place, element in enumerate(elements) if place not in parents)
