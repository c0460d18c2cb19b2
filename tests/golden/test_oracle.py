"""Our pipeline beside Hugging Face's, live, on random requests: every value equal, none merely close.

Known differences, each deliberate and tested in tests/unit: a frame count above the clip's gives every frame once, where
Hugging Face repeats frames; a clip of one frame is padded, where Hugging Face raises.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from preprocessor.errors import UnsupportedMedia
from preprocessor.media.sampling import count_for_fps, spread_evenly
from preprocessor.models.family import Model
from preprocessor.models.qwen3_vl import fit_video as fit_qwen3_video
from preprocessor.pipeline import prepare
from preprocessor.types import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PixelForm,
    PreparationRequest,
    Prepared,
    Sampling,
    TextPart,
)
from preprocessor.vision.geometry import fit_image, fit_video
from preprocessor.vision.patches import normalization_table
from preprocessor.vision.spec import PixelSpec, VideoSpec
from tests import media
from tests.golden.cases import with_form

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed; the goldens are checked without it", allow_module_level=True)

from tests.golden import oracle  # first: without it torchvision cannot be imported

from transformers.video_utils import VideoMetadata  # isort: skip

MAX_CLIP_PIXELS = 6_000_000  # of one random clip, all frames: Hugging Face's share of the run time
WORDS = [
    "What",
    "moves,",
    "how",
    "fast?",
    "Naïve",
    "café",
    "—",
    "你好，世界",
    "🌍🎬",
    "3.14;",
    "<b>ok</b>\n\n\t",
    "end",
]
RATES = (1, 5, 10, 12, 15, 24, 25, 30, 50, 60)

IMAGE_KINDS = [
    *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
    *(("PNG", mode) for mode in ("RGB", "RGBA", "P", "LA", "L", "1", "I;16")),
    *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    *((image_format, "RGB") for image_format in ("BMP", "TIFF")),
    ("GIF", "P"),
]


@dataclass(frozen=True, eq=False)
class Pair:
    """One request, answered by both sides."""

    hugging_face: oracle.Answer
    uint8: Prepared
    fp32: Prepared


def random_video(random: np.random.Generator, key: str) -> Media:
    width, height = (2 * round(math.exp(random.uniform(math.log(14), math.log(750)))) for _ in range(2))
    count = int(random.integers(2, 121))
    count = max(2, min(count, MAX_CLIP_PIXELS // (width * height)))
    rate = int(random.choice(RATES))
    data = media.moving_shapes_clip(
        count / rate, rate, width, height, seed=int(random.integers(1000)), options=(("preset", "ultrafast"),)
    )
    sampling = random.choice(["default", "fps", "count"])
    if sampling == "fps":
        chosen = Sampling(fps=float(random.choice([0.5, 1, 2, 2.5, 4, 29.97, 1000])))
    else:
        chosen = Sampling(frame_count=int(random.integers(2, count + 1)) if sampling == "count" else None)
    least, most = random_budget(random, 4_096, 400_000)
    return Media(key, Modality.VIDEO, data, chosen, least, most)


def random_image(random: np.random.Generator, key: str) -> Media:
    width, height = random.integers(28, 1500, 2).tolist()
    image_format, mode = IMAGE_KINDS[random.integers(len(IMAGE_KINDS))]
    orientation = int(random.integers(1, 9)) if image_format in ("JPEG", "TIFF", "WEBP") else 0
    data = media.photo(width, height, image_format, mode=mode, orientation=orientation, seed=int(random.integers(1000)))
    return Media(key, Modality.IMAGE, data, Sampling(), *random_budget(random, 1_024, 200_000))


def random_budget(random: np.random.Generator, least: int, most: int) -> tuple[int | None, int | None]:
    """Half the time the model's own."""
    if random.random() < 0.5:
        return None, None
    low, high = sorted(random.integers(least, most, 2).tolist())
    return low, high


def request_for(random: np.random.Generator, *media_list: Media) -> PreparationRequest:
    parts: list[MediaPart | TextPart] = []
    for medium in media_list:
        words = random.choice(WORDS, int(random.integers(0, 8)))
        parts += [TextPart(" ".join(words)), MediaPart(medium.key)]
    parts.append(TextPart(" ".join(random.choice(WORDS, 12))))
    return PreparationRequest(ChatPrompt((Message("user", tuple(parts)),)), media_list)


def make_request(name: str) -> PreparationRequest:
    """The request of a case's name, from a seed of its own."""
    kind, _, seed = name.partition(" ")
    random = np.random.default_rng(int(seed.split()[0]))
    match kind:
        case "video":
            return request_for(random, random_video(random, "v"))
        case "image":
            return request_for(random, random_image(random, "i"))
        case "workload":
            clip = media.moving_shapes_clip()
            return request_for(random, Media("v", Modality.VIDEO, clip, Sampling(fps=float(seed))))
        case _:  # mixed: two images and two videos, one budget a modality since Hugging Face knows no other
            plain = [
                random_image(random, "i"),
                random_video(random, "v"),
                random_image(random, "j"),
                random_video(random, "w"),
            ]
            return request_for(random, *(Media(m.key, m.modality, m.data, m.sampling) for m in plain))


CASES = [
    *(f"video {seed}" for seed in range(20)),
    *(f"image {seed}" for seed in range(16)),
    *(f"mixed {seed}" for seed in range(3)),
    "workload 1",
    "workload 8",
]


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, model: Model) -> Iterator[Pair]:
    asked = make_request(request.param)
    yield Pair(
        hugging_face=oracle.answer(model, asked),
        uint8=prepare(model, with_form(asked, PixelForm.UINT8)),
        fp32=prepare(model, with_form(asked, PixelForm.FP32)),
    )


