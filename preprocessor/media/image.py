"""Image files in memory → facts, and RGB pixels as Hugging Face's own loading gives them.

Decoded by Pillow, since `transformers.image_utils.load_image` is Pillow: first frame, EXIF rotation applied, converted to
RGB. Another decoder may round differently, and equal pixels come first.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, LimitExceeded, UnsupportedMedia
from preprocessor.types import ImageInfo

# Pillow would also try formats that start other programs (EPS) or that no prompt needs; each is attack surface.
# A multi-picture JPEG (MPO) is opened as JPEG.
ACCEPTED_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")

_TRANSPOSING_ORIENTATIONS = frozenset({5, 6, 7, 8})  # EXIF 2.32, tag 0x0112: the stored rows are columns
_PNG_ORIENTATION_CHUNKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")  # all that Pillow looks at


def probe_image(data: bytes, limits: Limits, key: str = "image") -> ImageInfo:
    """Format and size as displayed, from the header alone.

    Raises:
        UnsupportedMedia: `EMPTY_MEDIA` or `NOT_MEDIA`.
        LimitExceeded: More pixels than accepted.
    """
    with _open_image(data, key) as image:
        width, height = image.size
        if width * height > limits.max_image_pixels:
            raise LimitExceeded(
                f"{key}: the image is {width}x{height}; at most {limits.max_image_pixels} pixels are accepted",
                media_key=key,
            )
        if _stored_orientation(image, data) in _TRANSPOSING_ORIENTATIONS:
            width, height = height, width
        return ImageInfo(format=image.format or "", width_px=width, height_px=height)


def decode_image(data: bytes, key: str = "image") -> npt.NDArray[np.uint8]:
    """RGB uint8 [height, width, 3], upright.

    Raises:
        CorruptMedia: The header is sound and the pixels are not, or not all there.
    """
    with _open_image(data, key) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


def _stored_orientation(image: Image.Image, data: bytes) -> int:
    """The EXIF orientation that `image.size` does not yet show, 1 where there is none."""
    if image.format == "TIFF":  # Pillow gives its size upright
        return 1
    if image.format == "PNG" and not any(chunk in data for chunk in _PNG_ORIENTATION_CHUNKS):
        return 1  # it may stand behind the pixels, and to look there Pillow would decode them all
    orientation: int = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation


@contextmanager
def _open_image(data: bytes, key: str) -> Iterator[Image.Image]:
    """Open an image held in memory, Pillow's errors mapped to ours."""
    if not data:
        raise UnsupportedMedia(f"{key}: the upload is empty; send the whole file", reason="EMPTY_MEDIA", media_key=key)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # Limits decides what is too large
            with Image.open(io.BytesIO(data), formats=ACCEPTED_FORMATS) as image:
                yield image
    except UnidentifiedImageError as error:
        raise UnsupportedMedia(
            f"{key}: not an image that can be read; send one of {', '.join(ACCEPTED_FORMATS)}",
            reason="NOT_MEDIA",
            media_key=key,
        ) from error
    except Image.DecompressionBombError as error:
        raise LimitExceeded(f"{key}: the image has too many pixels", media_key=key) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise on damaged data
        raise CorruptMedia(
            f"{key}: the image cannot be decoded; the file is damaged or cut off", media_key=key
        ) from error
