"""Requests are checked when they are made, and show shapes rather than pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_client import EngineRequest, FinishReason, SamplingParameters


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 2**31),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("seed", -1),
        ("seed", 2**64),
        ("stop_token_ids", (5, -1)),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", float("nan")),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("repetition_penalty", 17.0),
        ("logprobs", -1),
        ("logprobs", 21),
        ("answer_count", 0),
        ("answer_count", 129),
    ],
)
def test_a_value_out_of_range_is_named_with_its_value(name: str, value: Any) -> None:
    shown = value[-1] if isinstance(value, tuple) else value
    with pytest.raises(ValueError, match=rf"{name}.* is {shown}; it must be"):
        SamplingParameters(**{name: value})


def test_the_ends_of_every_range_are_taken() -> None:
    SamplingParameters(max_tokens=1, temperature=0.0, top_p=1.0, top_k=0, seed=0)
    SamplingParameters(max_tokens=2**31 - 1, temperature=100.0, top_p=1e-9, top_k=2**31 - 1, seed=2**64 - 1)


def test_the_ends_of_the_ranges_of_features_are_taken() -> None:
    SamplingParameters(min_p=1, presence_penalty=-2, frequency_penalty=2, repetition_penalty=1 / 16, logprobs=20)
    SamplingParameters(temperature=1, answer_count=128, repetition_penalty=16, logprobs=0, regex="a" * (64 << 10))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"answer_count": 2}, "answer_count is 2 with temperature 0"),
        ({"regex": "a", "json_schema": "{}"}, "json_schema is given beside regex; it must be the only constraint"),
        ({"grammar": "é" * (32 << 10) + "a"}, "grammar is of 65537 bytes; it must be of at most 65536"),
    ],
)
def test_parameters_that_contradict_each_other_or_are_too_large_are_named(
    given: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        SamplingParameters(**given)


def test_a_request_needs_input_ids() -> None:
    with pytest.raises(ValueError, match="input_ids"):
        EngineRequest("r", {"pixel_patches": np.zeros((1, 1), np.uint8)})


def test_a_request_shows_shapes_and_not_data() -> None:
    request = EngineRequest("r", {"input_ids": np.zeros(9, np.int32), "pixel_patches": np.zeros((4, 8), np.uint8)})
    assert "pixel_patches: uint8 [4, 8]" in repr(request)
    assert "array" not in repr(request)


def test_finish_reasons_are_the_words_of_the_contract() -> None:
    assert [str(reason) for reason in FinishReason] == ["stop", "length"]
