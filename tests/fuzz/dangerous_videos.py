"""Videos that are small and ask for much, made by code where that is shorter than the file."""

from __future__ import annotations

import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from tests.fuzz.structure import boxes
from tests.media import animation, moving_shapes_clip

_FILES = Path(__file__).with_name("files")


@cache
def small_clip(**settings: Any) -> bytes:
    return moving_shapes_clip(**{"seconds": 0.4, "width": 64, "height": 48, **settings})


def with_table(name: bytes, content: bytes) -> bytes:
    """An mp4 with one of its tables made up, and the lengths around it right."""
    data = bytearray(small_clip())
    elements = boxes(bytes(data))
    one = next(element for element in elements if data[element.start + 4 : element.start + 8] == name)
    data[one.body : one.end] = content
    growth = len(content) - (one.end - one.body)
    for box in (one, *(elements[place] for place in one.ancestors)):
        assert box.size is not None
        box.size.write(data, box.end - box.start + growth)
    return bytes(data)


def endless_sample_sizes() -> bytes:
    """4,294,967,295 samples, by count alone."""
    return with_table(b"stsz", bytes(4) + struct.pack(">II", 0, 0xFFFFFFFF))


def samples_of_one_size(count: int = 40_000_000) -> bytes:
    """Samples of a byte each, all in one chunk: an index of 36 bytes for each of them, 1.4 GB of it, from a file of 2 KB."""
    data = bytearray(with_table(b"stsz", bytes(4) + struct.pack(">II", 1, count)))
    struct.pack_into(">III", data, data.index(b"stsc") + 12, 1, count, 1)
    struct.pack_into(">I", data, data.index(b"stts") + 12, count)
    for table in (b"stss", b"ctts", b"edts"):
        data[data.index(table) : data.index(table) + 4] = b"free"
    return bytes(data)


def endless_times() -> bytes:
    """A table of composition times that says it has 4,294,967,295 entries."""
    return with_table(b"ctts", bytes(4) + struct.pack(">I", 0xFFFFFFFF) + struct.pack(">II", 0xFFFFFFFF, 0))


def endless_durations() -> bytes:
    """One entry of a table of durations that stands for 4,294,967,295 samples of the longest there is."""
    return with_table(b"stts", bytes(4) + struct.pack(">III", 1, 0xFFFFFFFF, 0x7FFFFFFF))


def days_between_frames() -> bytes:
    """Frames hours apart, a day and more in all; without the list of edits, which would end after the first."""
    data = with_table(b"stts", bytes(4) + struct.pack(">III", 1, 12, 0x7FFFFFF))
    return data.replace(b"edts", b"free", 1)


def nested_boxes() -> bytes:
    """Boxes in boxes, a hundred thousand deep, each of 8 bytes."""
    count = 100_000
    inner = b"".join(struct.pack(">I4s", 8 * (count - depth), b"moov") for depth in range(count))
    return small_clip()[:32] + inner


def many_streams(count: int = 80) -> bytes:
    """An mp4 of one real track and its copies."""
    data = bytearray(small_clip())
    elements = boxes(bytes(data))
    track = next(element for element in elements if data[element.start + 4 : element.start + 8] == b"trak")
    copies = bytes(data[track.start : track.end]) * count
    for place in track.ancestors:
        parent = elements[place]
        assert parent.size is not None
        parent.size.write(data, parent.end - parent.start + len(copies))
    data[track.end : track.end] = copies
    return bytes(data)


def matroska_of_nothing() -> bytes:
    """A good file with four megabytes of empty Void elements before its first frame."""
    return _in_cluster(b"\xec\x80" * (2 << 20))


def nested_matroska() -> bytes:
    """A block group in a block group, thirty thousand deep, each of unknown length."""
    return _in_cluster((b"\xa0\x01" + b"\xff" * 7) * 30_000)


def _in_cluster(filler: bytes) -> bytes:
    data = small_clip(container="matroska")
    start = data.index(b"\x1f\x43\xb6\x75")
    length = 9 - data[start + 4].bit_length()
    opened = data[: start + 4] + b"\x01" + b"\xff" * 7  # its length is not known
    return opened + filler + data[start + 4 + length :]


def grows_to(width: int, height: int) -> bytes:
    """H.264 without a container, of 64x48, and then of another size."""
    small = small_clip(container="h264", options=(("g", "4"),))
    large = moving_shapes_clip(
        seconds=0.1, width=width, height=height, container="h264", options=(("preset", "ultrafast"),)
    )
    return small + large


def parameter_set_of(width: int, height: int) -> bytes:
    """H.264 whose first parameter set says a size that no frame of it has."""
    data = small_clip(container="h264", options=(("g", "4"), ("bf", "0")))
    start = data.index(b"\0\0\1\x67") + 3
    end = data.index(b"\0\0\1", start)
    return data[:start] + _sequence_parameters(width, height) + b"\0" + data[end:]


def _sequence_parameters(width: int, height: int) -> bytes:
    """A sequence parameter set of the baseline profile. ITU-T H.264, 7.3.2.1.1."""
    bits = "".join(
        [
            *("01100111", f"{66:08b}", "00000000", f"{62:08b}"),
            *map(_exp_golomb, (0, 0, 2, 1)),  # id, frame number, picture order by decoding, one reference
            "0",
            *map(_exp_golomb, (width // 16 - 1, height // 16 - 1)),
            *("1", "1", "0", "0", "1"),
        ]
    )
    return (
        int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big").replace(b"\0\0", b"\0\0\3")
    )


def _exp_golomb(value: int) -> str:
    digits = f"{value + 1:b}"
    return "0" * (len(digits) - 1) + digits


def vast_matroska() -> bytes:
    """A track of 65,535x65,535 pixels, as its header says."""
    data = bytearray(small_clip(codec="libvpx", container="webm", width=320, height=256))
    for element, value in ((b"\xb0\x82", 320), (b"\xba\x82", 256)):
        start = data.index(element + value.to_bytes(2, "big"))
        data[start + 2 : start + 4] = b"\xff\xff"
    return bytes(data)


def many_gif_frames() -> bytes:
    """A GIF of twenty thousand frames of one pixel, at 23 bytes each."""
    head = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + bytes(6)
    control = b"\x21\xf9\x04\0\1\0\0\0"
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + (control + frame) * 20_000 + b"\x3b"


def stream_that_comes_up_late() -> bytes:
    """An FLV in which a stream begins that its header does not announce; PyAV 18.1 counts it wrongly."""
    data = bytearray((_FILES / "late-stream.flv").read_bytes())
    data[1202:1205] = (len(data) - 1201 - 15).to_bytes(3, "big")  # so that its last tag ends where the file does
    return bytes(data)


def vast_apng() -> bytes:
    """An animation whose canvas is 16,000 pixels a side; FFmpeg takes more for damage."""
    data = bytearray(animation("PNG", (100,) * 3))
    struct.pack_into(">II", data, 16, 16_000, 16_000)
    struct.pack_into(">I", data, 29, zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def apng_of_many_frames_said() -> bytes:
    """An animation that says it has 4,294,967,295 frames, and has three."""
    data = bytearray(animation("PNG", (100,) * 3))
    start = data.index(b"acTL")
    struct.pack_into(">I", data, start + 4, 0xFFFFFFFF)
    struct.pack_into(">I", data, start + 12, zlib.crc32(bytes(data[start : start + 12])))
    return bytes(data)


def old_codec() -> bytes:
    """An AVI of a codec that is on nobody's list."""
    return small_clip(codec="ffv1", container="avi")
