"""Mutations of files: of their elements, lengths, counts and bytes. The same random source gives the same file."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping

from tests.fuzz.structure import PARSERS, Element

MAX_FILE_BYTES = 1 << 20
"""A mutation repeats; what grows beyond is cut."""

_WIDTHS = (1, 2, 2, 4, 4, 4, 8)
_COUNTS = (1, 1, 1, 2, 3, 5)
_ELEMENT_REPEATS = (1, 2, 8, 64)

Mutation = Callable[[bytearray, list[Element], random.Random], str]


def mutate(data: bytes, structure: str, source: random.Random, donor: bytes = b"") -> tuple[bytes, str]:
    """A few mutations, one after another.

    Args:
        structure: A name in `PARSERS`.
        donor: Another file, of whose bytes some may be taken.
    Returns:
        The file, and what was done to it.
    """
    spoiled, told = bytearray(data), []
    for _ in range(source.choice(_COUNTS)):
        elements = [one for one in PARSERS[structure](bytes(spoiled)) if one.end > one.start]
        names = list(MUTATIONS) if elements else _SHAPELESS
        name = source.choice(names)
        if name == "splice" and donor:
            told.append(_splice(spoiled, elements, source, donor))
        else:
            told.append(MUTATIONS[name](spoiled, elements, source))
        del spoiled[MAX_FILE_BYTES:]
    result = bytes(spoiled)
    if source.random() < 0.8:  # else damage would end at the check sum, again and again
        result = with_right_check_sums(result, structure)
    return result, "; ".join(told)


def extreme(source: random.Random, width: int, now: int) -> int:
    """An integer of so many bytes that programs are wrong about."""
    top = (1 << 8 * width) - 1
    choices = (
        0,
        1,
        2,
        top,
        top - 1,
        top >> 1,
        (top >> 1) + 1,
        top >> 4,
        1 << 4 * width,
        now + 1,
        now - 1,
        now * 2,
        -now,
    )
    return source.choice(choices) & top if source.random() < 0.85 else source.randrange(top + 1)


def _delete(data: bytearray, elements: list[Element], source: random.Random) -> str:
    one = source.choice(elements)
    del data[one.start : one.end]
    _tell_parents(data, elements, one, one.start - one.end, source)
    return f"delete {one.start}-{one.end}"


def _repeat(data: bytearray, elements: list[Element], source: random.Random) -> str:
    one = source.choice(elements)
    count = min(source.choice(_ELEMENT_REPEATS), max(1, MAX_FILE_BYTES // max(1, one.end - one.start) // 4))
    copies = bytes(data[one.start : one.end]) * count
    data[one.end : one.end] = copies
    _tell_parents(data, elements, one, len(copies), source)
    return f"repeat {one.start}-{one.end} {count} times"


def _swap(data: bytearray, elements: list[Element], source: random.Random) -> str:
    first, second = sorted((source.choice(elements), source.choice(elements)), key=lambda one: one.start)
    if first.end > second.start:
        return "swap nothing"
    a, b = bytes(data[first.start : first.end]), bytes(data[second.start : second.end])
    data[second.start : second.end] = a
    data[first.start : first.end] = b
    return f"swap {first.start} and {second.start}"


def _nest(data: bytearray, elements: list[Element], source: random.Random) -> str:
    """An element put into itself, or into another."""
    inner, outer = source.choice(elements), source.choice(elements)
    copy = bytes(data[inner.start : inner.end]) * source.choice((1, 1, 4))
    data[outer.body : outer.body] = copy
    _tell_parents(data, elements, outer, len(copy), source)
    if outer.size is not None:
        outer.size.write(data, outer.end - outer.size.counts_from + len(copy))
    return f"nest {inner.start} in {outer.start}"


def _truncate(data: bytearray, elements: list[Element], source: random.Random) -> str:
    if not data:
        return "truncate nothing"
    if elements and source.random() < 0.7:
        one = source.choice(elements)
        end = source.choice((one.start, one.body, one.end, source.randint(one.start, one.end)))
    else:
        end = source.randrange(len(data))
    del data[end:]
    return f"truncate at {end}"


def _length(data: bytearray, elements: list[Element], source: random.Random) -> str:
    """What an element says of its own length."""
    sized = [one for one in elements if one.size is not None]
    if not sized:
        return _integer(data, elements, source)
    one = source.choice(sized)
    field = one.size
    assert field is not None
    value = extreme(source, field.width, one.end - field.counts_from)
    field.write(data, value)
    return f"length at {field.offset} = {value}"


def _integer(data: bytearray, elements: list[Element], source: random.Random) -> str:
    """An extreme integer inside an element, aligned as fields are; near its beginning more often than not."""
    one = source.choice(elements)
    reach = min(one.end - one.start, 96 if source.random() < 0.8 else 1 << 20)
    return _write_integer(data, one.start + source.randrange(max(1, reach)), source)


def _integer_anywhere(data: bytearray, elements: list[Element], source: random.Random) -> str:
    return _write_integer(data, source.randrange(max(1, len(data))), source)


def _write_integer(data: bytearray, position: int, source: random.Random) -> str:
    width = source.choice(_WIDTHS)
    order = source.choice(("big", "little"))
    now = int.from_bytes(data[position : position + width], order)  # type: ignore[arg-type]
    value = extreme(source, width, now)
    written = value.to_bytes(width, order)  # type: ignore[arg-type]
    data[position : position + width] = written[: len(data) - position]
    return f"integer at {position} = {value} ({width} bytes)"


def _bytes(data: bytearray, elements: list[Element], source: random.Random) -> str:
    """Bits turned over, or bytes made up."""
    if not data:
        return "bytes of nothing"
    one = source.choice(elements) if elements and source.random() < 0.8 else Element(0, 0, len(data))
    positions = [source.randrange(one.start, max(one.end, one.start + 1)) for _ in range(source.choice((1, 2, 8, 32)))]
    for position in positions:
        if position < len(data):
            data[position] = (
                data[position] ^ 1 << source.randrange(8) if source.random() < 0.6 else source.randrange(256)
            )
    return f"bytes {sorted(positions)[:4]}"


def _blank(data: bytearray, elements: list[Element], source: random.Random) -> str:
    one = source.choice(elements)
    start = one.body if source.random() < 0.8 else one.start
    data[start : one.end] = source.choice((b"\0", b"\xff")) * (one.end - start)
    return f"blank {start}-{one.end}"


def _splice(data: bytearray, elements: list[Element], source: random.Random, donor: bytes = b"") -> str:
    """An element's content taken from elsewhere."""
    one = source.choice(elements)
    donor = donor or bytes(data)
    start = source.randrange(max(1, len(donor)))
    piece = donor[start : start + source.choice((4, 64, 1024))]
    data[one.body : one.body + len(piece)] = piece
    return f"splice {len(piece)} bytes into {one.start}"


