"""A slice of `make parity`, and what only a directory can show: fine-tunes, and Qwen3.5's tokenizer."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed; the goldens are checked without it", allow_module_level=True)

from tests.parity.cases import ROUND, case, make_request
from tests.parity.compare import differences
from tests.parity.directories import model_named
from tests.parity.small_models import SMALL_MODELS

ALIKE = {"qwen3.8", "qwen2.5-omni"}


def is_run(number: int) -> bool:
    """Two rounds of Qwen's models, of which the second is slow, one of the small ones, and what mixes media of those that differ
    little from another."""
    asked = case(number)
    if asked.model in ALIKE:
        return number < ROUND and asked.media == "mixed"
    return number < ROUND or asked.model not in SMALL_MODELS


NUMBERS = [
    pytest.param(number, marks=[pytest.mark.slow] if number >= ROUND else [])
    for number in range(2 * ROUND)
    if is_run(number)
]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: str(case(number)))
def test_a_random_request_comes_out_as_from_hugging_face(number: int, model_folder: Path) -> None:
    model = model_named(case(number).model, model_folder)
    assert differences(model, make_request(case(number), model)) == []
