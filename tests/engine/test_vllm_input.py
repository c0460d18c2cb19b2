"""The input that `vlm_vllm` makes for vLLM's engine, beside what vLLM itself makes of the same files. No engine is started."""

from __future__ import annotations

import io
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deploy.vllm.tiny_checkpoint import write_folder
from preprocessor.models.family import Model
from preprocessor.types.request import ChatPrompt, MediaPart, Message, Modality, PreparationRequest, TextPart
from tests.engine.vllm_prompts import KINDS, tensors_of
from tests.engine.vllm_server import INSTALLED
from tests.loading import load_family_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not INSTALLED.exists(), reason="no vLLM; `make vllm` sets one up"),
]


@pytest.mark.parametrize("name", ["qwen3-vl", "qwen3-vl-moe", "qwen3.5", "qwen3.5-moe"])
def test_the_input_is_what_vllm_itself_makes_of_the_same_files_and_frames(name: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    write_folder(checkpoint, name)
    tiny = load_family_model(str(checkpoint))
    for number, media in enumerate(KINDS.values()):
        np.savez(tmp_path / f"{number}.npz", **dict[str, Any](tensors_of(tiny, media)))
        np.savez(tmp_path / f"{number}.media.npz", **media_arrays(tiny, media))
    ran = subprocess.run(
        [INSTALLED.with_name("python"), Path(__file__).with_name("vllm_own_input.py"), checkpoint, tmp_path],
        env=dict(os.environ) | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "equal uint8", ran.stderr


def media_arrays(model: Model, media: tuple[Any, ...]) -> dict[str, Any]:
    """What `vllm_own_input.py` reads: the text and, decoded, what `tensors_of` has prepared."""
    from tests.golden import oracle  # it makes torchvision importable

    parts = (*(MediaPart(medium.key) for medium in media), TextPart("What is this?"))
    processor = oracle.processor_of(model)
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
