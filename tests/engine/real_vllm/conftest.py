"""What tests of one real vLLM share: its marks, its checkpoint, and clients of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from engine_client.vllm import VllmEngine
from preprocessor.models.family import Model
from tests.engine.vllm_prompts import (
    ask_transformers,
)
from tests.engine.vllm_server import INSTALLED, SharedVllm
from tests.loading import load_family_model

MARKS = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not INSTALLED.exists(), reason="no vLLM; `make vllm` sets one up"),
]


@pytest.fixture(scope="session")
def checkpoint(tiny_qwen3_vl: Path) -> Path:
    return tiny_qwen3_vl


@pytest.fixture
def address(vllm: SharedVllm, checkpoint: Path) -> str:
    """Of a server in working order: a test may have killed it."""
    return vllm.serving(checkpoint).address


@pytest.fixture(scope="session")
def tiny(checkpoint: Path) -> Model:
    return load_family_model(str(checkpoint))


@pytest_asyncio.fixture
async def engine(address: str) -> AsyncIterator[VllmEngine]:
    async with VllmEngine(address) as client:
        yield client


@pytest.fixture(scope="session")
def expected(checkpoint: Path, tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    return ask_transformers(checkpoint, tiny, tmp_path_factory.mktemp("prompts"))
