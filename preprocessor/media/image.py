"""Image files in memory → facts, and RGB pixels as Hugging Face's own loading gives them.

Decoded by Pillow, since `transformers.image_utils.load_image` (transformers 5.23) is Pillow: first frame, orientation
applied, `convert("RGB")`. Every pixel here equals what `load_image` followed by the processors' `do_convert_rgb`
(`transformers.image_transforms.convert_to_rgb`) gives. What that means where one might expect otherwise:

* An alpha channel is dropped, not blended: `load_image` ends in `convert("RGB")`, so a see-through pixel shows the colour
  stored under it (RGBA, LA, or a palette with an alpha for each colour). Only a caller who hands the processor its own PIL
  image gets white.
* One transparent colour (a tRNS chunk, the transparent index of a GIF) is white: Pillow keeps it in `info` through
  `convert("RGB")`, and `convert_to_rgb` lays such a picture on white. All pixels of that colour are, whatever index they had.
  As Pillow reads them, the colour is not scaled with gray of 2 or 4 bits, and of 1 or 16 bits it is a shade of red.
* 16-bit gray is clipped, not scaled: of values 0 to 65535 all above 255 are white (Pillow's I;16 → RGB). 16-bit colour
  keeps its high bytes.
* Colour profiles are not applied, and CMYK is converted by Pillow's own formula.

Where a caller names a background, all that is transparent in any of these ways is laid on it instead.

Other decoders may round differently, and equal pixels come first.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageFile, TiffImagePlugin, UnidentifiedImageError

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, LimitExceeded, UnsupportedMedia
from preprocessor.media.image_formats import ACCEPTED_FORMATS, DAMAGE, decoder_of, formats_of
from preprocessor.media.image_headers import check_header, check_image_size, check_tile_size, ico_picture
from preprocessor.media.image_orientation import (
    SIDEWAYS,
    forget_directories,
    orientation_in_header,
    upright,
    without_exif_item,
)
from preprocessor.media.unread_formats import unread_image
from preprocessor.types.source import ImageInfo

_STRIP_BYTES = 1 << 20
_Colour = tuple[int, ...]  # red, green, blue
_WHITE: _Colour = (255, 255, 255)
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # TIFF 6.0, section 15


def probe_image(data: bytes, limits: Limits, key: str = "image") -> ImageInfo:
    """Format and size as displayed, from the header alone; no pixel is decoded.

    Raises:
        UnsupportedMedia: `EMPTY_MEDIA`, `NOT_MEDIA` or `UNSUPPORTED_FORMAT`.
        CorruptMedia: The header is damaged.
        LimitExceeded: `IMAGE_TOO_LARGE`, `SIDE_TOO_LONG`, `TOO_MANY_SCANS`, or `METADATA_TOO_LARGE` for what inflates without
            measure.
    """
    check_header(data, limits, key)
    picture = ico_picture(data)
    if picture is not None:
        return _probe_ico(picture, limits, key)
    with _open_image(data, key) as image:
        width, height = image.size
        check_image_size(width, height, limits, key)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            check_tile_size(image.tag_v2.get(_TILE_WIDTH), image.tag_v2.get(_TILE_LENGTH), width * height, key)
        if orientation_in_header(image, data) in SIDEWAYS:
            width, height = height, width
        name = "JPEG" if image.format == "MPO" else image.format or ""
        return ImageInfo(format=name, width_px=width, height_px=height, decoder=decoder_of(name))


def _probe_ico(picture: bytes, limits: Limits, key: str) -> ImageInfo:
    """Of the icon's picture, for Pillow decodes an icon when it opens one; of a bitmap, half the rows are its mask."""
    if not picture:
        raise _damaged(key)
    with _open_image(picture, key, ("PNG", "DIB")) as image:
        width, height = image.size
        height = height if image.format == "PNG" else height // 2
        check_image_size(width, height, limits, key)
        return ImageInfo(format="ICO", width_px=width, height_px=height, decoder=decoder_of("ICO"))


def decode_image(
    data: bytes, key: str = "image", background: str | None = None, *, is_frame: bool = False
) -> npt.NDArray[np.uint8]:
    """RGB uint8 [height, width, 3], upright; of an animation, the first frame.

    Checks no limit: probe the file first.

    Args:
        background: "#rrggbb" that everything transparent is laid on; None does as transformers does.
        is_frame: One of a video's frames, of which transformers keeps a single transparent colour as it is stored.
    Raises:
        UnsupportedMedia: `EMPTY_MEDIA`, `NOT_MEDIA` or `UNSUPPORTED_FORMAT`.
        CorruptMedia: The header is sound and the pixels are not, or not all there.
        LimitExceeded: `METADATA_TOO_LARGE`: metadata behind the pixels that inflates without measure.
    Source: transformers 5.23 image_utils.load_image and image_transforms.convert_to_rgb; differs: metadata that cannot be read
        or rewritten does no harm.
    """
    ground = _colour(background)
    with _open_image(data, key) as opened:
        image = _loaded(opened, key)
        if is_frame:
            image.info.pop("transparency", None)
        return _pixels_of(image, ground)


