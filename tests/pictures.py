"""Image files of every kind that `media.image` reads, made in memory; the oracle that they are compared with; damage."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import ExifTags, Image, ImageOps

from tests.media import photo

WIDTH, HEIGHT = 45, 31  # odd, so that chroma is subsampled unevenly and rows are padded


def picture(mode: str = "RGB", seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A picture with smooth and sharp parts; its alpha, where the mode has one, runs from 0 to 255 over strong colours."""
    image = Image.open(io.BytesIO(photo(width, height, "PNG", seed=seed)))
    if mode in ("RGBA", "LA", "PA"):
        alpha = np.linspace(0, 255, width).astype(np.uint8)[np.newaxis].repeat(height, 0)
        image = image.convert("L" if mode == "LA" else "RGB")
        image.putalpha(Image.fromarray(alpha))
        return image
    if mode == "I;16":
        return Image.fromarray(np.linspace(0, 65535, width * height).astype(np.uint16).reshape(height, width))
    return image.convert(mode)


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def animated(image_format: str, **options: object) -> bytes:
    """Three frames: the picture, its negative, and blue."""
    frames = [picture(), ImageOps.invert(picture()), Image.new("RGB", (WIDTH, HEIGHT), "blue")]
    return encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **options)


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


def with_orientation(image_format: str, orientation: int, **options: object) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(picture(), image_format, exif=exif.tobytes(), **options)  # pillow-heif ignores an Exif object's


def xmp(orientation: int) -> bytes:
    """An XMP packet that states an orientation."""
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
    ) % orientation


def png_with_behind_pixels(chunk: bytes) -> bytes:
    """A PNG with a chunk between its pixels and its end."""
    end = png_chunk(b"IEND", b"")
    return encoded(picture(), "PNG").removesuffix(end) + chunk + end


def xmp_chunk(orientation: int) -> bytes:
    return png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(orientation))


def exif_chunk(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))


