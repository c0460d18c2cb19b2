"""Images are judged by their headers, and by what those say of the room that a library would make, before it is let in."""

from __future__ import annotations

import io
import random
import struct
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, LimitExceeded
from preprocessor.media.image import decode_image, probe_image
from preprocessor.media.image_formats import ACCEPTED_FORMATS
from preprocessor.media.image_headers import gif_canvas, webp_canvas
from tests.drawing import HEIGHT, WIDTH, encoded, gif, icon, picture, png, ppm, psd, tiled_tiff
from tests.fuzz import dangerous_images
from tests.media import photo
from tests.pictures import KINDS, file_of, loaded_by_transformers, mutated, with_exif

VAST = {
    "gif": lambda: gif(40_000, 40_000),
    "gif that keeps a background": lambda: gif(40_000, 40_000, disposal=2),
    "gif that sticks out of its screen": lambda: gif(40_000, 40_000, disposal=2, screen=(16, 16)),
    "gif that restores what was before": lambda: gif(40_000, 40_000, disposal=3, screen=(16, 16)),
    "gif behind a comment": lambda: gif(40_000, 40_000, disposal=2, before=b"!\xfe\x05hello\0"),
    "gif behind an extension without a block": lambda: gif(40_000, 40_000, disposal=2, before=b"!\x01\0\0"),
    "webp": lambda: dangerous_images.plain_webp(16_383, 16_383),
    "webp lossless": lambda: dangerous_images.lossless_webp(16_384, 16_384),
    "webp canvas": lambda: dangerous_images.webp_canvas(1 << 14, 1 << 14),
    "ico of a png": lambda: icon(png(8, 6, b"", size=(60_000, 60_000))),
    "ico of a bitmap": lambda: icon(struct.pack("<IiiHHIIiiII", 40, 60_000, 120_000, 1, 32, 0, 0, 0, 0, 0, 0)),
    "ppm": lambda: ppm(b"P6", b"255", b"", (60_000, 60_000)),
    "ppm plain": lambda: ppm(b"P1", b"", b"", (60_000, 60_000)),
    "tga": lambda: struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 60_000, 60_000, 24, 0),
    "psd": lambda: psd(picture(), head=struct.pack(">4sH6xHIIHH", b"8BPS", 1, 3, 60_000, 60_000, 8, 3)),
    "bmp": lambda: b"BM" + bytes(12) + struct.pack("<IiiHHIIiiII", 40, 60_000, -60_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "apng": lambda: png(8, 6, b"", size=(60_000, 60_000)),
}
if "JPEG2000" in ACCEPTED_FORMATS:
    VAST |= {
        "jpeg2000": lambda: dangerous_images.jpeg2000(width=60_000, height=60_000),
        "jpeg2000 of many channels": lambda: dangerous_images.jpeg2000(component_count=16_384),
        "jpeg2000 of many tiles": lambda: dangerous_images.jpeg2000(width=512, height=512, tile=2),
        "jpeg2000 whose code is larger than its box": lambda: dangerous_images.jpeg2000(
            60_000, 60_000, stated=(16, 16)
        ),
        "jpeg2000 of tiny precincts": lambda: dangerous_images.jpeg2000(2048, 2048, precinct=0x11),
    }


@pytest.mark.parametrize("name", VAST)
def test_a_few_bytes_that_claim_a_vast_picture_are_refused_before_room_is_made(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow makes room through these, and a library of its own only behind what is checked here."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("room was made")

    data = VAST[name]()
    Image.init()  # loading its plugins makes room for pictures of their own
    for maker in ("fill", "new"):
        monkeypatch.setattr(f"PIL.Image.core.{maker}", refuse)
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile._open", refuse)
    tracemalloc.start()
    try:
        with pytest.raises(LimitExceeded) as refused:
            probe_image(data, Limits())
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert refused.value.reason == "IMAGE_TOO_LARGE"


def test_a_gif_of_an_ordinary_canvas_is_read() -> None:
    assert probe_image(file_of("gif"), Limits()).width_px == WIDTH


def test_a_gif_is_as_large_as_pillow_says_whatever_stands_before_its_picture() -> None:
    source = random.Random(1)
    blocks = [
        *(b"!\xf9\x04\x08\0\0\0\0", b"!\xf9\0", b"!\xfe\0", b"!\xfe\3abc\0", b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0", b"\0"),
        *(b"!\xff\x0bNETSCAPE2.0\0", b"!\x01\0\0", b"!\x01\2,,\0", b"junk", b"!\xfe\1;\1,\0", b"!\xff\4,!;,\0"),
    ]
    compared = 0
    for seed in range(600):
        data = gif(
            *(source.randrange(1, 99), source.randrange(1, 99)),
            screen=(source.randrange(1, 99), source.randrange(1, 99)),
            before=b"".join(source.choices(blocks, k=source.randrange(4))),
        )
        data = mutated(data, seed) if seed % 2 else data
        try:
            with Image.open(io.BytesIO(data), formats=["GIF"]) as image:
                size = image.size
        except Exception:
            continue
        compared += 1
        assert gif_canvas(data, "it") == size
    assert compared > 200


def test_extensions_without_end_are_refused() -> None:
    with pytest.raises(LimitExceeded, match="blocks before its picture") as refused:
        probe_image(gif(9, 9, before=b"!\xfe" + b"\1x" * 100_001 + b"\0"), Limits())
    assert refused.value.reason == "METADATA_TOO_LARGE"


def test_comments_without_end_are_refused() -> None:
    with pytest.raises(LimitExceeded, match="comments") as refused:
        probe_image(ppm(b"P2", b"255", b"#\n" * 1001 + b"7 " * (WIDTH * HEIGHT)), Limits())
    assert refused.value.reason == "METADATA_TOO_LARGE"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("webp")])
