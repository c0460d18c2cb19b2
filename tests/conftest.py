"""Fixtures that more than one folder of tests needs."""

from __future__ import annotations

import pytest

from preprocessor.models.family import Model
from preprocessor.models.registry import load_model


@pytest.fixture(scope="session")
def model() -> Model:
    """The built-in qwen3-vl; loading it takes two seconds."""
    return load_model("qwen3-vl")
