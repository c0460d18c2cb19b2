"""Images: every kind of file as Hugging Face loads it, header facts without a decode, and what is refused."""

from __future__ import annotations

import io
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, features
from PIL import __version__ as pillow_version

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, LimitExceeded, UnsupportedMedia
from preprocessor.media.image import decode_image, probe_image
from preprocessor.media.image_formats import ACCEPTED_FORMATS, decoder_of
from tests.drawing import HEIGHT, WIDTH, picture
from tests.media import photo
from tests.pictures import KINDS, converted_by_transformers, file_of, loaded_by_transformers, with_orientation

READABLE = [kind for kind in KINDS if kind.split()[0].upper() in ACCEPTED_FORMATS]
NAMES = sorted({kind.split()[0] for kind in READABLE})
WITH_ALPHA = ["png rgba", "png la", "png palette with alpha", "webp lossless alpha", "tiff rgba"]


def test_the_formats_of_everyday_files_are_accepted() -> None:
    optional = {name for name in ("AVIF",) if features.check("avif")} | {
        name for name in ("JPEG2000",) if features.check("jpg_2000")
    }
    assert {"BMP", "GIF", "ICO", "JPEG", "PNG", "PPM", "PSD", "TGA", "TIFF", "WEBP"} | optional <= set(ACCEPTED_FORMATS)


@pytest.mark.parametrize("kind", READABLE)
def test_pixels_equal_those_of_transformers(kind: str) -> None:
    expected = converted_by_transformers(file_of(kind))
    pixels = decode_image(file_of(kind))
    assert (pixels.dtype, pixels.flags.c_contiguous, pixels.flags.writeable) == (np.uint8, True, True)
    assert np.array_equal(pixels, expected)


@pytest.mark.parametrize("kind", READABLE)
def test_the_probe_tells_format_and_size_and_decodes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    height, width, _ = decode_image(file_of(kind)).shape

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    monkeypatch.setattr("PIL.Image.Image.load", refuse)
    for plugin in ("PIL.WebPImagePlugin.WebPImageFile", "PIL.AvifImagePlugin.AvifImageFile"):
        monkeypatch.setattr(f"{plugin}.load", refuse)
    monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile.load", refuse)
    info = probe_image(file_of(kind), Limits())
    assert (info.format.lower(), info.height_px, info.width_px) == (kind.split()[0], height, width)


@pytest.mark.parametrize("name", NAMES)
def test_a_format_opens_in_a_fresh_process(name: str) -> None:
    """Pillow loads its plugins as they are needed: what this process has loaded must not matter."""
    code = (
        "import sys; from preprocessor.config import Limits; from preprocessor.media.image import probe_image;"
        "print(probe_image(sys.stdin.buffer.read(), Limits()).format)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=file_of(name), capture_output=True, check=False)
    assert done.stdout.decode().strip().lower() == name, done.stderr.decode()


@pytest.mark.parametrize("kind", WITH_ALPHA)
def test_alpha_is_dropped_and_not_laid_on_white(kind: str) -> None:
    """`load_image` leaves no alpha for `convert_to_rgb` to blend; only a PIL image of the caller's own is blended."""
    from transformers.image_transforms import convert_to_rgb

    data = file_of(kind)
    loaded = loaded_by_transformers(data)
    assert np.array_equal(convert_to_rgb(loaded, return_numpy=True), decode_image(data))
    with Image.open(io.BytesIO(data)) as unloaded:
        assert not np.array_equal(convert_to_rgb(unloaded, return_numpy=True), decode_image(data))


def test_16_bit_gray_is_clipped_and_not_scaled() -> None:
    values = np.asarray(picture("I;16"))
    pixels = decode_image(file_of("png 16-bit gray"))
    assert np.array_equal(pixels, np.minimum(values, 255).astype(np.uint8)[..., np.newaxis].repeat(3, 2))


@pytest.mark.parametrize("name", [name for name in NAMES if f"{name} orientation 6" in READABLE])
def test_the_eight_orientations_differ(name: str) -> None:
    """Or a comparison of orientations would compare nothing."""
    pictures = sorted(decode_image(with_orientation(name.upper(), n)).tobytes() for n in range(1, 9))
    assert all(one != other for one, other in pairwise(pictures))


@pytest.mark.parametrize("kind", [kind for kind in READABLE if "animated" in kind or "multi" in kind])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    first, pixels = np.asarray(picture()).astype(int), decode_image(file_of(kind)).astype(int)
    assert np.abs(pixels - first).mean() < 16 < np.abs(pixels - (255 - first)).mean()


@pytest.mark.parametrize("name", NAMES)
def test_the_decoder_is_named_with_its_version(name: str) -> None:
    libraries = decoder_of(name.upper()).split(" / ")
    assert libraries[0] == f"Pillow {pillow_version}"
    assert all(library.split()[-1][0].isdigit() for library in libraries)
    assert len(libraries) > 1 or name in ("bmp", "gif", "ico", "ppm", "psd", "tga")


def test_without_the_heif_library_a_heic_is_refused_by_name() -> None:
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from preprocessor.media.image import ACCEPTED_FORMATS, decode_image\n"
        "from preprocessor.errors import UnsupportedMedia\n"
        "assert 'HEIF' not in ACCEPTED_FORMATS\n"
        "try: decode_image(b'\\0\\0\\0\\x18ftypheic\\0\\0\\0\\0mif1heic' + bytes(64))\n"
        "except UnsupportedMedia as error: print(error.reason)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.stdout.decode().strip() == "UNSUPPORTED_FORMAT", done.stderr.decode()


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(UnsupportedMedia) as refused:
        probe_image(b"", Limits())
    assert refused.value.reason == "EMPTY_MEDIA"


@pytest.mark.parametrize("data", [b"\0" * 100, b"hello", b"\x89PNG\r\n\x1a\n", b"8BPS\0\1" + bytes(20)])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia) as refused:
        probe_image(data, Limits())
    assert refused.value.reason == "NOT_MEDIA"


def test_a_picture_cut_off_is_corrupt() -> None:
    data = photo(640, 480)
    with pytest.raises(CorruptMedia):
        decode_image(data[: len(data) // 2])


def test_more_pixels_than_the_limit_are_refused() -> None:
    with pytest.raises(LimitExceeded):
        probe_image(file_of("png"), Limits(max_image_pixels=WIDTH * HEIGHT - 1))


def test_as_many_pixels_as_the_limit_are_accepted() -> None:
    assert probe_image(file_of("png"), Limits(max_image_pixels=WIDTH * HEIGHT))
