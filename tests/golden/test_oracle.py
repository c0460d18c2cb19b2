"""Our rules beside Hugging Face's, for thousands of inputs each. Whole requests are compared in tests/parity.

Known differences, each deliberate and tested in tests/unit: a frame count above the clip's gives every frame once, where
Hugging Face repeats frames or raises; a clip of one frame is padded, where Hugging Face raises; Qwen2's steps never name a
frame beyond the clip, as 14 of 17 do there.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from preprocessor.errors import UnsupportedMedia
from preprocessor.models.family import Family, Model
from preprocessor.models.qwen2_vl import fit_video as fit_qwen2_video
from preprocessor.models.qwen3_vl import fit_video as fit_qwen3_video
from preprocessor.models.registry import FAMILIES
from preprocessor.types.request import PixelForm, Sampling
from preprocessor.vision.geometry import fit_image, fit_video
from preprocessor.vision.patches import normalization_table
from preprocessor.vision.spec import PixelSpec, VideoSpec

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed; the goldens are checked without it", allow_module_level=True)

from tests.golden import oracle
from tests.golden.huggingface import CLASSES, video_processor_of

# after the oracle: without it torchvision cannot be imported
import transformers  # isort: skip
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES  # isort: skip

NAMES = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")
RATES = (1, 5, 10, 12, 15, 24, 25, 30, 50, 60)
LoadModel = Callable[[str], Model]


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
        factor = int(random.choice([16, 28, 32, 36]))
        yield {"height": height, "width": width, "factor": factor, "min_pixels": low, "max_pixels": high}


def test_image_sizes_are_equal_for_thousands_of_inputs() -> None:
    for size in random_sizes(5_000):
        assert outcome(fit_image, **size) == outcome(oracle.fit_image, **size), size


def test_video_sizes_are_equal_for_thousands_of_inputs() -> None:
    counts = np.random.default_rng(2).integers(2, 769, 5_000).tolist()
    for count, size in zip(counts, random_sizes(5_000), strict=True):
        ours = outcome(fit_video, count, temporal_factor=2, **size)
        assert ours == outcome(oracle.fit_video, count, temporal_factor=2, **size), (count, size)


@pytest.mark.parametrize(
    ("family", "fit", "max_tokens"),
    [("qwen2_vl", fit_qwen2_video, 8_000), ("qwen3_vl", fit_qwen3_video, 768)],
    ids=["qwen2_vl", "qwen3_vl"],
)
def test_capped_video_sizes_are_equal_for_thousands_of_inputs(
    family: str, fit: Any, max_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor_class = CLASSES[family].video_processor
    # What `resize` hands on to its base class is the size it found; no pixels are needed to see that.
    monkeypatch.setattr(
        processor_class.__base__, "resize", lambda self, image, size, resample: (size.height, size.width)
    )
    processor = processor_class(max_video_tokens=max_tokens)
    counts = np.random.default_rng(3).integers(2, 769, 5_000).tolist()
    for count, asked in zip(counts, random_sizes(5_000), strict=True):
        height, width, factor = asked["height"], asked["width"], asked["factor"]
        budget = transformers.image_utils.SizeDict(shortest_edge=asked["min_pixels"], longest_edge=asked["max_pixels"])
        pixels = PixelSpec(factor // 2, 2, 2, asked["min_pixels"], asked["max_pixels"], (0.5,) * 3, (0.5,) * 3)
        spec = VideoSpec(pixels, 2, 4, 768, cap_pixels_per_frame=True, max_video_tokens=max_tokens)
        theirs = outcome(
            processor.resize,
            SimpleNamespace(shape=(1, count, 3, height, width)),
            size=budget,
            resample=None,
            factor=factor,
            temporal_factor=2,
            cap_pixels_per_frame=True,
        )
        assert outcome(fit, count, height, width, spec) == theirs, (count, asked)


@pytest.mark.parametrize("name", NAMES)
def test_sampling_is_equal_for_thousands_of_inputs(name: str, load: LoadModel) -> None:
    random = np.random.default_rng(4)
    model = load(name)
    compared = 0
    for _ in range(6_000):
        total = int(random.integers(2, 5_000))
        rate = float(random.choice([*RATES, 30_000 / 1001, random.uniform(0.1, 240)]))
        if random.random() < 0.4:
            sampling = Sampling(frame_count=int(random.integers(2, total + 1)))
        else:
            fps = float(random.choice([0.1, 0.5, 1, 2, 3, 4, 8, 24, random.uniform(0.01, 60)]))
            sampling = Sampling(fps=fps if random.random() < 0.9 else None)
        try:
            theirs = oracle.chosen_indices(video_processor_of(model), total, rate, sampling)
        except ValueError:
            continue  # see above
        ours = model.family.sample_indices(total, rate, sampling, model.video)
        assert np.array_equal(ours, theirs), (total, rate, sampling)
        compared += 1
    assert compared > 3_000


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_the_normalization_table_holds_hugging_faces_floats(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    spec = PixelSpec(16, 2, 2, 4_096, 25_165_824, mean, std)
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    theirs = oracle.video_processor().rescale_and_normalize(values, True, 1 / 255, True, mean, std)
    ours = normalization_table(spec, PixelForm.FP32).view(np.int32)
    assert np.array_equal(ours, theirs.reshape(3, 256).numpy().view(np.int32))


# These have no processor registered: Cosmos3's image and video processors are Qwen3-VL's, GLM-OCR's files name GLM-4.6V's.
UNREGISTERED = ("cosmos3_omni", "glm_ocr")
MODEL_TYPES = [
    (family, kind)
    for family in FAMILIES
    if family.name in CLASSES
    for kind in family.model_types
    if kind not in UNREGISTERED
]


@pytest.mark.parametrize(("family", "model_type"), MODEL_TYPES, ids=[kind for _, kind in MODEL_TYPES])
def test_transformers_processes_a_model_type_as_its_family(family: Family, model_type: str) -> None:
    assert PROCESSOR_MAPPING_NAMES[model_type] == CLASSES[family.name].processor.__name__


@pytest.mark.parametrize(
    "name", ["Qwen3VLMoeModel", "Qwen3_5Model", "Qwen3_5MoeModel", "Qwen4ExpModel", "Cosmos3OmniModel"]
)
@pytest.mark.parametrize("method", ["get_rope_index", "get_vision_position_ids"])
def test_a_model_places_its_tokens_as_qwen3_vl_does(name: str, method: str) -> None:
    theirs = inspect.getsource(getattr(getattr(transformers, name), method))
    assert theirs == inspect.getsource(getattr(transformers.Qwen3VLModel, method))
