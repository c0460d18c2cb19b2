"""Image files in memory → facts, and RGB pixels as Hugging Face's own loading gives them.

Decoded by Pillow, since `transformers.image_utils.load_image` (transformers 5.23) is Pillow: first frame, orientation
applied, `convert("RGB")`. Every pixel here equals what `load_image` followed by the processors' `do_convert_rgb`
(`transformers.image_transforms.convert_to_rgb`) gives. What that means where one might expect otherwise:

* Alpha is dropped, not blended: `load_image` ends in `convert("RGB")`, so a see-through pixel shows the colour stored
  under it, whatever the mode (RGBA, LA, or a palette or tRNS chunk with transparency). `convert_to_rgb` would blend onto
  white, and `do_convert_rgb` calls it, but after `load_image` no alpha is left to blend. Only a caller who hands the
  processor a PIL image of his own gets white.
* 16-bit gray is clipped, not scaled: of values 0 to 65535 all above 255 are white (Pillow's I;16 → RGB). 16-bit colour
  keeps its high bytes.
* Colour profiles are not applied, and CMYK is converted by Pillow's own formula.

Other decoders may round differently, and equal pixels come first.
"""

from __future__ import annotations

import importlib
import io
import logging
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import numpy.typing as npt
from PIL import AvifImagePlugin, ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError, features
from PIL import __version__ as pillow_version

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, LimitExceeded, UnsupportedMedia
from preprocessor.media.image_headers import check_header, check_image_size
from preprocessor.types.found import ImageInfo


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
    optional = {"AVIF": features.check("avif"), "HEIF": _heif is not None}
    return ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP", *(name for name, readable in optional.items() if readable))


# Pillow would also try formats that start other programs (EPS) or that no prompt needs; each is attack surface.
# A multi-picture JPEG (Pillow's "MPO") is opened by the JPEG plugin, and is one to us.
ACCEPTED_FORMATS = _accepted_formats()
"""Pillow's names of the formats that can be read here. AVIF depends on how Pillow was built; HEIF, which includes HEIC, on
whether `pillow-heif` is installed."""

_STRIP_BYTES = 1 << 20

# EXIF 2.32, tag 0x0112; as PIL.ImageOps.exif_transpose applies it
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset({5, 6, 7, 8})  # the stored rows are columns

# What Pillow 13's plugins raise on damaged data: those of the first line were met by `make fuzz` (an assertion of a palette
# that is not there, a division by a clock of 0 Hz), the others are what its parsers leak according to its own Image.open,
# which catches them.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, RuntimeError, AssertionError, ArithmeticError),
    *(struct.error, IndexError, KeyError, TypeError),
)


def probe_image(data: bytes, limits: Limits, key: str = "image") -> ImageInfo:
    """Format and size as displayed, from the header alone; no pixel is decoded.

    Raises:
        UnsupportedMedia: `EMPTY_MEDIA` or `NOT_MEDIA`.
        CorruptMedia: The header is damaged.
        LimitExceeded: `IMAGE_TOO_LARGE`, `SIDE_TOO_LONG`, `TOO_MANY_SCANS`, or `METADATA_TOO_LARGE` for what inflates without
            measure.
    """
    check_header(data, limits, key)
    with _open_image(data, key) as image:
        width, height = image.size
        check_image_size(width, height, limits, key)
        if _orientation_in_header(image, data) in _SIDEWAYS:
            width, height = height, width
        name = "JPEG" if image.format == "MPO" else image.format or ""
        return ImageInfo(format=name, width_px=width, height_px=height, decoder=decoder_of(name))


def decode_image(data: bytes, key: str = "image") -> npt.NDArray[np.uint8]:
    """RGB uint8 [height, width, 3], upright; of an animation, the first frame.

    Checks no limit: probe the file first.

    Raises:
        UnsupportedMedia: `EMPTY_MEDIA` or `NOT_MEDIA`.
        CorruptMedia: The header is sound and the pixels are not, or not all there.
        LimitExceeded: `METADATA_TOO_LARGE`: metadata behind the pixels that inflates without measure.
    Source: transformers 5.23 image_utils.load_image; differs: metadata that cannot be rewritten does no harm.
    """
    with _open_image(data, key) as opened:
        stated_size = opened.size
        opened.load()
        if opened.format == "HEIF" and opened.size != stated_size:  # libheif believes the coded picture
            raise CorruptMedia(
                f"{key}: the header says {stated_size[0]}x{stated_size[1]} and the picture is {opened.width}x{opened.height}",
                media_key=key,
            )
        image: Image.Image = opened
        # Not ImageOps.exif_transpose: it also copies what is upright already, and rewrites the EXIF block of what is not,
        # which fails on odd tags.
        transposition = _TRANSPOSITIONS.get(_orientation(image))
        if transposition is not None:
            image = image.transpose(transposition)
        if image.mode != "RGB":
            image = image.convert("RGB")
        return _pixels_of(image)


