"""How an image file wants its picture turned: EXIF orientation, of the file's header or of what was loaded.

An EXIF block that cannot be read states no orientation: metadata costs no picture. (transformers' `load_image` raises there.)
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable

from PIL import ExifTags, Image, TiffImagePlugin, TiffTags

from preprocessor.media.image_formats import DAMAGE

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
SIDEWAYS = frozenset({5, 6, 7, 8})  # the stored rows are columns

# An entry of the item list whose type is Exif; ISO 14496-12, 8.11.6.2, versions 2 and 3: flags, number, protection, type.
_EXIF_ITEM = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)


def upright(image: Image.Image) -> Image.Image:
    """A loaded image as it wants to be seen; the same object where it stands so already.

    Not ImageOps.exif_transpose: it also copies what is upright already, and rewrites the EXIF block of what is not, which fails
    on odd tags.
    """
    transposition = _TRANSPOSITIONS.get(_orientation(image.getexif))
    return image if transposition is None else image.transpose(transposition)


def orientation_in_header(image: Image.Image, data: bytes) -> int:
    """The orientation, 1 to 8, that `upright` will find once the image is loaded, without loading it."""
    if isinstance(image, TiffImagePlugin.TiffImageFile) and ExifTags.Base.Orientation in image.tag_v2:
        return 1  # Pillow gives the size upright where the tag says so, but not where only XMP does
    if image.format != "PNG":
        return _orientation(image.getexif)
    # PngImageFile.getexif would decode the pixels, to see what stands behind them; its base class looks at what is known.
    with Image.open(io.BytesIO(_without_png_pixels(data)), formats=["PNG"]) as header:
        return _orientation(lambda: Image.Image.getexif(header))


def forget_directories(image: Image.Image) -> None:
    """Have a TIFF's load pass over what its EXIF directories hold: it would read all of them, and fail where one lies nowhere."""
    exif = image.getexif()
    for tag in TiffTags.TAGS_V2_GROUPS:
        if tag in exif:
            del exif[tag]


def without_exif_item(data: bytes) -> bytes | None:
    """An AVIF of which nobody reads the EXIF block, which a broken one makes unreadable; None for any other file.

    How it is turned stays: that is a property of the picture (ISO 23008-12, 6.5.10 and 6.5.12).
    """
    if data[4:11] != b"ftypavi":
        return None
    hidden = _EXIF_ITEM.sub(rb"\1skip", data)
    return None if hidden == data else hidden


def _orientation(read_exif: Callable[[], Image.Exif]) -> int:
    """What is stated and not yet shown by the pixels; 1 where nothing is, or nothing that can be read."""
    try:
        orientation: int = read_exif().get(ExifTags.Base.Orientation, 1)
    except DAMAGE:
        return 1
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
