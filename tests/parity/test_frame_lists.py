"""Frames that the caller has chosen come out as transformers makes them of the same frames and their metadata."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping

import pytest

from preprocessor.models.family import Model
from preprocessor.types.request import FrameList, Media, PixelForm
from tests.drawing import encoded, picture
from tests.frame_lists import asked, at_times, image_files, listed, raw
from tests.media import photo

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed", allow_module_level=True)

from tests.parity.compare import differences

NTSC = FrameList((), fps=30_000 / 1001)
MIXED = [
    photo(120, 70, "JPEG", orientation=3),
    photo(120, 70, "PNG", mode="RGBA"),
    photo(120, 70, "WEBP", mode="RGBA", seed=2),
    photo(120, 70, "PNG", mode="P", seed=3),
    photo(120, 70, "PNG", mode="LA", seed=4),
    photo(120, 70, "JPEG", mode="CMYK", seed=5),
]
CASES: Mapping[str, Media] = {
    "at a rate": listed(image_files(6)),
    "at times": listed(image_files(4), frames=at_times(0.0, 0.7, 2.0, 9.15)),
    "at times that begin late": listed(image_files(5), frames=at_times(12.25, 12.5, 13.0, 20.0, 20.04)),
    "of a longer video": listed(image_files(4), frames=at_times(1, 2, 4, 8, duration_seconds=33.4)),
    "an odd number": listed(image_files(7, 57, 130, "PNG"), frames=NTSC),
    "two": listed(image_files(2, image_format="WEBP"), frames=FrameList((), fps=0.25)),
    "of several formats and modes": listed(MIXED),
    "of one transparent colour": listed([encoded(picture(), "PNG", transparency=picture().getpixel((3, 3)))] * 2),
    "raw": raw(5, 101, 75),
    "raw of the target's size": raw(2, 320, 320),
    "with a budget": listed(image_files(4, 640, 360), min_pixels=10_000, max_pixels=90_000),
    "under the cap on a frame's pixels": listed(
        image_files(5, 640, 360), cap_pixels_per_frame=True, max_pixels=400_000
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_frames_come_out_as_from_hugging_face(model: Model, case: str) -> None:
    assert differences(model, asked(CASES[case])) == []


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl"])
@pytest.mark.parametrize(
    "case", ["at times", "of a longer video", "an odd number", "under the cap on a frame's pixels"]
)
def test_other_families_too(load: Callable[[str], Model], name: str, case: str) -> None:
    assert differences(load(name), asked(CASES[case])) == []


@pytest.mark.parametrize("name", ["qwen2.5-vl", "qwen3-vl"])
def test_they_stand_beside_other_media(load: Callable[[str], Model], name: str) -> None:
    media = (listed(image_files(3), "a"), listed(image_files(4), "b", frames=at_times(1, 2, 4, 8)))
    assert differences(load(name), asked(*media, pixel_form=PixelForm.BF16)) == []
