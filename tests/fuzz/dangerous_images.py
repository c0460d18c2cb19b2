"""Images that are small and ask for much, made by code."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

from tests.media import animation, photo
from tests.pictures import animated, png, png_chunk


def largest_png() -> bytes:
    """65,535 pixels a side in 60 bytes."""
    return png(8, 2, b"", size=(65_535, 65_535))


def long_png() -> bytes:
    """One row of 200 million pixels: few enough in all."""
    return png(1, 0, b"", size=(200_000_000, 1))


def inflating_metadata(kind: bytes, head: bytes) -> bytes:
    """8 MiB of text or profile in 8 KB."""
    bomb = png_chunk(kind, head + zlib.compress(bytes(8 << 20), 9))
    data = photo(16, 16, "PNG")
    return data[:33] + bomb + data[33:]


def many_scans() -> bytes:
    """A progressive JPEG whose last scan is there two thousand times; each goes over the whole picture."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photo(64, 64))).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * 2000 + data[-2:]


def webp_canvas(width: int, height: int) -> bytes:
    """An animated WebP of 96x64 that claims another canvas, for which its decoder makes room twice."""
    data = bytearray(animation("WEBP", (100,) * 3))
    start = data.index(b"VP8X") + 12
    data[start : start + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def gif_frame_beyond_its_canvas() -> bytes:
    """A canvas of 16x16 with a frame of 65,535x65,535, to which Pillow would widen it."""
    head = b"GIF89a" + struct.pack("<HHBBB", 16, 16, 0x80, 0, 0) + bytes(6)
    return head + b"\x2c" + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x02\x02\x4c\x01\x00\x3b"


def deep_exif() -> bytes:
    """EXIF directories that point at one another in a ring."""
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    exif = b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 8)
    data = photo(16, 16, "PNG")
    return data[:33] + png_chunk(b"eXIf", exif) + data[33:]


def tiff_of_many_samples() -> bytes:
    """A TIFF of 65,535 samples a pixel."""
    data = bytearray(photo(16, 16, "TIFF"))
    (directory,) = struct.unpack_from("<I", data, 4)
    for entry in range(directory + 2, directory + 2 + 12 * data[directory], 12):
        if struct.unpack_from("<H", data, entry)[0] == 277:  # SamplesPerPixel
            struct.pack_into("<I", data, entry + 8, 65_535)
    return bytes(data)


def png_without_its_palette() -> bytes:
    """Pixels that are indices, and nothing that they are indices of; Pillow asserts that there is."""
    return png(8, 3, bytes(17 * 16), png_chunk(b"tRNS", b"\0\xff"), size=(16, 16))


def avif_on_a_stopped_clock() -> bytes:
    """An animation whose clock ticks at 0 Hz, by which Pillow divides."""
    data = bytearray(animated("AVIF"))
    for mark in (b"mdhd", b"mvhd"):
        start = data.index(mark) + 4
        offset = 20 if data[start] == 1 else 12  # ISO 14496-12, 8.4.2: behind two times, of four or of eight bytes
        data[start + offset : start + offset + 4] = bytes(4)
    return bytes(data)
