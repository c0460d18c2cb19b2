"""Media to be inspected, and models that are loaded once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from preprocessor.models import registry


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For media and files of these tests."""
    return tmp_path_factory.mktemp("inspect")


@pytest.fixture(scope="package", autouse=True)
def models_loaded_once() -> Iterator[None]:
    """Each takes two seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "load_model", cache(registry.load_model))
        yield
