"""Fixtures that more than one folder of tests needs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from preprocessor.models.family import Model
from preprocessor.models.registry import load_model
from tests.zygotes import close_zygotes

# Folders that the first of the two processes of `make test` runs, in the order of collection; the second runs the rest. The parts
# are about as long as each other, and always the same: what ran before a test does not depend on how fast anything was.
_FIRST_PART = ("deploy", "engine", "monitoring", "parity")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Which process a test belongs to, where pytest-xdist starts several."""
    from xdist.scheduler import LoadScopeScheduling  # not above: only `make test` needs it

    class ByFolder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "first" if nodeid.split("/")[1] in _FIRST_PART else "second"

    return ByFolder(config, log)


@pytest_asyncio.fixture(scope="session", autouse=True)
async def end_zygotes() -> AsyncIterator[None]:
    """Here, as only this loop may close what was opened on it."""
    yield
    close_zygotes()


@pytest.fixture(scope="session")
def load() -> Callable[[str], Model]:
    """A built-in by its name, loaded once; each takes two seconds."""
    return cache(load_model)


@pytest.fixture(scope="session")
def model(load: Callable[[str], Model]) -> Model:
    """The built-in qwen3-vl."""
    return load("qwen3-vl")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model directory `qwen3.5`."""
    from tests.parity.directories import save_qwen3_5  # not above: few tests need what it imports

    folder = tmp_path_factory.mktemp("models")
    save_qwen3_5(folder)
    return folder