def test_the_canvas_of_every_webp_is_read_from_its_bytes(kind: str) -> None:
    with Image.open(io.BytesIO(file_of(kind))) as image:
        assert webp_canvas(file_of(kind)) == image.size


def test_a_tiff_of_tiles_far_larger_than_itself_is_refused() -> None:
    with pytest.raises(LimitExceeded, match="tiles") as refused:
        probe_image(dangerous_images.tiff_of_a_vast_tile(), Limits())
    assert refused.value.reason == "IMAGE_TOO_LARGE"


def test_a_tiff_whose_tiles_stick_out_as_they_do_is_read() -> None:
    assert probe_image(tiled_tiff(WIDTH, HEIGHT, (256, 256), bytes(1 << 16)), Limits()).width_px == WIDTH


def test_an_icon_is_as_large_as_its_picture_whatever_its_directory_says() -> None:
    info = probe_image(file_of("ico larger than it says"), Limits())
    assert (info.format, info.width_px, info.height_px) == ("ICO", 300, 200)


def test_an_icon_stands_for_its_largest_picture_of_the_fewest_colours() -> None:
    """As Pillow chooses; the order in the file does not matter but where both are equal."""
    source = random.Random(2)
    for _ in range(40):
        files = [photo(side, side, "PNG", seed=side) for side in source.choices(range(3, 9), k=4)]
        head, body = b"\0\0\1\0" + struct.pack("<H", len(files)), b""
        for file in files:
            side, colours = source.choice((3, 4, 0)), source.choice((0, 1, 2, 16))
            start = 6 + 16 * len(files) + len(body)
            depth = source.choice((0, 1, 8, 32))
            head += struct.pack("<BBBBHHII", side, side, colours, 0, 1, depth, len(file), start)
            body += file
        info = probe_image(head + body, Limits())
        assert (info.width_px, info.height_px) == loaded_by_transformers(head + body).size


def test_an_icon_of_nothing_is_damaged() -> None:
    with pytest.raises(CorruptMedia):
        probe_image(icon(b""), Limits())


@pytest.mark.parametrize(
    "first", [b"XXXX" + bytes(20), b"II", b"II*\0\xff\xff\xff\x7f", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0" + bytes(4)]
)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF"])
def test_a_broken_exif_block_costs_no_picture(image_format: str, first: bytes) -> None:
    if image_format not in ACCEPTED_FORMATS:
        pytest.skip("this Pillow does not read it")
    data, plain = with_exif(image_format, first), encoded(picture(), image_format)
    assert data != plain
    assert np.array_equal(decode_image(data), decode_image(plain))
    assert probe_image(data, Limits()) == probe_image(plain, Limits())


@pytest.mark.parametrize(
    ("tag", "kind", "value"),
    [
        (34665, 4, 0xFFFFFFF0),
        (34665, 9, 0xFFFFFFFB),
        (34853, 9, 0xFFFFFFFB),
        (34665, 2, 0x41414141),
        (274, 2, 6),
        (274, 3, 99),
    ],
)
def test_a_broken_tag_costs_no_tiff(tag: int, kind: int, value: int) -> None:
    data = with_exif("TIFF", b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", tag, kind, 1, value))
    assert np.array_equal(decode_image(data), decode_image(file_of("tiff")))


@pytest.mark.parametrize("kind", [2, 7, 5])
def test_an_orientation_of_a_wrong_type_is_none(kind: int) -> None:
    block = b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 274, kind, 1, 6) + bytes(4)
    assert np.array_equal(decode_image(with_exif("PNG", block)), decode_image(file_of("png")))
