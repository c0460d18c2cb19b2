"""A real Triton with `vlm_vllm`, a real vLLM on this machine's CPU in it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from deploy.triton.local_server import REPOSITORY, TritonServer
from deploy.vllm.local_server import CONTEXT_TOKENS, INSTALLED
from deploy.vllm.triton_python import make_environment
from engine_client import EngineRequest, SamplingParameters
from preprocessor.models.family import Model
from tests.engine.vllm_prompts import tensors_of

MODEL = "vlm_vllm"
MARKS = [
    pytest.mark.vllm,
    pytest.mark.timeout(1200),  # a start takes minutes where others compute
    pytest.mark.skipif(not INSTALLED.exists(), reason="no vLLM; `make vllm` sets one up"),
]
"""Of all tests that use it."""
MANY_TOKENS = 4000
MAX_ITEMS = {"image": 3, "video": 2}
ARGUMENTS = {
    "dtype": "float32",
    "max_model_len": CONTEXT_TOKENS,
    "enforce_eager": True,
    "limit_mm_per_prompt": MAX_ITEMS,
}


@contextmanager
def serving_vllm_in_triton(
    checkpoint: Path, folder: Path, *, shared_memory_bytes: int | None = None, **parameters: str
) -> Iterator[TritonServer]:
    """The deployed model for that checkpoint, with other parameters where they are given.

    Args:
        folder: Empty; for the model's files and its environment.
        shared_memory_bytes: As of `TritonServer`.
    """
    write_model(folder / "models", {"engine_arguments": json.dumps(ARGUMENTS)} | parameters)
    with TritonServer(
        [MODEL],
        repository=folder / "models",
        python=make_environment(folder / "python"),
        environment={
            "VLM_CHECKPOINT": str(checkpoint),
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
        },
        ready_timeout_seconds=900.0,
        shared_memory_bytes=shared_memory_bytes,
    ) as server:
        segments = _segments(server) if shared_memory_bytes is None else set()
        try:
            yield server
        finally:
            server.kill()
            for segment in segments:
                segment.unlink(missing_ok=True)


def write_model(repository: Path, parameters: Mapping[str, str]) -> None:
    """The deployed model into that model repository, with these values of its `config.pbtxt`."""
    shutil.copytree(REPOSITORY / MODEL, repository / MODEL)
    config = repository / MODEL / "config.pbtxt"
    text = config.read_text()
    for name, value in parameters.items():
        written = json.dumps(value).replace("\\", r"\\")
        text, count = re.subn(rf'(key: "{name}" +value: \{{ string_value: )"[^"]*"', rf"\g<1>{written}", text)
        assert count == 1, name
    config.write_text(text)


def long_request(model: Model) -> EngineRequest:
    """Its answer takes as long as a test needs."""
    return EngineRequest("long", tensors_of(model, ()), SamplingParameters(MANY_TOKENS, temperature=1.0))


def _segments(server: TritonServer) -> set[Path]:
    """Shared memory of vLLM's processes, which a killed one leaves behind."""
    mapped = (
        Path(mapping.path)
        for process in psutil.Process(server.pid).children(recursive=True)
        for mapping in process.memory_maps()
    )
    return {path for path in mapped if path.name.startswith("psm_")}
