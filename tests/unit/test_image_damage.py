"""Images that are damaged, cut off or made to exhaust whoever opens them."""

from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, LimitExceeded, PreprocessorError, UnsupportedMedia
from preprocessor.media.image import decode_image, probe_image
from preprocessor.media.image_formats import ACCEPTED_FORMATS
from tests.drawing import HEIGHT, WIDTH, encoded, picture, png, png_chunk
from tests.pictures import KINDS, file_of, mutated, png_with_behind_pixels

READABLE = [kind for kind in KINDS if kind.split()[0].upper() in ACCEPTED_FORMATS]
WHOLE_FILE_FORMATS = {"webp", "avif", "heif"}  # their libraries look at more than the header when they open a file


def outcome(data: bytes, limits: Limits) -> str:
    """The reason of the refusal, or "read" for a file that is read as probed."""
    try:
        info = probe_image(data, limits)
        pixels = decode_image(data)
    except PreprocessorError as error:
        return error.reason
    assert pixels.shape == (info.height_px, info.width_px, 3)
    return "read"


@pytest.mark.parametrize("seed", range(10))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(seed: int) -> None:
    """30 files a seed; a mutation may enlarge the header's size, hence the limit."""
    source = random.Random(seed)
    limits = Limits(max_image_pixels=1_000_000)
    found = {outcome(mutated(file_of(source.choice(READABLE)), seed * 1000 + n), limits) for n in range(30)}
    assert found <= {"read", "NOT_MEDIA", "CORRUPT_MEDIA", "EMPTY_MEDIA", "IMAGE_TOO_LARGE", "UNSUPPORTED_FORMAT"}
    assert {"read", "CORRUPT_MEDIA"} <= found, "mutations neither too harsh nor too mild"


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", [kind for kind in READABLE if "orient" not in kind and "animated" not in kind])
def test_a_file_cut_off_is_not_read(kind: str, part: float) -> None:
    data = file_of(kind)
    if kind in ("tiff multi-page", "jpeg multi-picture", "heif of several"):
        part /= 4  # the first picture lies in the first third of the file
    assert outcome(data[: int(len(data) * part)], Limits()) in ("NOT_MEDIA", "CORRUPT_MEDIA")


@pytest.mark.parametrize(
    ("kind", "header_bytes"), [("jpeg", 640), ("png", 60), ("gif", 800), ("bmp", 60), ("bmp palette", 1100)]
)
def test_a_header_without_its_pixels_still_probes(kind: str, header_bytes: int) -> None:
    data = file_of(kind)[:header_bytes]
    info = probe_image(data, Limits())
    assert (info.width_px, info.height_px) == (WIDTH, HEIGHT)
    with pytest.raises(CorruptMedia):
        decode_image(data)


def oversized(image_format: str) -> bytes:
    """A small file whose header claims 65,535 pixels a side."""
    data = bytearray(file_of(image_format.lower()))
    match image_format:
        case "PNG":
            data[16:24] = struct.pack(">II", 65535, 65535)
            data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
        case "JPEG":
            start = data.index(b"\xff\xc0") + 5
            data[start : start + 4] = struct.pack(">HH", 65535, 65535)
        case "GIF":
            data[6:10] = struct.pack("<HH", 65535, 65535)
        case "BMP":
            data[18:26] = struct.pack("<ii", 65535, 65535)
        case "TIFF":
            (offset,) = struct.unpack_from("<I", data, 4)
            for entry in range(offset + 2, offset + 2 + 12 * data[offset], 12):
                if struct.unpack_from("<H", data, entry)[0] in (256, 257):
                    data[entry : entry + 12] = data[entry : entry + 2] + struct.pack("<HII", 4, 1, 65535)
    return bytes(data)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "BMP", "TIFF"])
def test_a_header_of_65535_pixels_a_side_is_refused_by_our_limit(image_format: str) -> None:
    with pytest.raises(LimitExceeded, match="65535x65535; at most 256000000"):
        probe_image(oversized(image_format), Limits())


