"""Which image formats are read, by which libraries, and what is said of the others."""

from __future__ import annotations

import importlib
import logging
import struct
import warnings
from types import ModuleType

from PIL import AvifImagePlugin, Image, features
from PIL import __version__ as pillow_version


def _import_heif() -> ModuleType | None:
    """`pillow_heif`, where a deployment chose to install it: its wheel holds GPL code."""
    try:
        return importlib.import_module("pillow_heif")
    except ImportError:
        return None


_heif = _import_heif()

# Process-wide settings of Pillow, once, for it takes them no other way:
Image.MAX_IMAGE_PIXELS = None  # `Limits` decides what is too large, before a pixel is decoded
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # one worker, one core: parallelism is across requests
# Damaged metadata makes Pillow warn once a tag: a file of 12 bytes a line of log. What matters raises.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # a file is not to write into the service's log

if _heif is not None:
    _heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


def _accepted_formats() -> tuple[str, ...]:
    optional = {"AVIF": features.check("avif"), "JPEG2000": features.check("jpg_2000"), "HEIF": _heif is not None}
    always = ("BMP", "GIF", "ICO", "JPEG", "PNG", "PPM", "PSD", "TGA", "TIFF", "WEBP")
    return (*always, *(name for name, readable in optional.items() if readable))


# Pillow would also try formats that start other programs (EPS) or that no prompt needs; each is attack surface.
# A multi-picture JPEG (Pillow's "MPO") is opened by the JPEG plugin, and is one to us.
ACCEPTED_FORMATS = _accepted_formats()
"""Pillow's names of the formats that can be read here. PPM includes PGM, PBM and PFM. AVIF and JPEG 2000 depend on how Pillow
was built; HEIF, which includes HEIC, on whether `pillow-heif` is installed."""

# What Pillow 13's plugins raise on damaged data: those of the first line were met by `make fuzz` (an assertion of a palette
# that is not there, a division by a clock of 0 Hz), the others are what its parsers leak according to its own Image.open,
# which catches them.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, RuntimeError, AssertionError, ArithmeticError),
    *(struct.error, IndexError, KeyError, TypeError),
)

_TGA_SIZE = 18
_TGA_DEPTHS = {1: (8,), 2: (16, 24, 32), 3: (1, 8, 16)}  # by type of image, as Pillow reads them


def formats_of(data: bytes) -> tuple[str, ...]:
    """The accepted formats that a file may have. TGA has no mark at the start, so that only a header that makes sense counts."""
    return ("TGA",) if _is_tga(data) else tuple(name for name in ACCEPTED_FORMATS if name != "TGA")


def _is_tga(data: bytes) -> bool:
    """Truevision TGA File Format Specification 2.0, fields 1 to 5."""
    if len(data) < _TGA_SIZE or (data[:4] == b"\0\0\2\0" and data[4:6] != b"\0\0"):  # a cursor, with its count
        return False
    has_map, kind, map_depth, depth = data[1], data[2], data[7], data[16]
    if has_map > 1 or depth not in _TGA_DEPTHS.get(kind & ~8, ()) or (kind & ~8 == 1 and not has_map):
        return False
    if has_map and map_depth not in (16, 24, 32):
        return False
    width, height = int.from_bytes(data[12:14], "little"), int.from_bytes(data[14:16], "little")
    return width > 0 and height > 0 and not data[17] & 0xC0  # no picture is interleaved since 1989


def decoder_of(image_format: str) -> str:
    """The libraries that decode a format, with versions: "Pillow 13.0.0 / libjpeg-turbo 3.2.0".

    Args:
        image_format: `ImageInfo.format`.
    """
    library = ""
    match image_format:
        case "JPEG":
            turbo = features.version("libjpeg_turbo")
            library = f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"
        case "PNG":
            zlib_ng = features.version("zlib_ng")
            library = f"zlib-ng {zlib_ng}" if zlib_ng else f"zlib {features.version('zlib')}"
        case "TIFF":
            library = f"libtiff {features.version('libtiff')}"
        case "WEBP":
            library = f"libwebp {features.version('webp')}"
        case "JPEG2000":
            library = f"OpenJPEG {features.version('jpg_2000')}"
        case "AVIF":
            library = f"libavif {features.version('avif')}"
            if dav1d := AvifImagePlugin.get_codec_version("dav1d"):
                library += f" / dav1d {dav1d}"
        case "HEIF" if _heif is not None:
            library = f"pillow-heif {_heif.__version__} / libheif {_heif.libheif_version()}"
    return f"Pillow {pillow_version}" + (f" / {library}" if library else "")  # the others: Pillow's own code
