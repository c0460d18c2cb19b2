"""Image files of every kind that `media.image` reads, made in memory; the oracle that they are compared with; damage."""

from __future__ import annotations

import base64
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from tests.drawing import (
    HEIGHT,
    WIDTH,
    clear_gif,
    deep_png,
    deep_rgb_tiff,
    encoded,
    icon,
    interlaced_png,
    mirrored_tga,
    picture,
    plain,
    png_chunk,
    ppm,
    psd,
    small_gray_png,
    tiled_tiff,
    ycck_jpeg,
)
from tests.media import photo


def animated(image_format: str, **options: Any) -> bytes:
    """Three frames: the picture, its negative, and blue."""
    frames = [picture(), ImageOps.invert(picture()), Image.new("RGB", (WIDTH, HEIGHT), "blue")]
    return encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **options)


def with_exif(image_format: str, block: bytes) -> bytes:
    """The picture with these bytes for its EXIF block; of a file of boxes, the first 200 of them, the rest zeros."""
    match image_format:
        case "JPEG":
            data, body = encoded(picture(), "JPEG"), b"Exif\0\0" + block
            return data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(body)) + body + data[2:]
        case "PNG":
            data = encoded(picture(), "PNG")
            return data[:33] + png_chunk(b"eXIf", block) + data[33:]
        case "WEBP":
            data, body = encoded(picture(), "WEBP", exif=b"Exif\0\0" + b"A" * 8), b"Exif\0\0" + block
            data = data[: data.index(b"EXIF")] + b"EXIF" + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
            return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
        case "TIFF":  # its first directory is the block: one tag of it is another one
            data = encoded(picture(), "TIFF", tiffinfo={305: "a program"})
            (directory,) = struct.unpack_from("<I", data, 4)
            entry = data.index(struct.pack("<HH", 305, 2), directory)
            return data[:entry] + block[10:22].ljust(12, b"\0") + data[entry + 12 :]
    marker = b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 305, 2, 200, 26) + bytes(4) + b"Q" * 200
    data = encoded(picture(), image_format, exif=b"Exif\0\0" + marker)
    return data.replace(marker, block[:200].ljust(len(marker), b"\0"))


