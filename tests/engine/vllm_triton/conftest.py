"""One real Triton with `vlm_vllm` for all tests of this folder, and no other vLLM beside it. `test_server_end` ends it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.triton.local_server import TritonServer
from engine_client import TritonEngine
from preprocessor.models.family import Model
from tests.engine.vllm_prompts import ask_transformers
from tests.engine.vllm_triton_server import MODEL, serving_vllm_in_triton
from tests.loading import load_family_model


@pytest.fixture(scope="session")
def server(tiny_qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with serving_vllm_in_triton(tiny_qwen3_vl, tmp_path_factory.mktemp("vllm-in-triton")) as running:
        yield running


@pytest.fixture(scope="session")
def tiny(tiny_qwen3_vl: Path) -> Model:
    return load_family_model(str(tiny_qwen3_vl))


@pytest.fixture(scope="session")
def expected(tiny_qwen3_vl: Path, tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    return ask_transformers(tiny_qwen3_vl, tiny, tmp_path_factory.mktemp("prompts"))


@pytest_asyncio.fixture
async def engine(server: TritonServer) -> AsyncIterator[TritonEngine]:
    async with TritonEngine(server.grpc_address, MODEL) as client:
        yield client
