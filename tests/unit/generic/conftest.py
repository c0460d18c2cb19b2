"""Tiny models of the generic path, made once for all its tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from preprocessor.models.generic import GenericModel, load_generic
from tests.golden import oracle  # noqa: F401  # makes torchvision importable, before transformers looks for it
from tests.tiny_omni_processors import ALL_MAKERS

from transformers import AutoProcessor  # isort: skip


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model directory for each maker."""
    folder = tmp_path_factory.mktemp("generic")
    for name, make in ALL_MAKERS.items():
        make(folder / name)
    return folder


@pytest.fixture(scope="session")
def loaded(models: Path) -> dict[str, GenericModel]:
    return {name: load_generic(name, models / name) for name in ALL_MAKERS}


@pytest.fixture(scope="session")
def processors(models: Path) -> dict[str, Any]:
    """The same processors, loaded by transformers alone."""
    return {name: AutoProcessor.from_pretrained(models / name) for name in ALL_MAKERS}
