"""Fixtures that more than one folder of tests needs."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from preprocessor.models import registry
from preprocessor.models.family import Model
from tests.fork_servers import close_fork_servers
from tests.loading import build_once, load_family_model

# Of every service that a test starts, whatever the machine has: `make test-fronts` runs those of `tests/service` through fronts.
os.environ.setdefault("PREPROCESSOR_FRONTS", "1")

TESTS = Path(__file__).parent
PARTS = {
    "triton": ("engine",),
    "replicas": (
        "deploy",
        "monitoring",
        "service/access",
        "service/caller_region",
        "service/test_[a-e]",
        "service/test_fa",
        "unit/workers",
    ),
    "pipeline": ("unit", "golden", "parity"),
    "service": (),  # and everything else
}
"""Which tests run together in one process where `make test` starts four: beginnings of paths, below this folder. The first that
fits counts.

The parts take about the same time, and are always the same: what ran before a test does not depend on how fast anything was.
"""
_ELSEWHERE = ("engine/real_vllm", "engine/test_tensorrt", "engine/test_vllm", "engine/vllm_links")
"""What needs no Triton that others need too, and runs with everything else."""


def part_of(file: Path) -> str:
    """The part that a file with tests belongs to."""
    path = file.relative_to(TESTS).as_posix()
    if re.match("|".join(_ELSEWHERE), path) is None:
        for part, beginnings in PARTS.items():
            if any(re.match(beginning, path) for beginning in beginnings):
                return part
    return "service"


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """In a process that runs one part, no file is imported that holds tests of others alone."""
    own = os.environ.get("TEST_PART")
    if own is None:
        return None
    files = [collection_path] if collection_path.is_file() else collection_path.rglob("test_*.py")
    return None if any(part_of(file) == own for file in files) else True


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each process runs what it has collected, where these are parts."""
    from xdist.scheduler import EachScheduling  # not above: only `make test` needs it

    class Parts(EachScheduling):  # type: ignore[misc]  # xdist has no types
        def schedule(self) -> None:
            session: Any = config.pluginmanager.get_plugin("session")
            session.testscollected = sum(map(len, self.node2collection.values()))  # what the percentages are of
            super().schedule()

    return Parts(config, log) if config.option.dist == "each" else None


@pytest_asyncio.fixture(scope="session", autouse=True)
async def end_fork_servers() -> AsyncIterator[None]:
    """Here, as only this loop may close what was opened on it."""
    yield
    close_fork_servers()


@pytest.fixture(scope="session", autouse=True)
def tokenizers_built_once() -> Iterator[None]:
    """Of every built-in that a test loads: see there."""
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