def _insert(data: bytearray, elements: list[Element], source: random.Random) -> str:
    one = source.choice(elements)
    filler = source.choice(
        (bytes(source.choice((1, 7, 300))), source.randbytes(source.choice((1, 16, 200))), b"\xec\x80" * 500)
    )
    data[one.start : one.start] = filler
    _tell_parents(data, elements, one, len(filler), source)
    return f"insert {len(filler)} bytes at {one.start}"


MUTATIONS: Mapping[str, Mutation] = {
    "delete": _delete,
    "repeat": _repeat,
    "swap": _swap,
    "nest": _nest,
    "truncate": _truncate,
    "length": _length,
    "integer": _integer,
    "integer anywhere": _integer_anywhere,
    "bytes": _bytes,
    "blank": _blank,
    "splice": _splice,
    "insert": _insert,
}


_SHAPELESS = ["bytes", "truncate", "integer anywhere"]
"""What can be done to a file in which no element is found any more."""


def _tell_parents(data: bytearray, elements: list[Element], one: Element, growth: int, source: random.Random) -> None:
    """Put right what is said of the length of the elements around; now and then that stays wrong."""
    if source.random() < 0.3:
        return
    for place in one.ancestors:
        parent = elements[place]
        if parent.size is not None:
            parent.size.write(data, max(0, parent.end - parent.size.counts_from + growth))


def with_right_check_sums(data: bytes, structure: str) -> bytes:
    """The file with the check sums of its PNG chunks or Ogg pages put right."""
    if structure not in ("png", "ogg"):
        return data
    fixed = bytearray(data)
    for one in PARSERS[structure](data):
        if structure == "png" and one.end - one.start >= 12:
            fixed[one.end - 4 : one.end] = zlib.crc32(fixed[one.start + 4 : one.end - 4]).to_bytes(4, "big")
        elif structure == "ogg" and one.end - one.start >= 27:
            fixed[one.start + 22 : one.start + 26] = bytes(4)
            fixed[one.start + 22 : one.start + 26] = _ogg_crc(bytes(fixed[one.start : one.end])).to_bytes(4, "little")
    return bytes(fixed)


def _ogg_crc(page: bytes) -> int:
    """RFC 3533, 6: polynomial 0x04c11db7, no reflection, which zlib's is."""
    crc = 0
    for byte in page:
        crc = (crc << 8 & 0xFFFFFFFF) ^ _OGG_TABLE[crc >> 24 ^ byte]
    return crc


def _ogg_entry(index: int) -> int:
    crc = index << 24
    for _ in range(8):
        crc = (crc << 1 ^ 0x04C11DB7 if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
    return crc


_OGG_TABLE = tuple(_ogg_entry(index) for index in range(256))