def _pixels_of(image: Image.Image) -> npt.NDArray[np.uint8]:
    """A strip at a time: of a whole picture Pillow makes two copies on the way into an array."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    strip_height = max(1, _STRIP_BYTES // (3 * image.width))
    for top in range(0, image.height, strip_height):
        bottom = min(top + strip_height, image.height)
        strip = image if image.height <= strip_height else image.crop((0, top, image.width, bottom))
        pixels[top:bottom] = np.asarray(strip)
    return pixels


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
        case "AVIF":
            library = f"libavif {features.version('avif')}"
            if dav1d := AvifImagePlugin.get_codec_version("dav1d"):
                library += f" / dav1d {dav1d}"
        case "HEIF" if _heif is not None:
            library = f"pillow-heif {_heif.__version__} / libheif {_heif.libheif_version()}"
    return f"Pillow {pillow_version}" + (f" / {library}" if library else "")  # GIF and BMP: Pillow's own code


def _orientation(image: Image.Image) -> int:
    """The orientation, 1 to 8, that a loaded image's pixels do not yet show; 1 where none is stated."""
    orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation


def _orientation_in_header(image: Image.Image, data: bytes) -> int:
    """What `_orientation` will say once the image is loaded, without loading it."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and ExifTags.Base.Orientation in image.tag_v2:
        return 1  # Pillow gives the size upright where the tag says so, but not where only XMP does
    if image.format != "PNG":
        return _orientation(image)
    # PngImageFile.getexif would decode the pixels, to see what stands behind them; its base class looks at what is known.
    with Image.open(io.BytesIO(_without_png_pixels(data)), formats=["PNG"]) as header:
        orientation: int = Image.Image.getexif(header).get(ExifTags.Base.Orientation, 1)
        return orientation


def _without_png_pixels(data: bytes) -> bytes:
    """A PNG's chunks but the pixels, so that opening it reads those behind them too."""
    kept, position, pixels_seen = [data[:8]], 8, False
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind, end = data[position + 4 : position + 8], position + 12 + length
        if kind == b"IEND" or (kind == b"fcTL" and pixels_seen):  # Pillow, too, stops where the next frame starts
            break
        if kind == b"IDAT":
            pixels_seen = True
        elif kind != b"fdAT":
            kept.append(data[position:end])
        position = end
    return b"".join(kept) + struct.pack(">I4sI", 0, b"IDAT", 0)  # Pillow's header ends at the first IDAT


@contextmanager
def _open_image(data: bytes, key: str) -> Iterator[ImageFile.ImageFile]:
    """Open an image held in memory, Pillow's errors mapped to ours."""
    if not data:
        raise UnsupportedMedia(f"{key}: the upload is empty; send the whole file", reason="EMPTY_MEDIA", media_key=key)
    try:
        with Image.open(io.BytesIO(data), formats=ACCEPTED_FORMATS) as image:
            yield image
    except UnidentifiedImageError as error:
        raise UnsupportedMedia(
            f"{key}: not an image that can be read; send one of {', '.join(ACCEPTED_FORMATS)}",
            reason="NOT_MEDIA",
            media_key=key,
        ) from error
    except _DAMAGE as error:
        if _is_metadata_bomb(error):
            raise LimitExceeded(
                f"{key}: the image's text or colour profile inflates beyond what is accepted",
                reason="METADATA_TOO_LARGE",
                media_key=key,
            ) from error
        raise CorruptMedia(
            f"{key}: the image cannot be decoded; the file is damaged or cut off", media_key=key
        ) from error


def _is_metadata_bomb(error: Exception) -> bool:
    """Whether Pillow refused a PNG chunk that inflates too far (PngImagePlugin.MAX_TEXT_CHUNK, MAX_TEXT_MEMORY)."""
    return isinstance(error, ValueError) and str(error).startswith(("Decompressed data too large", "Too much memory"))
