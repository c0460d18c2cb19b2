"""One server for the tests that leave it as it was, and one each for those that do not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from deploy.triton.local_server import TritonServer
from engine_client import TritonEngine
from tests.engine.servers import SCRIPTED_REPOSITORY, serving


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
