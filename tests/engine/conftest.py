"""One server for the tests that leave it as it was, and one each for those that do not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deploy.triton.local_server import TritonServer
from engine_client import TritonEngine
from tests.engine.prompts import PROMPTS, TOKEN_COUNT
from tests.engine.servers import SCRIPTED_REPOSITORY, Gate, ask_directly, serving
from tests.engine.tensorrt_llm_model import STAND_IN, read_settings, write_checkpoint
from tests.engine.tensorrt_llm_model import engine as tensorrt_llm_engine
from tests.engine.vllm_server import SharedVllm


@pytest.fixture(scope="session")
def triton() -> Iterator[TritonServer]:
    """The model that is deployed, `vlm_transformers`, with its tiny random weights."""
    with serving("vlm_transformers") as server:
        yield server


@pytest_asyncio.fixture
async def engine(triton: TritonServer) -> AsyncIterator[TritonEngine]:
    """A client of `triton`."""
    async with TritonEngine(triton.grpc_address) as client:
        yield client


@pytest.fixture(scope="session")
def expected(triton: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, list[int]]:
    """What transformers answers to each of `PROMPTS`, called directly.

    After `triton`, which says it better when nothing is installed.
    """
    return ask_directly(PROMPTS, TOKEN_COUNT, tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="session")
def scripted_triton() -> Iterator[TritonServer]:
    """A model that ends its answers in the way that a test asks for."""
    with serving("scripted", SCRIPTED_REPOSITORY) as server:
        yield server


@pytest.fixture(scope="session")
def pieces_triton() -> Iterator[TritonServer]:
    """A model that takes prompts in pieces and answers with what it got."""
    with serving("pieces", SCRIPTED_REPOSITORY) as server:
        yield server


@pytest.fixture
def doomed_pieces_triton() -> Iterator[TritonServer]:
    """The same, for one test alone to break."""
    with serving("pieces", SCRIPTED_REPOSITORY) as server:
        yield server


@pytest.fixture
def doomed_triton() -> Iterator[TritonServer]:
    """The same, for one test alone to break."""
    with serving("scripted", SCRIPTED_REPOSITORY) as server:
        yield server


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Closed; see there."""
    made = Gate()
    yield made
    made.open()


@pytest.fixture(scope="session")
def vllm() -> Iterator[SharedVllm]:
    """Started by the first test that needs it."""
    with SharedVllm() as shared:
        yield shared


@pytest.fixture(scope="session")
def tiny_qwen3_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights that vLLM, transformers and the service load."""
    from deploy.vllm.tiny_checkpoint import write_folder  # it imports torch

    folder = tmp_path_factory.mktemp("qwen3-vl")
    write_folder(folder)
    return folder


@pytest.fixture(scope="session")
def demo_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the model that sees."""
    from deploy.demo_model.checkpoint import write_folder  # it imports torch

    folder = tmp_path_factory.mktemp("demo-model")
    write_folder(folder)
    return folder


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`tensorrt_llm.llmapi.llm` of the stand-in, imported anew for each test."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "tensorrt_llm"]:
            del sys.modules[name]

    forget()
    monkeypatch.syspath_prepend(STAND_IN)
    yield importlib.import_module("tensorrt_llm.llmapi.llm")
    forget()


@pytest.fixture
def load_tensorrt_llm(stand_in: Any, tmp_path: Path) -> Callable[..., Any]:
    """Loads the engine of `vlm_tensorrt_llm` with changed parameters."""

    def load_with(model_type: str = "qwen3_vl", **changed: str) -> Any:
        checkpoint = str(write_checkpoint(tmp_path, model_type))
        return tensorrt_llm_engine.load_engine(read_settings(checkpoint=checkpoint, **changed))

    return load_with
