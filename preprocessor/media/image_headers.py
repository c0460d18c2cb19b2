"""What an image file claims, read from its bytes before a library is let in: libraries make room for it when they open it."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator

from preprocessor.config import Limits
from preprocessor.errors import LimitExceeded
from preprocessor.media.sides import check_sides

_JPEG_START_OF_SCAN, _JPEG_END = 0xDA, 0xD9
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length: TEM, RST0 to RST7, SOI
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # in entropy-coded data; ITU-T T.81, B.1.1.5

_GIF_MARK = re.compile(rb"[!,;]")  # an extension, a picture, the end; Pillow passes over anything else
_GIF_COMMENT, _GIF_APPLICATION = b"\xfe", b"\xff"
_MOST_BLOCKS = 100_000  # of extensions, of up to 255 bytes each: reading them takes Pillow a microsecond a block

_PLAIN_PPM = frozenset({b"P1", b"P2", b"P3"})
_MOST_COMMENTS = 1000  # Pillow copies what is left of a mebibyte for each

_LARGE_TILE_PIXELS = 1 << 24

_J2K_START = b"\xff\x4f\xff\x51"
_J2K_START_OF_TILE, _J2K_CODING_STYLE = 0xFF90, 0xFF52
_J2K_COMPONENTS = 4  # what Pillow has modes for
_J2K_TILES = 1024
_J2K_TILE_PIXELS = 64 * 64  # ten kilobytes of settings each, two and a half bytes a pixel
_J2K_PRECINCT_BITS = 4
_J2K_SMALL_PIXELS = 1 << 20


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
        LimitExceeded: `IMAGE_TOO_LARGE`, `SIDE_TOO_LONG`, `TOO_MANY_SCANS`, `METADATA_TOO_LARGE`.
    """
    if (canvas := webp_canvas(data)) is not None or (canvas := gif_canvas(data, key)) is not None:
        check_image_size(*canvas, limits, key)
    if data[:3] == b"\xff\xd8\xff" and jpeg_scan_count(data, limits.max_image_scans) > limits.max_image_scans:
        raise LimitExceeded(
            f"{key}: the JPEG paints its picture in more than {limits.max_image_scans} scans; re-encode it",
            reason="TOO_MANY_SCANS",
            media_key=key,
        )
    if data[:2] in _PLAIN_PPM and data.count(b"#") > _MOST_COMMENTS:
        raise _too_much_metadata("comments", _MOST_COMMENTS, key)
    if (codestream := _codestream_start(data)) is not None:
        _check_codestream(data, codestream, limits, key)


def check_tile_size(width: object, length: object, image_pixels: int, key: str) -> None:
    """Of a TIFF: room is made for a whole tile, however little of it the picture needs.

    Args:
        width, length: As the file's tags have them; None where it has no tiles.
    Raises:
        LimitExceeded: `IMAGE_TOO_LARGE`.
    """
    if not isinstance(width, int) or not isinstance(length, int):
        return
    if width * length > max(_LARGE_TILE_PIXELS, 2 * image_pixels):
        raise LimitExceeded(
            f"{key}: the image's tiles are {width}x{length}, far more than its {image_pixels} pixels need; re-encode it",
            reason="IMAGE_TOO_LARGE",
            media_key=key,
        )


