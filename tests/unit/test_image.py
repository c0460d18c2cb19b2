"""Images: header facts, upright pixels, and what is refused."""

from __future__ import annotations

import io
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, LimitExceeded, UnsupportedMedia
from preprocessor.media.image import ACCEPTED_FORMATS, decode_image, probe_image
from tests.media import photo

FORMATS = ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"]
MODES = [("PNG", mode) for mode in ("1", "I;16", "L", "LA", "P", "RGB", "RGBA")] + [
    *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
    *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    ("GIF", "P"),
]


def png_with_orientation_behind_the_pixels() -> bytes:
    """A PNG whose eXIf chunk, orientation 6, follows its image data."""
    data, end = photo(40, 30, "PNG"), len(b"....IEND....")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return data[:-end] + chunk + data[-end:]


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_header_tells_format_and_size(image_format: str) -> None:
    info = probe_image(photo(41, 30, image_format, mode="P" if image_format == "GIF" else "RGB"), Limits())
    assert (info.format, info.width_px, info.height_px) == (image_format, 41, 30)


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_format_opens_in_a_fresh_process(image_format: str) -> None:
    """Pillow loads its plugins as they are needed: what this process has loaded must not matter."""
    code = (
        "import sys; from preprocessor.config import Limits; from preprocessor.media.image import probe_image;"
        "print(probe_image(sys.stdin.buffer.read(), Limits()).format)"
    )
    data = photo(41, 30, image_format, mode="P" if image_format == "GIF" else "RGB")
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=False)
    assert done.stdout.decode().strip() == image_format, done.stderr.decode()


@pytest.mark.parametrize(("image_format", "mode"), MODES)
def test_pixels_are_pillows_rgb(image_format: str, mode: str) -> None:
    data = photo(41, 30, image_format, mode=mode)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode_image(data), expected)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_probed_size_is_that_of_the_upright_pixels(image_format: str, orientation: int) -> None:
    data = photo(40, 30, image_format, orientation=orientation)
    info = probe_image(data, Limits())
    assert (info.height_px, info.width_px) == decode_image(data).shape[:2]


def test_an_orientation_behind_the_pixels_of_a_png_counts() -> None:
    info = probe_image(png_with_orientation_behind_the_pixels(), Limits())
    assert (info.width_px, info.height_px) == (30, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_turned_upright(orientation: int) -> None:
    data = photo(40, 30, "PNG", orientation=orientation)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode_image(data), expected)


@pytest.mark.parametrize("image_format", FORMATS)
def test_probing_decodes_no_pixels(image_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = photo(41, 30, image_format, mode="P" if image_format == "GIF" else "RGB")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    assert probe_image(data, Limits()).width_px == 41


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(buffer.getvalue())[0, 0].tolist() == [255, 0, 0]


def test_a_picture_cut_off_is_corrupt() -> None:
    data = photo(640, 480)
    with pytest.raises(CorruptMedia):
        decode_image(data[: len(data) // 2])


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(UnsupportedMedia) as refused:
        probe_image(b"", Limits())
    assert refused.value.reason == "EMPTY_MEDIA"


@pytest.mark.parametrize(
    "data", [b"\0" * 100, b"hello", b"\x89PNG\r\n\x1a\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"]
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia) as refused:
        probe_image(data, Limits())
    assert refused.value.reason == "NOT_MEDIA"


def test_a_format_off_the_list_is_refused() -> None:
    assert "PPM" not in ACCEPTED_FORMATS
    with pytest.raises(UnsupportedMedia):
        probe_image(photo(41, 30, "PPM"), Limits())


def test_more_pixels_than_the_limit_are_refused() -> None:
    with pytest.raises(LimitExceeded):
        probe_image(photo(41, 30, "PNG"), Limits(max_image_pixels=41 * 30 - 1))


def test_as_many_pixels_as_the_limit_are_accepted() -> None:
    assert probe_image(photo(41, 30, "PNG"), Limits(max_image_pixels=41 * 30))


def test_a_bomb_is_refused_by_its_header() -> None:
    """A PNG of 41x30 pixels that claims to be 60,000 pixels a side."""
    header = bytearray(photo(41, 30, "PNG"))
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(bytes(header[12:29])).to_bytes(4, "big")
    with pytest.raises(LimitExceeded):
        probe_image(bytes(header), Limits())
