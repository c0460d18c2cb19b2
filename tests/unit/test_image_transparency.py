"""What becomes of transparent parts of an image: as transformers has it, or laid on the colour that is asked for."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.config.values import parse_background
from preprocessor.errors import InvalidRequest
from preprocessor.media.image import decode_image, load_picture
from preprocessor.media.image_formats import ACCEPTED_FORMATS
from preprocessor.models.registry import load_model
from preprocessor.service.reading import read_spec
from preprocessor.types.request import ChatPrompt, Media, MediaPart, Message, Modality, PreparationRequest
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.drawing import encoded, picture
from tests.pictures import (
    KINDS,
    converted_by_transformers,
    file_of,
    loaded_by_transformers,
    rgb_by_transformers,
    with_orientation,
)

READABLE = [kind for kind in KINDS if kind.split()[0].upper() in ACCEPTED_FORMATS]
WITH_A_CLEAR_COLOUR = [kind for kind in READABLE if kind.endswith("clear")]
WITH_ALPHA = [kind for kind in READABLE if {"rgba", "la", "alpha"} & set(kind.split()) and "16-bit la" not in kind]
# As Pillow reads them: gray of few bits is scaled and its clear value is not, so that no pixel has it.
SEEN_AS_CLEAR = [kind for kind in WITH_A_CLEAR_COLOUR if "of 2 bits" not in kind and "of 4 bits" not in kind]
READ_WITH_ALPHA = [kind for kind in WITH_ALPHA if not kind.startswith("bmp")]  # which Pillow reads as if it had none
COLOURS = {"#ffffff": (255, 255, 255), "#000000": (0, 0, 0), "#3c78b4": (60, 120, 180)}


def composite(data: bytes, colour: tuple[int, int, int]) -> np.ndarray:
    """What plain Pillow makes of a file on a ground of one colour."""
    with Image.open(io.BytesIO(data)) as image:
        laid = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*colour, 255))
    return np.asarray(Image.alpha_composite(ground, laid).convert("RGB"))


@pytest.mark.parametrize("kind", ["png palette, one index clear", "png rgb, one colour clear", "gif, one index clear"])
def test_one_clear_colour_is_white_as_it_is_in_transformers(kind: str) -> None:
    pixels = decode_image(file_of(kind))
    loaded = np.asarray(loaded_by_transformers(file_of(kind)))
    changed = (pixels != loaded).any(axis=2)
    assert changed.any()
    assert (pixels[changed] == 255).all()


def test_every_pixel_of_the_clear_colour_is_white_whatever_its_index() -> None:
    image = Image.new("P", (64, 32), 1)
    image.putpalette([9, 9, 9, 200, 100, 0, 200, 100, 0])
    image.paste(2, (0, 0, 32, 32))
    data = encoded(image, "PNG", transparency=2)
    assert (decode_image(data) == 255).all()
    assert np.array_equal(decode_image(data), converted_by_transformers(data))


@pytest.mark.parametrize("kind", WITH_A_CLEAR_COLOUR)
def test_a_processor_gets_the_clear_colour_that_it_would_get_from_transformers(kind: str) -> None:
    """Whether it lays it on white is its own `do_convert_rgb`."""
    ours, theirs = load_picture(file_of(kind)), loaded_by_transformers(file_of(kind))
    assert (ours.mode, ours.info.get("transparency")) == ("RGB", theirs.info.get("transparency"))
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("kind", READABLE)
def test_a_processor_gets_the_pixels_that_it_would_get_from_transformers(kind: str) -> None:
    assert np.array_equal(rgb_by_transformers(load_picture(file_of(kind))), converted_by_transformers(file_of(kind)))


@pytest.mark.parametrize("background", COLOURS)
@pytest.mark.parametrize("kind", WITH_ALPHA + WITH_A_CLEAR_COLOUR)
def test_a_background_lies_under_all_that_is_transparent(kind: str, background: str) -> None:
    expected = composite(file_of(kind), COLOURS[background])
    assert np.array_equal(decode_image(file_of(kind), background=background), expected)
    assert np.array_equal(np.asarray(load_picture(file_of(kind), background=background)), expected)


@pytest.mark.parametrize("kind", SEEN_AS_CLEAR + READ_WITH_ALPHA)
def test_two_backgrounds_differ(kind: str) -> None:
    """Or a comparison of backgrounds would compare nothing."""
    first, second = (decode_image(file_of(kind), background=colour) for colour in ("#000000", "#3c78b4"))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "bmp", "tiff cmyk", "png 16-bit gray"])
def test_an_opaque_image_is_the_same_on_any_background(kind: str) -> None:
    assert np.array_equal(decode_image(file_of(kind), background="#3c78b4"), decode_image(file_of(kind)))


def test_a_processor_finds_nothing_left_to_lay_on_white() -> None:
    loaded = load_picture(file_of("png rgb, one colour clear"), background="#000000")
    assert np.array_equal(rgb_by_transformers(loaded), composite(file_of("png rgb, one colour clear"), (0, 0, 0)))


def test_a_tall_image_is_laid_on_its_background_strip_by_strip() -> None:
    data = encoded(picture("RGBA", width=500, height=1500), "PNG")
    assert np.array_equal(decode_image(data, background="#3c78b4"), composite(data, COLOURS["#3c78b4"]))


def test_a_turned_image_is_laid_on_its_background() -> None:
    data = encoded(picture("RGBA"), "PNG", exif=Image.open(io.BytesIO(with_orientation("PNG", 6))).getexif())
    expected = np.rot90(composite(data, COLOURS["#3c78b4"]), -1)
    assert np.array_equal(decode_image(data, background="#3c78b4"), expected)


@pytest.mark.parametrize(
    ("text", "colour"),
    [("white", "#ffffff"), ("BLACK", "#000000"), ("#3C78b4", "#3c78b4"), (" none ", "none")],
)
def test_a_background_is_a_name_or_six_digits(text: str, colour: str) -> None:
    assert parse_background(text) == colour


@pytest.mark.parametrize("text", ["", "red", "#fff", "#12345g", "#1234567", "ffffff", "rgb(1,2,3)", "#ffffff\n#", "\0"])
def test_any_other_background_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no background"):
        parse_background(text)


def asked(background: str, default: str = "none", modality: pb.Modality.ValueType = pb.MODALITY_IMAGE) -> str | None:
    """What becomes of a spec's background in a deployment that has one."""
    medium = pb.Media(key="m", modality=modality, inline_data=b"x", background=background)
    request, _ = read_spec(pb.PrepareSpec(text="x", media=[medium]), default)
    return request.media[0].background


