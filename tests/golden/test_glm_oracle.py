"""The GLM families' rules beside Hugging Face's, for thousands of inputs each. Whole requests are compared in tests/parity.

Known differences, each deliberate: where Hugging Face takes no frame, ours takes the first; a number of frames, and for GLM-4.6V
an fps, which Hugging Face does not heed, are heeded here.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from preprocessor.models import glm5_next
from preprocessor.types.request import Sampling

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed; the goldens are checked without it", allow_module_level=True)

from tests.golden import oracle
from tests.golden.huggingface import video_processor_of
from tests.golden.test_oracle import RATES, random_sizes
from tests.parity.directories import model_named

# after the oracle: without it torchvision cannot be imported
import transformers  # isort: skip
from transformers.models.glm5_next import image_processing_glm5_next, video_processing_glm5_next  # isort: skip

NAMES = ("glm-4.1v", "glm-4.6v", "glm-5.3")


@pytest.mark.parametrize("name", NAMES)
def test_sampling_is_equal_for_thousands_of_inputs(name: str, model_folder: Path) -> None:
    random = np.random.default_rng(5)
    model = model_named(name, model_folder)
    processor = video_processor_of(model)
    compared = 0
    for _ in range(1_000):
        total = int(np.exp(random.uniform(0, np.log(9_000))))
        rate = float(random.choice([*RATES, 30_000 / 1001, random.uniform(0.1, 240)]))
        fps = float(random.choice([0.1, 0.5, 1, 2, 3, 4, 8, 24, 1000, random.uniform(0.01, 60)]))
        sampling = Sampling(fps=fps if random.random() < 0.7 else None)
        try:
            theirs = oracle.chosen_indices(processor, total, rate, sampling)
        except ValueError:
            continue  # no frame
        ours = model.family.sample_indices(total, rate, sampling, model.video)
        assert np.array_equal(ours, theirs), (total, rate, sampling)
        compared += 1
    assert compared > 700


@pytest.mark.parametrize("kind", ["image", "video"])
def test_sizes_and_canvases_of_glm5_are_equal_for_thousands_of_inputs(
    kind: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `resize` hands on: first the size of the content, where it differs from the picture's, then the padding."""
    module = image_processing_glm5_next if kind == "image" else video_processing_glm5_next
    processor = transformers.Glm5NextImageProcessor() if kind == "image" else transformers.Glm5NextVideoProcessor()
    pixels = model_named("glm-5.3", model_folder).image
    assert isinstance(pixels, glm5_next.CanvasSpec)
    resized = lambda self, images, size, resample: SimpleNamespace(shape=(size.height, size.width))  # noqa: E731
    monkeypatch.setattr(module.TorchvisionBackend, "resize", resized)
    monkeypatch.setattr(module, "tvF", SimpleNamespace(pad=lambda images, padding, fill: (images.shape[-2:], padding)))
    random = np.random.default_rng(6)
    for asked in random_sizes(4_000):
        height, width = asked["height"], asked["width"]
        count = 2 if kind == "image" else int(random.integers(1, 200))
        least, most = int(random.integers(1, 64)), int(random.integers(64, 3_000)) * max(1, count // 2)
        content, padding = processor.resize(
            SimpleNamespace(shape=(1, count, 3, height, width)),
            resample=None,
            factor=28,
            temporal_factor=2,
            min_image_tokens=least,
            max_image_tokens=most,
        )
        spec = _budget(pixels, least, most)
        canvas = (content[0] + padding[3], content[1] + padding[2])
        assert glm5_next.fit(count, height, width, spec) == (tuple(content), canvas), (count, asked, least, most)


def _budget(pixels: glm5_next.CanvasSpec, least: int, most: int) -> glm5_next.CanvasSpec:
    return dataclasses.replace(pixels, min_pixels=least * pixels.token_pixels, max_pixels=most * pixels.token_pixels)


@pytest.mark.parametrize("name", ["Glm46VModel", "Glm4vMoeModel", "GlmOcrModel"])
@pytest.mark.parametrize("method", ["get_rope_index", "get_vision_position_ids"])
def test_a_model_places_its_tokens_as_glm4v_does(name: str, method: str) -> None:
    def code(model: type) -> str:
        """Without the docstring, which names the model."""
        return inspect.getsource(getattr(model, method)).split('"""')[-1]

    assert code(getattr(transformers, name)) == code(transformers.Glm4vModel)
