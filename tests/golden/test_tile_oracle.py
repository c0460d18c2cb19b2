"""The rules of InternVL, Mistral 3, Gemma 3 and Gemma 4 beside Hugging Face's, for thousands of inputs each."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from preprocessor.models import gemma3, gemma4, internvl, mistral3
from preprocessor.models.family import Family
from preprocessor.types.request import Sampling
from preprocessor.vision.spec import PixelSpec, VideoSpec

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed; the goldens are checked without it", allow_module_level=True)

from tests.golden import tile_oracle

# after the oracle: without it torchvision cannot be imported
import transformers  # isort: skip
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES  # isort: skip
from transformers.models.gemma4.image_processing_gemma4 import get_aspect_ratio_preserving_size  # isort: skip
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas  # isort: skip
from transformers.models.pixtral.image_processing_pixtral import get_resize_output_image_size  # isort: skip

PROCESSORS = {
    "internvl": (internvl.FAMILY, "InternVLProcessor"),
    "mistral3": (mistral3.FAMILY, "PixtralProcessor"),
    "pixtral": (mistral3.FAMILY, "PixtralProcessor"),
    "gemma3": (gemma3.FAMILY, "Gemma3Processor"),
    "gemma4": (gemma4.FAMILY, "Gemma4Processor"),
}


def random_sizes(count: int) -> Iterator[tuple[np.random.Generator, int, int]]:
    random = np.random.default_rng(1)
    for _ in range(count):
        height, width = np.exp(random.uniform(0, math.log(20_000), 2)).astype(int).tolist()
        yield random, height, width


def test_tile_grids_are_equal_for_thousands_of_inputs() -> None:
    for random, height, width in random_sizes(2_000):
        least, most = random.integers(1, 30, 2).tolist()
        side = int(random.choice([28, 224, 448]))
        theirs = get_optimal_tiled_canvas((height, width), (side, side), least, most)
        assert internvl.tile_grid(height, width, side, least, most) == theirs, (height, width, side, least, most)


def test_sizes_of_mistral3_are_equal_for_thousands_of_inputs() -> None:
    for random, height, width in random_sizes(5_000):
        factor, edge = int(random.choice([14, 16, 28, 32])), int(random.integers(28, 2_000))
        picture = np.broadcast_to(np.uint8(0), (3, height, width))
        theirs = get_resize_output_image_size(picture, (edge, edge), (factor, factor), "channels_first")
        assert mistral3.fit_image(height, width, factor=factor, longest_edge=edge) == theirs, (
            height,
            width,
            factor,
            edge,
        )


def test_crops_of_gemma3_are_equal_for_thousands_of_inputs() -> None:
    processor = transformers.Gemma3ImageProcessor()
    for random, height, width in random_sizes(3_000):
        most = int(random.integers(2, 12))
        picture = Picture(height, width)
        processor.pan_and_scan_batched(picture, 256, most, 1.2)
        ours = gemma3.crop_boxes(height, width, most)
        assert [_ends(box, height, width) for box in ours] == [_ends(box, height, width) for box in picture.boxes]


class Picture:
    """As much of a tensor as is asked where it is cut: no pixels are needed to see that."""

    def __init__(self, height: int, width: int) -> None:
        self.shape = (1, 3, height, width)
        self.boxes: list[tuple[slice, slice]] = []

    def __getitem__(self, place: Any) -> None:
        self.boxes.append(place[1:])


def _ends(box: tuple[slice, slice], height: int, width: int) -> list[tuple[int, int]]:
    return [part.indices(length)[:2] for part, length in zip(box, (height, width), strict=True)]


def test_sizes_of_gemma4_are_equal_for_thousands_of_inputs() -> None:
    for random, height, width in random_sizes(5_000):
        most = int(random.choice(gemma4.SOFT_TOKENS)) * 9
        theirs = get_aspect_ratio_preserving_size(height, width, 16, most, 3)
        assert gemma4.fit_image(height, width, patch=16, pooling=3, most_patches=most) == theirs, (height, width, most)


@pytest.mark.parametrize(
    ("family", "processor"),
    [(internvl.FAMILY, "InternVLVideoProcessor"), (gemma4.FAMILY, "Gemma4VideoProcessor")],
    ids=["internvl", "gemma4"],
)
def test_sampling_is_equal_for_thousands_of_inputs(family: Family, processor: str) -> None:
    random = np.random.default_rng(4)
    theirs_of = getattr(transformers, processor)(do_sample_frames=True, num_frames=7)
    pixels = PixelSpec(16, 1, 1, 1, 1, (0.5,) * 3, (0.5,) * 3)
    spec = VideoSpec(pixels, fps=0, min_frames=1, max_frames=99, frame_count=7)
    compared = 0
    for _ in range(4_000):
        total, rate = int(random.integers(7, 5_000)), float(random.choice([10, 24, 25, 30_000 / 1001, 60]))
        sampling = Sampling(frame_count=int(random.integers(1, total + 1)))
        if random.random() < 0.5:
            sampling = Sampling(fps=float(random.choice([0.5, 1, 2, 29.97, random.uniform(0.01, 60)])))
        if random.random() < 0.1:
            sampling = Sampling()
        try:
            theirs = tile_oracle.chosen_indices(theirs_of, total, rate, sampling)
        except (ValueError, ZeroDivisionError):
            continue  # more frames than there are, or none
        assert np.array_equal(family.sample_indices(total, rate, sampling, spec), theirs), (total, rate, sampling)
        compared += 1
    assert compared > 2_000


@pytest.mark.parametrize("model_type", PROCESSORS)
def test_transformers_processes_a_model_type_as_its_family(model_type: str) -> None:
    family, processor = PROCESSORS[model_type]
    assert model_type in family.model_types
    assert PROCESSOR_MAPPING_NAMES[model_type] == processor