def webp_canvas(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP, for which libwebp's animation decoder makes room twice; None for any other file.

    Source: RFC 9649, 2.5 to 2.7.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def gif_canvas(data: bytes, key: str) -> tuple[int, int] | None:
    """Width and height of a GIF, widened to its first picture where that sticks out; None for any other file.

    Pillow makes room for what the first picture leaves behind when it opens the file. This reads as it does
    (Pillow 13, GifImageFile._seek), oddities included, so that no file looks smaller here.

    Raises:
        LimitExceeded: `METADATA_TOO_LARGE`.
    Source: GIF89a, 18 to 26.
    """
    if data[:6] not in (b"GIF87a", b"GIF89a") or len(data) < 13:
        return None
    width, height = struct.unpack_from("<HH", data, 6)
    position = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    block_count = 0

    def skip() -> bool:
        """Skip one block of an extension; whether it was not the last."""
        nonlocal position, block_count
        block_count += 1
        if block_count > _MOST_BLOCKS:
            raise _too_much_metadata("blocks before its picture", _MOST_BLOCKS, key)
        size = data[position] if position < len(data) else 0
        position += 1 + size
        return size > 0

    while (found := _GIF_MARK.search(data, position)) is not None:
        position = found.end()
        if found[0] == b";":
            break
        if found[0] == b",":
            if position + 8 <= len(data):
                left, top, wide, high = struct.unpack_from("<HHHH", data, position)
                width, height = max(width, left + wide), max(height, top + high)
            break
        label, block = data[position : position + 1], data[position + 2 : position + 13]
        position += 1
        goes_on = skip()
        if label == _GIF_COMMENT and not goes_on:
            continue
        if label == _GIF_APPLICATION and block.startswith(b"NETSCAPE2.0"):
            skip()
        while skip():
            pass
    return width, height


def ico_picture(data: bytes) -> bytes | None:
    """The file within an icon that stands for it, a PNG or a bitmap without its file header; None for any other file.

    It is the largest, and of those of one size the one of the fewest colours, as Pillow chooses (Pillow 13, IcoFile).
    """
    if data[:4] != b"\0\0\1\0" or len(data) < 6 + 16:
        return None
    (count,) = struct.unpack_from("<H", data, 4)
    entries = list(struct.iter_unpack("<BBBBHHII", data[6 : 6 + 16 * min(count, (len(data) - 6) // 16)]))
    if not entries:
        return None

    def rank(entry: tuple[int, ...]) -> tuple[int, int]:
        width, height, colours, _, _, depth = entry[:6]
        depth = depth or (colours and math.ceil(math.log2(colours))) or 256
        return -(width or 256) * (height or 256), depth

    offset = min(entries, key=rank)[7]
    return data[offset:]


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


def _codestream_start(data: bytes) -> int | None:
    """Where the code of a JPEG 2000 begins: the file, or its first box of that name; None for any other file.

    Source: ITU-T T.800, A.4.1 and I.2.2.
    """
    if data[:4] == _J2K_START:
        return 0
    if data[:12] != b"\0\0\0\x0cjP  \r\n\x87\n":
        return None
    position = 12
    while position + 16 <= len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        start = position + (16 if size == 1 else 8)
        if name == b"jp2c":
            return start
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, position + 8)
        if size < start - position:
            break
        position += size
    return None


def _check_codestream(data: bytes, start: int, limits: Limits, key: str) -> None:
    """OpenJPEG makes room for every tile's settings when it reads the header, and for every precinct when it decodes.

    Source: ITU-T T.800, A.5.1 and A.6.1.
    """
    if data[start : start + 4] != _J2K_START or start + 42 > len(data):
        return
    right, bottom, left, top, tile_width, tile_height = struct.unpack_from(">IIIIII", data, start + 8)
    (component_count,) = struct.unpack_from(">H", data, start + 40)
    width, height = max(0, right - left), max(0, bottom - top)
    check_image_size(width, height, limits, key)
    tile_count = -(-right // max(1, tile_width)) * -(-bottom // max(1, tile_height))
    if component_count > _J2K_COMPONENTS or tile_count > max(_J2K_TILES, width * height // _J2K_TILE_PIXELS):
        raise LimitExceeded(
            f"{key}: the JPEG 2000 has {component_count} channels and {tile_count} tiles; at most {_J2K_COMPONENTS} channels and "
            f"tiles of {_J2K_TILE_PIXELS} pixels on average are accepted: re-encode it",
            reason="IMAGE_TOO_LARGE",
            media_key=key,
        )
    for precinct in _precincts(data, start + 2):
        if width * height > _J2K_SMALL_PIXELS and min(precinct & 15, precinct >> 4) < _J2K_PRECINCT_BITS:
            raise LimitExceeded(
                f"{key}: the JPEG 2000 is cut into precincts of less than {1 << _J2K_PRECINCT_BITS} pixels a side; re-encode it",
                reason="IMAGE_TOO_LARGE",
                media_key=key,
            )


def _precincts(data: bytes, position: int) -> Iterator[int]:
    """The sizes of precincts that the main header states: two exponents a byte."""
    while position + 4 <= len(data):
        marker, length = struct.unpack_from(">HH", data, position)
        if marker == _J2K_START_OF_TILE or length < 2:
            return
        if marker == _J2K_CODING_STYLE and data[position + 4 : position + 5] and data[position + 4] & 1:
            yield from data[position + 14 : position + 2 + length]
        position += 2 + length


def _too_much_metadata(what: str, most: int, key: str) -> LimitExceeded:
    return LimitExceeded(
        f"{key}: the image has more than {most} {what}; re-encode it", reason="METADATA_TOO_LARGE", media_key=key
    )
