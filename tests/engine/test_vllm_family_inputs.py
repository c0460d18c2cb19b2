"""Rows of the fast path of each family that vLLM takes, as its own gRPC service and `vlm_vllm` give them to its engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_client import EngineRejected, EngineRequest
from engine_client.vllm.prompt import encode_prompt
from tests.engine.family_prompts import ONE_SIZE, kinds_of, media_arrays, server_of
from tests.engine.tiny_families import WRITERS
from tests.engine.vllm_compare import compared_inputs
from tests.engine.vllm_prompts import tensors_of
from tests.engine.vllm_server import INSTALLED
from tests.loading import load_family_model

PIXELS = {"glm-4.1v": "uint8", "glm-4.6v": "uint8", "mistral3": "uint8"}
"""What vLLM 0.32 takes; of all others floats."""


pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not INSTALLED.exists(), reason="no vLLM; `make vllm` sets one up"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """By family."""
    folders = {}
    for name, write in WRITERS.items():
        checkpoint, prompts = tmp_path_factory.mktemp(name), tmp_path_factory.mktemp("prompts")
        write(checkpoint)
        save_prompts(name, checkpoint, prompts)
        folders[name] = checkpoint, prompts
    return compared_inputs(folders)


def save_prompts(name: str, checkpoint: Path, folder: Path) -> None:
    model = load_family_model(str(checkpoint))
    server = server_of(checkpoint, normalizes=PIXELS.get(name, "floats") == "uint8")
    for kind, media in kinds_of(model).items():
        tensors = tensors_of(model, media)
        np.savez(folder / f"{kind}.npz", **dict[str, Any](tensors))
        np.savez(folder / f"{kind}.media.npz", **media_arrays(model, checkpoint, media))
        request = EngineRequest(kind, tensors)
        if kind == "images that differ" and name in ONE_SIZE:
            with pytest.raises(EngineRejected, match="its images differ in size"):
                encode_prompt("engine", request, server)
        else:
            (folder / f"{kind}.bin").write_bytes(encode_prompt("engine", request, server))


@pytest.mark.parametrize("name", WRITERS)
def test_the_input_is_what_vllm_itself_makes_of_the_same_files_and_frames(
    name: str, results: Mapping[str, str]
) -> None:
    assert results[name] == f"equal {PIXELS.get(name, 'floats')}"