def with_orientation(image_format: str, orientation: int, **options: Any) -> bytes:
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
    "png palette, one index clear": lambda: encoded(picture("P"), "PNG", transparency=picture("P").getpixel((9, 9))),
    "png palette with alpha": lambda: encoded(picture().quantize(256), "PNG", transparency=bytes(range(256))),
    "png gray, one value clear": lambda: encoded(picture("L"), "PNG", transparency=100),
    "png rgb, one colour clear": lambda: encoded(picture(), "PNG", transparency=picture().getpixel((9, 9))),
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
    "gif, one index clear": lambda: clear_gif(),
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
    "png gray of 1 bit, one value clear": lambda: small_gray_png(1, 0),
    "png gray of 2 bits, one value clear": lambda: small_gray_png(2, 2),
    "png gray of 4 bits, one value clear": lambda: small_gray_png(4, 5),
    "png gray of 16 bits, one value clear": lambda: small_gray_png(16, 100),
    "tiff la": lambda: encoded(picture("LA"), "TIFF"),
    "tiff palette with alpha": lambda: encoded(picture("RGBA").convert("PA"), "TIFF"),
    "tiff in a tile": lambda: tiled_tiff(WIDTH, HEIGHT, (48, 32), bytes(range(256)) * 6),
    "ico": lambda: encoded(picture(), "ICO", sizes=[(WIDTH, HEIGHT)]),
    "ico rgba": lambda: encoded(picture("RGBA"), "ICO", sizes=[(WIDTH, HEIGHT)]),
    "ico of several sizes": lambda: encoded(picture(), "ICO", sizes=[(16, 11), (WIDTH, HEIGHT), (32, 22)]),
    "ico bitmap": lambda: encoded(picture(), "ICO", sizes=[(WIDTH, HEIGHT)], bitmap_format="bmp"),
    "ico bitmap rgba": lambda: encoded(picture("RGBA"), "ICO", sizes=[(WIDTH, HEIGHT)], bitmap_format="bmp"),
    "ico bitmap palette": lambda: encoded(picture("P"), "ICO", sizes=[(WIDTH, HEIGHT)], bitmap_format="bmp"),
    "ico bitmap of 1 bit": lambda: encoded(picture("1"), "ICO", sizes=[(WIDTH, HEIGHT)], bitmap_format="bmp"),
    "ico larger than it says": lambda: icon(photo(300, 200, "PNG"), 0, 0),
    "ppm": lambda: encoded(picture(), "PPM"),
    "ppm gray": lambda: encoded(picture("L"), "PPM"),
    "ppm 1 bit": lambda: encoded(picture("1"), "PPM"),
    "ppm 16-bit gray": lambda: encoded(picture("I;16"), "PPM"),
    "ppm float": lambda: encoded(picture("L").convert("F"), "PPM"),
    "ppm of 10 bits": lambda: ppm(b"P6", b"1023", bytes(range(2)) * (WIDTH * HEIGHT * 3)),
    "ppm of 4 bits gray": lambda: ppm(b"P5", b"15", bytes(value % 16 for value in range(WIDTH * HEIGHT))),
    "ppm plain": lambda: ppm(b"P3", b"255", plain("RGB", 255)),
    "ppm plain gray of 10 bits": lambda: ppm(b"P2", b"1000", plain("L", 1000)),
    "ppm plain of 1 bit": lambda: ppm(b"P1", b"", plain("1", 1)),
    "tga": lambda: encoded(picture(), "TGA"),
    "tga packed": lambda: encoded(picture(), "TGA", compression="tga_rle"),
    "tga gray": lambda: encoded(picture("L"), "TGA"),
    "tga la": lambda: encoded(picture("LA"), "TGA"),
    "tga rgba packed": lambda: encoded(picture("RGBA"), "TGA", compression="tga_rle"),
    "tga palette": lambda: encoded(picture("P"), "TGA"),
    "tga mirrored": mirrored_tga,
    "psd": lambda: psd(picture()),
    "psd packed": lambda: psd(picture(), is_packed=True),
    "psd rgba": lambda: psd(picture("RGBA")),
    "psd gray": lambda: psd(picture("L"), is_packed=True),
    "psd palette": lambda: psd(picture("P")),
    "psd cmyk": lambda: psd(picture("CMYK")),
    "psd 1 bit": lambda: psd(picture("1")),
    "jpeg2000": lambda: encoded(picture(), "JPEG2000"),
    "jpeg2000 lossy": lambda: encoded(picture(), "JPEG2000", irreversible=True, quality_mode="dB", quality_layers=[38]),
    "jpeg2000 bare": lambda: encoded(picture(), "JPEG2000", no_jp2=True),
    "jpeg2000 in tiles": lambda: encoded(picture(), "JPEG2000", tile_size=(16, 16)),
    "jpeg2000 gray": lambda: encoded(picture("L"), "JPEG2000"),
    "jpeg2000 16-bit gray": lambda: encoded(picture("I;16"), "JPEG2000"),
    "jpeg2000 la": lambda: encoded(picture("LA"), "JPEG2000"),
    "jpeg2000 rgba": lambda: encoded(picture("RGBA"), "JPEG2000"),
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
        f"{name} orientation {orientation}": partial(with_orientation, name.upper(), orientation)
        for name in ("jpeg", "png", "webp", "tiff", "avif", "heif")
        for orientation in range(1, 9)
    },
}
"""Every kind of file, by name; the name starts with the format's."""


@cache
def file_of(kind: str) -> bytes:
    return KINDS[kind]()


@cache
def _transformers() -> tuple[Callable[[str], Image.Image], Callable[..., np.ndarray]]:
    """`load_image` and `convert_to_rgb` of transformers; where torchvision is installed the oracle knows how to import it."""
    with suppress(ImportError):
        import tests.golden.huggingface  # noqa: F401
    from transformers.image_transforms import convert_to_rgb
    from transformers.image_utils import load_image

    return load_image, convert_to_rgb


def loaded_by_transformers(data: bytes) -> Image.Image:
    """What Hugging Face's own loading gives to a processor."""
    load_image, _ = _transformers()
    return load_image("data:image/any;base64," + base64.b64encode(data).decode())


def converted_by_transformers(data: bytes) -> np.ndarray:
    """uint8 [height, width, 3], as a processor with `do_convert_rgb` sees a file that Hugging Face has loaded."""
    return rgb_by_transformers(loaded_by_transformers(data))


def rgb_by_transformers(image: Image.Image) -> np.ndarray:
    """What a processor with `do_convert_rgb` makes of a PIL image."""
    _, convert_to_rgb = _transformers()
    return convert_to_rgb(image, return_numpy=True)


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