_LOSSLESS = {"lossless": True}
KINDS: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: encoded(picture(), "JPEG"),
    "jpeg 4:4:4": lambda: encoded(picture(), "JPEG", subsampling=0, quality=97),
    "jpeg gray": lambda: encoded(picture("L"), "JPEG"),
    "jpeg progressive": lambda: encoded(picture(), "JPEG", progressive=True),
    "jpeg cmyk": lambda: encoded(picture("CMYK"), "JPEG"),
    "jpeg ycck": ycck_jpeg,
    "jpeg multi-picture": lambda: animated("MPO"),
    "png": lambda: encoded(picture(), "PNG"),
    "png gray": lambda: encoded(picture("L"), "PNG"),
    "png 1 bit": lambda: encoded(picture("1"), "PNG"),
    "png rgba": lambda: encoded(picture("RGBA"), "PNG"),
    "png la": lambda: encoded(picture("LA"), "PNG"),
    "png palette": lambda: encoded(picture("P"), "PNG"),
    "png palette of 4 bits": lambda: encoded(picture().quantize(16), "PNG", bits=4),
    "png palette, one index clear": lambda: encoded(picture("P"), "PNG", transparency=3),
    "png palette with alpha": lambda: encoded(picture().quantize(256), "PNG", transparency=bytes(range(256))),
    "png gray, one value clear": lambda: encoded(picture("L"), "PNG", transparency=100),
    "png rgb, one colour clear": lambda: encoded(picture(), "PNG", transparency=(10, 20, 30)),
    "png 16-bit gray": lambda: encoded(picture("I;16"), "PNG"),
    "png 16-bit rgb": lambda: deep_png(3, 2),
    "png 16-bit rgba": lambda: deep_png(4, 6),
    "png 16-bit la": lambda: deep_png(2, 4),
    "png interlaced": interlaced_png,
    "png animated": lambda: animated("PNG"),
    "png animated, default image apart": lambda: animated("PNG", default_image=True),
    "webp": lambda: encoded(picture(), "WEBP"),
    "webp lossless": lambda: encoded(picture(), "WEBP", **_LOSSLESS),
    "webp alpha": lambda: encoded(picture("RGBA"), "WEBP"),
    "webp lossless alpha": lambda: encoded(picture("RGBA"), "WEBP", exact=True, **_LOSSLESS),
    "webp animated": lambda: animated("WEBP"),
    "gif": lambda: encoded(picture("P"), "GIF"),
    "gif, one index clear": lambda: encoded(picture("P"), "GIF", transparency=7),
    "gif animated": lambda: animated("GIF"),
    "bmp": lambda: encoded(picture(), "BMP"),
    "bmp gray": lambda: encoded(picture("L"), "BMP"),
    "bmp palette": lambda: encoded(picture("P"), "BMP"),
    "bmp rgba": lambda: encoded(picture("RGBA"), "BMP"),
    "tiff": lambda: encoded(picture(), "TIFF"),
    "tiff lzw": lambda: encoded(picture(), "TIFF", compression="tiff_lzw"),
    "tiff jpeg": lambda: encoded(picture(), "TIFF", compression="jpeg"),
    "tiff cmyk": lambda: encoded(picture("CMYK"), "TIFF"),
    "tiff rgba": lambda: encoded(picture("RGBA"), "TIFF"),
    "tiff palette": lambda: encoded(picture("P"), "TIFF"),
    "tiff 16-bit gray": lambda: encoded(picture("I;16"), "TIFF"),
    "tiff 16-bit rgb": deep_rgb_tiff,
    "tiff float": lambda: encoded(picture("L").convert("F"), "TIFF"),
    "tiff multi-page": lambda: animated("TIFF"),
    "avif": lambda: encoded(picture(), "AVIF"),
    "avif alpha": lambda: encoded(picture("RGBA"), "AVIF"),
    "avif gray": lambda: encoded(picture("L"), "AVIF"),
    "avif animated": lambda: animated("AVIF"),
    "heif": lambda: encoded(picture(), "HEIF"),
    "heif alpha": lambda: encoded(picture("RGBA"), "HEIF"),
    "heif gray": lambda: encoded(picture("L"), "HEIF"),
    "heif of several": lambda: animated("HEIF"),
    "png oriented behind its pixels": lambda: png_with_behind_pixels(exif_chunk(6)),
    "png oriented by xmp": lambda: png_with_behind_pixels(xmp_chunk(8)),
    "jpeg oriented by xmp": lambda: encoded(picture(), "JPEG", xmp=xmp(6)),
    "webp oriented by xmp": lambda: encoded(picture(), "WEBP", xmp=xmp(6)),
    "tiff oriented by xmp": lambda: encoded(picture(), "TIFF", tiffinfo={700: xmp(6)}),
    "avif oriented by xmp": lambda: encoded(picture(), "AVIF", xmp=xmp(6)),
    **{
        f"{name} orientation {orientation}": lambda name=name, orientation=orientation: with_orientation(
            name.upper(), orientation
        )
        for name in ("jpeg", "png", "webp", "tiff", "avif", "heif")
        for orientation in range(1, 9)
    },
}
"""Every kind of file, by name; the name starts with the format's."""


@cache
def file_of(kind: str) -> bytes:
    return KINDS[kind]()


@cache
def _load_image() -> Callable[[str], Image.Image]:
    """`transformers.image_utils.load_image`; where torchvision is installed the oracle knows how to import it."""
    try:
        from tests.golden.oracle import load_image
    except ImportError:
        from transformers.image_utils import load_image
    return load_image  # type: ignore[no-any-return]


def loaded_by_transformers(data: bytes) -> Image.Image:
    """What Hugging Face's own loading gives."""
    return _load_image()("data:image/any;base64," + base64.b64encode(data).decode())


def mutated(data: bytes, seed: int) -> bytes:
    """The file with a few bytes changed, a span dropped, repeated or zeroed, or its end cut off."""
    source = random.Random(seed)
    damaged = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 4, 16))):
        position = int(len(damaged) * source.random() ** source.choice((1, 3)))  # headers are short: favour the start
        span = source.randrange(1, 1 + min(64, max(1, len(damaged) // 4)))
        match source.randrange(6):
            case 0 | 1:
                damaged[position : position + 1] = bytes([source.randrange(256)])
            case 2:
                damaged[position : position + 1] = source.choice((b"\0", b"\xff", b"\x7f", b"\x80"))
            case 3:
                damaged[position : position + span] = bytes(span)
            case 4:
                damaged[position : position + span] *= source.choice((0, 2))
            case 5:
                del damaged[max(1, position) :]
    return bytes(damaged)
