"""Fixtures that more than one folder of tests needs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.models import registry
from preprocessor.models.family import Model
from preprocessor.text.tokenizer import TokenTable, build_tokenizer
from tests.fork_servers import close_fork_servers
from tests.loading import load_family_model

# Of every service that a test starts, whatever the machine has: `make test-fronts` runs those of `tests/service` through fronts.
os.environ.setdefault("PREPROCESSOR_FRONTS", "1")

# Folders of tests that run in one process where `make test` starts three; the third process runs every other folder. The parts
# take about the same time, and are always the same: what ran before a test does not depend on how fast anything was.
_PARTS = {"deploy": "engine", "engine": "engine", "monitoring": "engine", "parity": "engine", "service": "service"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Which process a test belongs to, where pytest-xdist starts several."""
    from xdist.scheduler import LoadScopeScheduling  # not above: only `make test` needs it

    class ByFolder(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return _PARTS.get(nodeid.split("/")[1], "rest")

    return ByFolder(config, log)


@pytest_asyncio.fixture(scope="session", autouse=True)
async def end_fork_servers() -> AsyncIterator[None]:
    """Here, as only this loop may close what was opened on it."""
    yield
    close_fork_servers()


@pytest.fixture(scope="session", autouse=True)
def tokenizers_built_once() -> Iterator[None]:
    """A built-in's tokenizer takes a second or two, and nothing changes one: whichever test loads it next gets the same."""
    built: dict[str, TokenizersBackend] = {}

    def build_once(table: TokenTable) -> TokenizersBackend:
        if repr(table) not in built:
            built[repr(table)] = build_tokenizer(table)
        return built[repr(table)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "build_tokenizer", build_once)
        yield


@pytest.fixture(scope="session")
def load() -> Callable[[str], Model]:
    """A built-in by its name, loaded once; each takes two seconds."""
    return cache(load_family_model)


@pytest.fixture(scope="session")
def model(load: Callable[[str], Model]) -> Model:
    """The built-in qwen3-vl."""
    return load("qwen3-vl")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model directories of the parity cases."""
    from tests.parity.directories import save_models  # not above: few tests need what it imports

    folder = tmp_path_factory.mktemp("models")
    save_models(folder)
    return folder
