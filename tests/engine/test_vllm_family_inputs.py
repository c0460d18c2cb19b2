"""Rows of the fast path of each family that vLLM takes, as its own gRPC service and `vlm_vllm` give them to its engine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_client import EngineRejected, EngineRequest
from engine_client.vllm.prompt import encode_prompt
from tests.engine.family_prompts import ONE_SIZE, kinds_of, media_arrays, server_of
from tests.engine.tiny_families import WRITERS
from tests.engine.vllm_prompts import tensors_of
from tests.engine.vllm_server import INSTALLED
from tests.loading import load_family_model

PIXELS = {"glm-4.1v": "uint8", "glm-4.6v": "uint8", "mistral3": "uint8"}
"""What vLLM 0.32 takes; of all others floats."""


@pytest.mark.vllm
@pytest.mark.timeout(900)
@pytest.mark.skipif(not INSTALLED.exists(), reason="no vLLM; `make vllm` sets one up")
@pytest.mark.parametrize("name", WRITERS)
def test_the_input_is_what_vllm_itself_makes_of_the_same_files_and_frames(name: str, tmp_path: Path) -> None:
    checkpoint, form = tmp_path / "checkpoint", PIXELS.get(name, "floats")
    checkpoint.mkdir()
    WRITERS[name](checkpoint)
    model = load_family_model(str(checkpoint))
    server = server_of(checkpoint, normalizes=form == "uint8")
    for kind, media in kinds_of(model).items():
        tensors = tensors_of(model, media)
        np.savez(tmp_path / f"{kind}.npz", **dict[str, Any](tensors))
        np.savez(tmp_path / f"{kind}.media.npz", **media_arrays(model, checkpoint, media))
        request = EngineRequest(kind, tensors)
        if kind == "images that differ" and name in ONE_SIZE:
            with pytest.raises(EngineRejected, match="its images differ in size"):
                encode_prompt("engine", request, server)
        else:
            (tmp_path / f"{kind}.bin").write_bytes(encode_prompt("engine", request, server))
    ran = subprocess.run(
        [INSTALLED.with_name("python"), Path(__file__).with_name("vllm_own_input.py"), checkpoint, tmp_path],
        env=dict(os.environ) | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == f"equal {form}"
