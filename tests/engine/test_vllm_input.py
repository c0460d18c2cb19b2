"""The input that `vlm_vllm` makes for vLLM's engine, beside what vLLM itself makes of the same files. No engine is started."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deploy.vllm.tiny_checkpoint import write_folder
from preprocessor.models.family import Model
from preprocessor.types.request import ChatPrompt, MediaPart, Message, Modality, PreparationRequest, TextPart
from tests.engine.vllm_compare import compared_inputs
from tests.engine.vllm_prompts import KINDS, tensors_of
from tests.engine.vllm_server import INSTALLED
from tests.golden.huggingface import processor_of
from tests.loading import load_family_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not INSTALLED.exists(), reason="no vLLM; `make vllm` sets one up"),
]


NAMES = ("qwen3-vl", "qwen3-vl-moe", "qwen3.5", "qwen3.5-moe")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """By model."""
    folders = {}
    for name in NAMES:
        checkpoint, prompts = tmp_path_factory.mktemp(name), tmp_path_factory.mktemp("prompts")
        write_folder(checkpoint, name)
        tiny = load_family_model(str(checkpoint))
        for number, media in enumerate(KINDS.values()):
            np.savez(prompts / f"{number}.npz", **dict[str, Any](tensors_of(tiny, media)))
            np.savez(prompts / f"{number}.media.npz", **media_arrays(tiny, media))
        folders[name] = checkpoint, prompts
    return compared_inputs(folders)


@pytest.mark.parametrize("name", NAMES)
def test_the_input_is_what_vllm_itself_makes_of_the_same_files_and_frames(
    name: str, results: Mapping[str, str]
) -> None:
    assert results[name] == "equal uint8"


def media_arrays(model: Model, media: tuple[Any, ...]) -> dict[str, Any]:
    """What `vllm_own_input.py` reads: the text and, decoded, what `tensors_of` has prepared."""
    from tests.golden import oracle  # it makes torchvision importable

    parts: tuple[MediaPart | TextPart, ...] = (*(MediaPart(medium.key) for medium in media), TextPart("What is this?"))
    processor = processor_of(model)
    text, _ = oracle.rendered(processor, PreparationRequest(ChatPrompt((Message("user", parts),)), media))
    arrays: dict[str, Any] = {"text": np.array(text)}
    for number, medium in enumerate(media):
        if medium.modality is Modality.IMAGE:
            arrays[f"image{number}"] = np.array(Image.open(io.BytesIO(medium.data)).convert("RGB"))
        else:
            chosen = oracle.sampled_clip(medium, processor.video_processor)
            arrays |= {f"frames{number}": chosen.frames, f"indices{number}": np.array(chosen.indices)}
            arrays |= {f"rate{number}": np.array(chosen.rate), f"total{number}": np.array(chosen.total)}
    return arrays