def assert_equal(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> None:
    assert ours.shape == theirs.shape
    if not np.array_equal(ours, theirs):
        different = np.argwhere(ours != theirs)
        first = tuple(different[0])
        pytest.fail(
            f"{len(different)} of {ours.size} differ, first at {first}: ours {ours[first]}, theirs {theirs[first]}"
        )


def test_token_ids_are_equal(pair: Pair) -> None:
    assert_equal(pair.uint8.tensors["input_ids"], pair.hugging_face.token_ids)


def test_grids_are_equal(pair: Pair) -> None:
    assert_equal(pair.uint8.tensors["grid_thw"], pair.hugging_face.grid_thw)


def test_frame_indices_are_equal(pair: Pair) -> None:
    ours = [None if item.frames is None else item.frames.indices.tolist() for item in pair.uint8.plan.items]
    assert ours == pair.hugging_face.frame_indices


def test_uint8_patches_are_equal(pair: Pair) -> None:
    assert_equal(pair.uint8.tensors["pixel_patches"], pair.hugging_face.patches)


def test_fp32_pixels_are_equal_bit_for_bit(pair: Pair) -> None:
    assert_equal(pair.fp32.tensors["pixel_values"].view(np.int32), pair.hugging_face.pixels.view(np.int32))


def test_rotary_positions_are_equal(pair: Pair) -> None:
    assert_equal(pair.uint8.tensors["mrope_position_ids"], pair.hugging_face.positions)


def test_the_rotary_delta_is_equal(pair: Pair) -> None:
    assert pair.uint8.tensors["mrope_position_delta"].tolist() == [pair.hugging_face.delta]


def outcome(function: Any, *args: Any, **kwargs: Any) -> object:
    """A size, or that it was refused."""
    try:
        return function(*args, **kwargs)
    except (ValueError, UnsupportedMedia):
        return "refused"


def random_sizes(count: int) -> Iterator[dict[str, int]]:
    random = np.random.default_rng(1)
    for _ in range(count):
        height, width = np.exp(random.uniform(0, math.log(20_000), 2)).astype(int).tolist()
        low, high = sorted(np.exp(random.uniform(math.log(1_000), math.log(3e7), 2)).astype(int).tolist())
        factor = int(random.choice([28, 32]))
        yield {"height": height, "width": width, "factor": factor, "min_pixels": low, "max_pixels": high}


def test_image_sizes_are_equal_for_thousands_of_inputs() -> None:
    for size in random_sizes(5_000):
        assert outcome(fit_image, **size) == outcome(oracle.fit_image, **size), size


def test_video_sizes_are_equal_for_thousands_of_inputs() -> None:
    counts = np.random.default_rng(2).integers(2, 769, 5_000).tolist()
    for count, size in zip(counts, random_sizes(5_000), strict=True):
        ours = outcome(fit_video, count, temporal_factor=2, **size)
        assert ours == outcome(oracle.fit_video, count, temporal_factor=2, **size), (count, size)


def test_capped_video_sizes_are_equal_for_thousands_of_inputs() -> None:
    pixels = PixelSpec(16, 2, 2, 4_096, 25_165_824, (0.5,) * 3, (0.5,) * 3)
    spec = VideoSpec(pixels, fps=2, min_frames=4, max_frames=768, cap_pixels_per_frame=True, max_video_tokens=768)
    processor = oracle.video_processor(cap_pixels_per_frame=True, max_video_tokens=768)
    counts = np.random.default_rng(3).integers(2, 769, 3_000).tolist()
    for count, size in zip(counts, random_sizes(3_000), strict=True):
        height, width = size["height"], size["width"]
        ours = outcome(fit_qwen3_video, count, height, width, spec)
        theirs = outcome(processor.get_num_of_video_patches, count, height, width)
        assert (ours if ours == "refused" else -(-count // 2) * ours[0] * ours[1] // 256) == theirs, (count, size)


def test_fps_sampling_is_equal_for_thousands_of_inputs() -> None:
    random = np.random.default_rng(4)
    processor = oracle.video_processor()
    for _ in range(5_000):
        total = int(random.integers(2, 5_000))
        rate = float(random.choice([*RATES, 30_000 / 1001, random.uniform(0.1, 240)]))
        fps = float(random.choice([0.1, 0.5, 1, 2, 3, 4, 8, 24, random.uniform(0.01, 60)]))
        theirs = processor.sample_frames(VideoMetadata(total_num_frames=total, fps=rate), fps=fps)
        ours = spread_evenly(total, count_for_fps(total, rate, fps, least=4, most=768))
        assert np.array_equal(ours, theirs), (total, rate, fps)


def test_count_sampling_is_equal_for_thousands_of_inputs() -> None:
    random = np.random.default_rng(5)
    processor = oracle.video_processor()
    for total in random.integers(1, 5_000, 3_000).tolist():
        count = int(random.integers(1, total + 1))
        theirs = processor.sample_frames(VideoMetadata(total_num_frames=total, fps=30), num_frames=count)
        assert np.array_equal(spread_evenly(total, count), theirs), (total, count)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_the_normalization_table_holds_hugging_faces_floats(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    spec = PixelSpec(16, 2, 2, 4_096, 25_165_824, mean, std)
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    theirs = oracle.video_processor().rescale_and_normalize(values, True, 1 / 255, True, mean, std)
    assert_equal(normalization_table(spec, PixelForm.FP32), theirs.reshape(3, 256).numpy())
