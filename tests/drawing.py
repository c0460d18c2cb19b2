"""Pictures and image files made here, by Pillow or by hand where Pillow does not write them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from tests.media import photo

WIDTH, HEIGHT = 45, 31  # odd, so that chroma is subsampled unevenly and rows are padded


def picture(mode: str = "RGB", seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A picture with smooth and sharp parts; its alpha, where the mode has one, runs from 0 to 255 over strong colours."""
    image: Image.Image = Image.open(io.BytesIO(photo(width, height, "PNG", seed=seed)))
    if mode in ("RGBA", "LA", "PA"):
        alpha = np.linspace(0, 255, width).astype(np.uint8)[np.newaxis].repeat(height, 0)
        image = image.convert("L" if mode == "LA" else "RGB")
        image.putalpha(Image.fromarray(alpha))
        return image
    if mode == "I;16":
        return Image.fromarray(np.linspace(0, 65535, width * height).astype(np.uint16).reshape(height, width))
    return image.convert(mode)


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def ycck_jpeg() -> bytes:
    """A CMYK JPEG whose Adobe marker says that its channels are YCCK."""
    data = bytearray(encoded(picture("CMYK"), "JPEG"))
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0
    data[marker + 11] = 2
    return bytes(data)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(depth: int, color_type: int, rows: bytes, *chunks: bytes, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """A PNG by hand, for what Pillow does not write. `rows` are raw, each after its filter byte."""
    header = struct.pack(">IIBBBBB", *size, depth, color_type, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n", png_chunk(b"IHDR", header), *chunks]
    return b"".join([*parts, png_chunk(b"IDAT", zlib.compress(rows)), png_chunk(b"IEND", b"")])


def deep_png(channel_count: int, color_type: int) -> bytes:
    """A PNG of 16 bits a channel; low bytes are noise, so that how they are dropped shows."""
    values = np.random.default_rng(5).integers(0, 65536, (HEIGHT, WIDTH * channel_count)).astype(">u2")
    return png(16, color_type, b"".join(b"\0" + row.tobytes() for row in values))


def interlaced_png() -> bytes:
    """An Adam7 PNG."""
    pixels = np.asarray(picture())
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [b"\0" + row.tobytes() for y, x, dy, dx in passes for row in pixels[y::dy, x::dx]]
    data = bytearray(png(8, 2, b"".join(rows)))
    data[28] = 1  # IHDR's interlace method
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def deep_rgb_tiff() -> bytes:
    """A TIFF of 16-bit colour, which Pillow reads and does not write."""
    values = np.random.default_rng(6).integers(0, 65536, (HEIGHT, WIDTH, 3)).astype("<u2").tobytes()
    entries = [(256, 4, WIDTH), (257, 4, HEIGHT), (258, 3, 0), (259, 3, 1), (262, 3, 2), (273, 4, 0), (277, 3, 3)]
    entries += [(278, 4, HEIGHT), (279, 4, len(values))]
    after = 8 + 2 + 12 * len(entries) + 4
    body = b""
    for tag, kind, value in entries:
        count = 3 if tag == 258 else 1
        value = after if tag == 258 else after + 6 if tag == 273 else value
        body += struct.pack("<HHII", tag, kind, count, value)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + struct.pack("<3H", 16, 16, 16) + values


def ppm(kind: bytes, head: bytes, body: bytes, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    """A PPM, PGM, PBM or PFM by hand; `head` is what follows the size, such as b"255"."""
    return b"%b\n# by hand\n%d %d\n%b\n" % (kind, *size, head) + body


def plain(mode: str, most: int) -> bytes:
    """The picture's values as text, in the scale of a PPM whose largest value is `most`."""
    values = np.asarray(picture(mode)).reshape(-1).astype(int) * most // (1 if mode == "1" else 255)
    return b" ".join(b"%d" % value + (b"\n" if index % 17 == 0 else b"") for index, value in enumerate(values))


def psd(image: Image.Image, *, is_packed: bool = False, head: bytes | None = None) -> bytes:
    """A Photoshop document of a flat picture and no layers; Pillow reads them and does not write them.

    Args:
        is_packed: Rows as PackBits, here of literal runs.
        head: Instead of the 26 bytes of its own.
    """
    modes = {"1": 0, "L": 1, "P": 2, "RGB": 3, "RGBA": 3, "CMYK": 4}
    bits = 1 if image.mode == "1" else 8
    bands = [band.tobytes() for band in image.split()]
    if image.mode == "CMYK":
        bands = [bytes(255 - value for value in band) for band in bands]
    stride = (image.width * bits + 7) // 8
    rows = [band[start : start + stride] for band in bands for start in range(0, stride * image.height, stride)]
    data = b"\0\0" + b"".join(rows)
    if is_packed:
        packed = [bytes([len(row) - 1]) + row for row in rows]
        data = b"\0\1" + b"".join(struct.pack(">H", len(row)) for row in packed) + b"".join(packed)
    head = head or struct.pack(
        ">4sH6xHIIHH", b"8BPS", 1, len(bands), image.height, image.width, bits, modes[image.mode]
    )
    palette = np.array(image.getpalette()).reshape(-1, 3).T.astype(np.uint8).tobytes() if image.mode == "P" else b""
    return head + struct.pack(">I", len(palette)) + palette + bytes(8) + data


def icon(picture_file: bytes, width: int = WIDTH, height: int = HEIGHT, depth: int = 32) -> bytes:
    """An icon of one picture, a PNG or a bitmap without its file header, whose directory states what it is told."""
    entry = struct.pack("<BBBBHHII", width & 255, height & 255, 0, 0, 1, depth, len(picture_file), 6 + 16)
    return b"\0\0\1\0\1\0" + entry + picture_file


def mirrored_tga() -> bytes:
    """A TGA stored from right to left and from top to bottom."""
    data = bytearray(encoded(picture(), "TGA"))
    data[17] = 0x30
    return bytes(data)


def gif(
    width: int,
    height: int,
    *,
    screen: tuple[int, int] | None = None,
    disposal: int = 0,
    before: bytes = b"",
) -> bytes:
    """A GIF of a few bytes whose first picture says that it is so large.

    Args:
        screen: What the file says of itself, where that differs.
        before: Blocks before the picture.
    """
    head = b"GIF89a" + struct.pack("<HH", *(screen or (width, height))) + b"\xf0\0\0" + b"\0\0\0\xff\xff\xff"
    control = b"\x21\xf9\x04" + bytes([disposal << 2]) + b"\x0a\0\0\0"
    return head + before + control + b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x44\x01\0;"


def clear_gif() -> bytes:
    image = picture().quantize(16)
    return encoded(image, "GIF", transparency=image.getpixel((9, 9)))


def small_gray_png(depth: int, clear: int) -> bytes:
    """64 x 48 pixels of gray of so many bits, any of its values, of which one is clear and stands in every seventh place."""
    values = np.random.default_rng(depth).integers(0, 1 << depth, 64 * 48)
    values[::7] = clear
    bits = np.unpackbits(values.astype(">u2").view(np.uint8)).reshape(48, 64, 16)[:, :, 16 - depth :]
    rows = np.packbits(bits.reshape(48, -1), axis=1)
    return png(
        depth,
        0,
        b"".join(b"\0" + row.tobytes() for row in rows),
        png_chunk(b"tRNS", struct.pack(">H", clear)),
        size=(64, 48),
    )


def deep_animation(*, is_blended: bool, channel_count: int = 4) -> bytes:
    """An animated PNG of two frames, of 16 bits a channel."""
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channel_count]
    rows = b"".join(b"\0" + bytes(range(8 * channel_count * 2)) for _ in range(8))
    control = [struct.pack(">IIIIIHHBB", n, 8, 8, 0, 0, 1, 10, 0, is_blended) for n in (0, 1)]
    first = png(
        16, colour_type, rows, png_chunk(b"acTL", struct.pack(">II", 2, 0)), png_chunk(b"fcTL", control[0]), size=(8, 8)
    )
    end = png_chunk(b"IEND", b"")
    second = png_chunk(b"fcTL", control[1]) + png_chunk(b"fdAT", struct.pack(">I", 2) + zlib.compress(rows))
    return first.removesuffix(end) + second + end


def tiled_tiff(width: int, height: int, tile: tuple[int, int], data: bytes, compression: int = 1) -> bytes:
    """A TIFF of gray in one tile, which Pillow does not write."""
    entries = [
        (256, width),
        (257, height),
        (258, 8),
        (259, compression),
        (262, 1),
        (277, 1),
        (322, tile[0]),
        (323, tile[1]),
    ]
    start = 8 + 2 + 12 * (len(entries) + 2) + 4
    entries += [(324, start), (325, len(data))]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4) + data