def test_our_limit_holds_above_that_of_pillow() -> None:
    """Pillow's own would be 178,956,970 pixels."""
    data = bytearray(file_of("png"))
    data[16:24] = struct.pack(">II", 16000, 16000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    assert probe_image(bytes(data), Limits()).width_px == 16000


BOMB = zlib.compress(bytes(128 << 20), 9)
METADATA_BOMBS = {
    "zTXt": png_chunk(b"zTXt", b"Comment\0\0" + BOMB),
    "iTXt": png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB),
    "iCCP": png_chunk(b"iCCP", b"profile\0\0" + BOMB),
}


@pytest.mark.parametrize("chunk", METADATA_BOMBS)
def test_metadata_that_inflates_without_measure_is_refused(chunk: str) -> None:
    data = file_of("png")
    with pytest.raises(LimitExceeded, match="inflates"):
        probe_image(data[:33] + METADATA_BOMBS[chunk] + data[33:], Limits())


def test_metadata_behind_the_pixels_that_inflates_without_measure_is_refused() -> None:
    with pytest.raises(LimitExceeded, match="inflates"):
        decode_image(png_with_behind_pixels(METADATA_BOMBS["zTXt"]))


def test_pixel_data_beyond_the_picture_is_not_read() -> None:
    """A PNG of 45x31 whose image data inflates to 128 MiB."""
    row = b"\0" + bytes(range(WIDTH)) * 3
    bomb = png(8, 2, row * HEIGHT + bytes(128 << 20))
    assert np.array_equal(decode_image(bomb), decode_image(png(8, 2, row * HEIGHT)))


@pytest.mark.parametrize("kind", ["gif animated", "tiff multi-page", "jpeg multi-picture", "png animated"])
def test_only_the_first_frame_of_a_file_is_decoded(kind: str) -> None:
    """What follows it is damaged, which would show."""
    data = file_of(kind)
    damaged = data[: len(data) * 3 // 4] + b"\xa5" * 64 + data[len(data) * 3 // 4 + 64 :]
    if kind == "tiff multi-page":
        with Image.open(io.BytesIO(data)) as image:
            image.seek(1)
            second = image.tag_v2._offset  # type: ignore[attr-defined]
        damaged = data[:second] + b"\xa5" * 64 + data[second + 64 :]
    assert np.array_equal(decode_image(damaged), decode_image(data))


def exif_of_overlapping_tags(tag_count: int, tag_bytes: int) -> bytes:
    """A TIFF header with many tags that all point at the same bytes: `tag_count` times as much, once read."""
    start = 8 + 2 + 12 * tag_count + 4
    tags = b"".join(struct.pack("<HHII", 40000 + n, 7, tag_bytes, start) for n in range(tag_count))
    return b"II*\0" + struct.pack("<IH", 8, tag_count) + tags + bytes(4) + bytes(tag_bytes)


def test_tags_that_share_their_bytes_are_read_once_and_quietly() -> None:
    """One by one they would take 2 GB, and Pillow would warn of each. Another process: pytest sets filters of its own."""
    data = file_of("png")
    bomb = data[:33] + png_chunk(b"eXIf", exif_of_overlapping_tags(10_000, 200_000)) + data[33:]
    code = (
        "import resource, sys; from preprocessor.config import Limits; from preprocessor.media.image import probe_image\n"
        "data = sys.stdin.buffer.read(); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "probe_image(data, Limits()); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=bomb, capture_output=True, check=True)
    assert done.stderr == b""
    assert int(done.stdout) < 50_000  # KiB


def test_a_megabyte_of_exif_is_no_obstacle() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x9286] = b"ASCII\0\0\0" + bytes(1 << 20)
    info = probe_image(encoded(picture(), "PNG", exif=exif), Limits())
    assert (info.width_px, info.height_px) == (HEIGHT, WIDTH)


def test_damage_of_the_header_of_a_whole_file_format_is_refused_at_the_probe() -> None:
    for name in sorted(WHOLE_FILE_FORMATS & {kind.split()[0] for kind in READABLE}):
        with pytest.raises((UnsupportedMedia, CorruptMedia)):
            probe_image(file_of(name)[:40], Limits())
