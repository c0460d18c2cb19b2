"""Our pipeline against older_goldens.json: prompts as transformers before 5.10 wrote them, exactly."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from preprocessor.config import Limits
from preprocessor.models.family import Model
from preprocessor.models.registry import load_model
from preprocessor.pipeline import plan
from preprocessor.types.plan import Plan
from preprocessor.types.request import PreparationRequest, TextPrompt, TokenPrompt
from tests.golden.cases import older_cases
from tests.golden.make_older_goldens import GOLDENS, RELEASES

GOLDEN: dict[str, Any] = json.loads(GOLDENS.read_text())


def sha256(array: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()


@cache
def replacing() -> Model:
    model = load_model("qwen3-vl", "replace")
    assert isinstance(model, Model)
    return model


@cache
def planned(case: str) -> Plan:
    return plan(replacing(), older_cases()[case], Limits())


def older_texts() -> dict[str, str]:
    return {name: one.prompt.text for name, one in older_cases().items() if isinstance(one.prompt, TextPrompt)}


def written(release: str, case: str, ours: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Our plan as it stands in older_goldens.json, and what stands there."""
    ids, spans = ours.token_ids, ours.tensors.get("item_spans", np.empty((0, 3), np.int32))
    return {
        "length": len(ids),
        "first": ids[:12].tolist(),
        "last": ids[-12:].tolist(),
        "token_ids": sha256(ids),
        "runs": spans[:, 1:].tolist(),
        "mrope_position_ids": sha256(ours.tensors["mrope_position_ids"]),
        "mrope_position_delta": ours.tensors["mrope_position_delta"].item(),
    }, GOLDEN[release]["cases"][case]


def test_every_case_was_recorded_with_each_release() -> None:
    assert all(list(GOLDEN[release]["cases"]) == list(older_cases()) for release in RELEASES)
    assert [GOLDEN[release]["made_with"]["transformers"] for release in RELEASES] == list(RELEASES)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("case", older_cases())
def test_tokens_spans_and_positions_are_those_of_older_releases(release: str, case: str) -> None:
    ours, golden = written(release, case, planned(case))
    assert ours == golden


# Where a space stands before a video, its first time stamp takes the space into its token; ready ids have it apart.
@pytest.mark.parametrize("case", [name for name, text in older_texts().items() if " <|video_pad|>" not in text])
def test_ready_token_ids_give_the_same_prompt(case: str) -> None:
    ids = tuple(replacing().tokenizer(older_texts()[case])["input_ids"])
    ours = plan(replacing(), PreparationRequest(TokenPrompt(ids), older_cases()[case].media), Limits())
    np.testing.assert_array_equal(ours.token_ids, planned(case).token_ids)
    np.testing.assert_array_equal(ours.tensors["item_spans"], planned(case).tensors["item_spans"])