def load_picture(data: bytes, key: str = "image", background: str | None = None) -> Image.Image:
    """What `load_image` gives to a processor: RGB, with `info["transparency"]` where the processor may lay it on white.

    Args, Raises: As `decode_image`.
    """
    ground = _colour(background)
    with _open_image(data, key) as opened:
        image = _loaded(opened, key)
        if ground is not None and image.has_transparency_data:
            return Image.fromarray(_pixels_of(image, ground))
        return image.convert("RGB")


def _loaded(opened: ImageFile.ImageFile, key: str) -> Image.Image:
    """The picture decoded, upright, in its own mode."""
    stated_size = opened.size
    if isinstance(opened, TiffImagePlugin.TiffImageFile):
        forget_directories(opened)
    opened.load()
    if opened.format == "HEIF" and opened.size != stated_size:  # libheif believes the coded picture
        raise CorruptMedia(
            f"{key}: the header says {stated_size[0]}x{stated_size[1]} and the picture is {opened.width}x{opened.height}",
            media_key=key,
        )
    return upright(opened)


def _colour(background: str | None) -> _Colour | None:
    return None if background is None else ImageColor.getrgb(background)


def _pixels_of(image: Image.Image, background: _Colour | None) -> npt.NDArray[np.uint8]:
    """A strip at a time: of a whole picture Pillow makes two copies on the way into an array, and more where it converts."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    strip_height = max(1, _STRIP_BYTES // (3 * image.width))
    for top in range(0, image.height, strip_height):
        bottom = min(top + strip_height, image.height)
        strip = image if image.height <= strip_height else image.crop((0, top, image.width, bottom))
        pixels[top:bottom] = np.asarray(_rgb(strip, background))
    return pixels


def _rgb(image: Image.Image, background: _Colour | None) -> Image.Image:
    if background is not None and image.has_transparency_data:
        return _laid_on(background, image)
    if image.mode != "RGB":
        image = image.convert("RGB")
    # transformers 5.23, image_transforms.convert_to_rgb
    return image if image.info.get("transparency") is None else _laid_on(_WHITE, image)


def _laid_on(colour: _Colour, image: Image.Image) -> Image.Image:
    ground = Image.new("RGBA", image.size, colour)
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")


@contextmanager
def _open_image(data: bytes, key: str, formats: tuple[str, ...] = ()) -> Iterator[ImageFile.ImageFile]:
    """Open an image held in memory, as one of the formats that it may have, Pillow's errors mapped to ours."""
    if not data:
        raise UnsupportedMedia(f"{key}: the upload is empty; send the whole file", reason="EMPTY_MEDIA", media_key=key)
    try:
        with _opened(data, formats or formats_of(data)) as image:
            yield image
    except UnidentifiedImageError as error:
        raise _unidentified(data, key) from error
    except DAMAGE as error:
        if _is_metadata_bomb(error):
            raise LimitExceeded(
                f"{key}: the image's text or colour profile inflates beyond what is accepted",
                reason="METADATA_TOO_LARGE",
                media_key=key,
            ) from error
        raise _damaged(key) from error


def _opened(data: bytes, formats: tuple[str, ...]) -> ImageFile.ImageFile:
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except DAMAGE:
        if (hidden := without_exif_item(data)) is None:
            raise
        return Image.open(io.BytesIO(hidden), formats=formats)


def _unidentified(data: bytes, key: str) -> UnsupportedMedia:
    if (known := unread_image(data, ACCEPTED_FORMATS)) is not None:
        what, advice = known
        return UnsupportedMedia(
            f"{key}: the file is {what}, which is not read as an image; {advice}",
            reason="UNSUPPORTED_FORMAT",
            media_key=key,
        )
    return UnsupportedMedia(
        f"{key}: not an image that can be read; send one of {', '.join(ACCEPTED_FORMATS)}",
        reason="NOT_MEDIA",
        media_key=key,
    )


def _damaged(key: str) -> CorruptMedia:
    return CorruptMedia(f"{key}: the image cannot be decoded; the file is damaged or cut off", media_key=key)


def _is_metadata_bomb(error: Exception) -> bool:
    """Whether Pillow refused a PNG chunk that inflates too far (PngImagePlugin.MAX_TEXT_CHUNK, MAX_TEXT_MEMORY)."""
    return isinstance(error, ValueError) and str(error).startswith(("Decompressed data too large", "Too much memory"))