def test_a_caller_s_background_goes_before_the_deployment_s() -> None:
    assert asked("black", "#ffffff") == "#000000"
    assert asked("", "#ffffff") == "#ffffff"
    assert asked("none", "#ffffff") is None
    assert asked("") is None


def test_a_deployment_s_background_is_for_images_alone() -> None:
    assert asked("", "#ffffff", pb.MODALITY_VIDEO) is None


def test_a_background_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(
        InvalidRequest, match=r"m: background: 'pink' .* write white, black, #rrggbb or none"
    ) as refused:
        asked("pink")
    assert refused.value.reason == "INVALID_BACKGROUND"


def request(background: str | None, modality: Modality = Modality.IMAGE) -> PreparationRequest:
    medium = Media("i", modality, file_of("png rgba"), background=background)
    return PreparationRequest(ChatPrompt((Message("user", (MediaPart("i"),)),)), (medium,))


def test_only_an_image_takes_a_background() -> None:
    with pytest.raises(InvalidRequest, match="only an image takes a background") as refused:
        pipeline.plan(load_model("qwen3-vl"), request("#ffffff", Modality.VIDEO), Limits())
    assert refused.value.reason == "INVALID_BACKGROUND"


def test_a_background_changes_the_digest_and_the_pixels() -> None:
    model = load_model("qwen3-vl")
    prepared = [pipeline.prepare(model, request(background)) for background in (None, "#ffffff", "#000000")]
    digests = {bytes(one.tensors["item_hash"]) for one in prepared}
    pixels = {one.tensors["pixel_patches"].tobytes() for one in prepared}
    assert (len(digests), len(pixels)) == (3, 3)
