"""What an image file claims, read from its bytes before a library is let in: libraries make room for it when they open it."""

from __future__ import annotations

import re
import struct

from preprocessor.config import Limits
from preprocessor.errors import LimitExceeded
from preprocessor.media.sides import check_sides

_JPEG_START_OF_SCAN, _JPEG_END = 0xDA, 0xD9
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length: TEM, RST0 to RST7, SOI
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # in entropy-coded data; ITU-T T.81, B.1.1.5


def check_image_size(width: int, height: int, limits: Limits, key: str) -> None:
    """Raises:
    LimitExceeded: `IMAGE_TOO_LARGE`, `SIDE_TOO_LONG`.
    """
    if width * height > limits.max_image_pixels:
        raise LimitExceeded(
            f"{key}: the image is {width}x{height}; at most {limits.max_image_pixels} pixels are accepted",
            reason="IMAGE_TOO_LARGE",
            media_key=key,
        )
    check_sides(width, height, limits, key)


def check_header(data: bytes, limits: Limits, key: str) -> None:
    """What costs a library memory or time as soon as it opens a file, or more than its pixels do.

    Raises:
        LimitExceeded: `IMAGE_TOO_LARGE`, `SIDE_TOO_LONG`, `TOO_MANY_SCANS`.
    """
    if (canvas := webp_canvas(data)) is not None:
        check_image_size(*canvas, limits, key)
    if data[:3] == b"\xff\xd8\xff" and jpeg_scan_count(data, limits.max_image_scans) > limits.max_image_scans:
        raise LimitExceeded(
            f"{key}: the JPEG paints its picture in more than {limits.max_image_scans} scans; re-encode it",
            reason="TOO_MANY_SCANS",
            media_key=key,
        )


def webp_canvas(data: bytes) -> tuple[int, int] | None:
    """Width and height of an extended WebP, for which libwebp's animation decoder makes room twice; None for any other file.

    Source: RFC 9649, 2.7.
    """
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8X" or len(data) < 30:
        return None
    return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1


def jpeg_scan_count(data: bytes, most: int) -> int:
    """Scans of a JPEG's first picture, counted no further than to one above `most`."""
    count, position = 0, 2
    while count <= most and position + 4 <= len(data):
        if data[position] != 0xFF:  # libjpeg, too, looks for the next marker
            marker = _JPEG_MARKER.search(data, position)
            if marker is None:
                break
            position = marker.end() - 2
            continue  # it may lie too near to the end
        kind = data[position + 1]
        if kind == _JPEG_END:
            break
        if kind == 0xFF:  # fill bytes
            position += 1
            continue
        if kind in _JPEG_BARE or kind == 0:
            position += 2
            continue
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]
        if kind == _JPEG_START_OF_SCAN:
            count += 1
            marker = _JPEG_MARKER.search(data, position)
            if marker is None:
                break
            position = marker.end() - 2
    return count
