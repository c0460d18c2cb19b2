"""Images that are small and ask for much, made by code."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

from tests.drawing import gif, icon, png, png_chunk, tiled_tiff
from tests.media import animation, photo
from tests.pictures import animated


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


def plain_webp(width: int, height: int) -> bytes:
    """A WebP of one key frame that is not there, of which only the size is told."""
    frame = b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(8)
    return b"RIFF" + struct.pack("<I", 12 + len(frame)) + b"WEBPVP8 " + struct.pack("<I", len(frame)) + frame


def lossless_webp(width: int, height: int) -> bytes:
    """The same, lossless."""
    frame = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + bytes(9)
    return b"RIFF" + struct.pack("<I", 12 + len(frame)) + b"WEBPVP8L" + struct.pack("<I", len(frame)) + frame


def vast_gif() -> bytes:
    """A picture of 40,000x40,000 that sticks out of a screen of 16x16, for which Pillow makes room when it opens the file."""
    return gif(40_000, 40_000, disposal=2, screen=(16, 16))


def vast_icon() -> bytes:
    """An icon of 16x16 that holds a PNG of 60,000x60,000, which Pillow decodes when it opens the file."""
    return icon(png(8, 6, b"", size=(60_000, 60_000)), 16, 16)


def tiff_of_a_vast_tile() -> bytes:
    """A TIFF of 16x16 cut into tiles of 32,768x32,768."""
    return tiled_tiff(16, 16, (32_768, 32_768), zlib.compress(bytes(16)), compression=8)


def jpeg2000(
    width: int = 16,
    height: int = 16,
    *,
    component_count: int = 3,
    tile: int = 1 << 15,
    precinct: int | None = None,
    stated: tuple[int, int] | None = None,
) -> bytes:
    """A JPEG 2000 of a header and no pixels: its code alone, or in a box that states another size.

    Args:
        tile: Side of a tile.
        precinct: Two exponents, of a precinct's height and width.
    """
    sizes = struct.pack(">HIIIIIIIIH", 0, width, height, 0, 0, tile, tile, 0, 0, component_count)
    sizes += b"\x07\1\1" * component_count
    style = struct.pack(">BBHBBBBBB", precinct is not None, 0, 1, 0, 1, 4, 4, 0, 1)
    style += b"" if precinct is None else bytes([precinct] * 2)
    code = b"\xff\x4f" + b"".join(
        struct.pack(">HH", marker, 2 + len(body)) + body for marker, body in ((0xFF51, sizes), (0xFF52, style))
    )
    if stated is None:
        return code
    header = struct.pack(">I4sIIHBBBB", 22, b"ihdr", stated[1], stated[0], component_count, 7, 7, 0, 0)
    header += struct.pack(">I4sBBBI", 15, b"colr", 1, 0, 0, 16)
    boxes = struct.pack(">I4s", 8 + len(header), b"jp2h") + header + struct.pack(">I4s", 8 + len(code), b"jp2c") + code
    return b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\x14ftypjp2 \0\0\0\0jp2 " + boxes
