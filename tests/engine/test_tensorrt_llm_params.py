"""Contract tensors become what TensorRT-LLM's input processors make: written down by hand, or by their own rule.

No TensorRT-LLM is needed: `deploy/triton/models/vlm_tensorrt_llm/1/params.py` is pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.sampling import SamplingParameters, TokenLogprob
from tests.engine import tensorrt_llm_model
from tests.engine.tensorrt_llm_model import (
    IMAGE_TOKEN,
    LAYOUT,
    VIDEO_TOKEN,
    Tensors,
    image_tensors,
    mixed_tensors,
    params,
    text_tensors,
    video_tensors,
)


def build(tensors: Tensors, family: str = "qwen3_vl", dtype: torch.dtype = torch.float32, *, reuse: bool = True) -> Any:
    return tensorrt_llm_model.build(tensors, LAYOUT, family, dtype, reuses_kv_blocks=reuse)


def pixels_of_rows(*rows: int) -> torch.Tensor:
    """Row i holds 3i, 3i + 1, 3i + 2; mean 0, 0.5, 1 and std 1, 0.5, 0.25 by channel."""
    values = [(3 * row / 255, ((3 * row + 1) / 255 - 0.5) / 0.5, ((3 * row + 2) / 255 - 1) / 0.25) for row in rows]
    return torch.tensor(values)


# -- layout ------------------------------------------------------------------------------------------------------------


def test_text_alone_has_positions_and_nothing_else() -> None:
    built = build(text_tensors(1, 2, 3))
    assert built.prompt_token_ids == [1, 2, 3]
    assert set(built.multimodal_data) == {"mrope_config"}
    assert (built.item_order, built.keys) == (None, None)


def test_positions_of_text_alone_count_up_where_none_came() -> None:
    config = build({"input_ids": np.array([1, 2, 3], np.int32)}).multimodal_data["mrope_config"]
    assert config["mrope_position_ids"].tolist() == [[[0, 1, 2]]] * 3
    assert config["mrope_position_deltas"].tolist() == [[0]]


def test_positions_are_int64_with_a_batch_axis_and_the_delta_is_int32() -> None:
    config = build(image_tensors()).multimodal_data["mrope_config"]
    assert config["mrope_position_ids"].dtype == torch.int64
    assert config["mrope_position_ids"].tolist() == [[[0, 0, 1, 1]]] * 3
    assert config["mrope_position_deltas"].dtype == torch.int32
    assert config["mrope_position_deltas"].tolist() == [[-2]]


def test_an_image_has_pixels_and_grid() -> None:
    data = build(image_tensors()).multimodal_data
    assert set(data) == {"image", "mrope_config", "multimodal_embedding_lengths"}
    assert torch.allclose(data["image"]["pixel_values"], pixels_of_rows(0, 1))
    assert data["image"]["image_grid_thw"].tolist() == [[1, 1, 2]]
    assert data["image"]["image_grid_thw"].dtype == torch.int64


def test_a_video_has_them_under_names_of_its_own() -> None:
    data = build(video_tensors(), "qwen2_5_vl").multimodal_data
    assert set(data) == {"video", "mrope_config", "multimodal_embedding_lengths"}
    assert torch.allclose(data["video"]["pixel_values_videos"], pixels_of_rows(0, 1, 2, 3))
    assert data["video"]["video_grid_thw"].tolist() == [[2, 1, 2]]


def test_a_mixed_prompt_is_grouped_by_modality_and_says_in_which_order_it_was() -> None:
    built = build(mixed_tensors())
    data = built.multimodal_data
    assert torch.allclose(data["image"]["pixel_values"], pixels_of_rows(0, 1, 4))
    assert torch.allclose(data["video"]["pixel_values_videos"], pixels_of_rows(2, 3))
    assert data["image"]["image_grid_thw"].tolist() == [[1, 1, 2], [1, 1, 1]]
    assert data["video"]["video_grid_thw"].tolist() == [[2, 1, 1]]
    assert built.item_order == [
        {"modality": "image", "index": 0},
        {"modality": "video", "index": 0},
        {"modality": "image", "index": 1},
    ]
    assert data["multimodal_embedding_lengths"] == [2, 2, 1]  # in prompt order, not by modality


def test_one_modality_needs_no_order() -> None:
    assert build(image_tensors()).item_order is None


def test_placeholders_keep_their_ids() -> None:
    ids = build(mixed_tensors()).prompt_token_ids
    assert ids == [1, 97, 97, 2, 98, 3, 98, 4, 97, 5]
    assert all(type(token_id) is int for token_id in ids)


def test_pixels_come_in_the_models_dtype() -> None:
    assert build(image_tensors(), dtype=torch.bfloat16).multimodal_data["image"]["pixel_values"].dtype == torch.bfloat16


def test_the_callers_arrays_are_not_the_engines() -> None:
    tensors = mixed_tensors()
    before = {name: array.copy() for name, array in tensors.items()}
    data = build(tensors).multimodal_data
    data["image"]["pixel_values"].zero_()
    data["mrope_config"]["mrope_position_ids"].zero_()
    data["mrope_config"]["mrope_position_deltas"].zero_()
    assert all(np.array_equal(tensors[name], array) for name, array in before.items())


# -- keys for KV blocks ------------------------------------------------------------------------------------------------


def test_each_item_has_its_first_position_its_length_and_its_runs() -> None:
    keys = build(mixed_tensors()).keys
    assert keys.positions == [1, 4, 8]
    assert keys.lengths == [2, 2, 1]
    assert keys.item_run_cu_offsets == [0, 1, 3, 4]
    assert keys.run_positions == [1, 4, 6, 8]
    assert keys.run_lengths == [2, 1, 1, 1]


def test_a_video_in_one_run_is_one_run() -> None:
    keys = build(video_tensors(), "qwen2_vl").keys
    assert (keys.positions, keys.lengths, keys.item_run_cu_offsets) == ([1], [4], [0, 1])


def test_a_hash_is_eight_signed_integers_highest_byte_first() -> None:
    digest = bytes.fromhex("00000001ffffffff800000007fffffff01020304" + "00000000" * 3)
    tensors = image_tensors() | {"item_hash": np.frombuffer(digest, np.uint8)[None]}
    assert build(tensors).keys.hashes == [[1, -1, -(2**31), 2**31 - 1, 0x01020304, 0, 0, 0]]


def test_hashes_equal_the_integers_that_tensorrt_llm_reads_from_a_hex_digest() -> None:
    digests = np.random.default_rng(0).integers(0, 256, (3, 32), np.uint8)
    for digest, got in zip(digests, build(mixed_tensors() | {"item_hash": digests}).keys.hashes, strict=True):
        text = digest.tobytes().hex()
        unsigned = [int(text[start : start + 8], 16) for start in range(0, 64, 8)]
        assert got == [value - 2**32 if value > 0x7FFFFFFF else value for value in unsigned]


def test_without_block_reuse_a_hash_may_be_missing() -> None:
    tensors = without("item_hash")(mixed_tensors())
    assert build(tensors, reuse=False).keys is None
    assert build(tensors, reuse=False).multimodal_data["multimodal_embedding_lengths"] == [2, 2, 1]


# -- refusals ----------------------------------------------------------------------------------------------------------


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda prompt: {name: array for name, array in prompt.items() if name not in names}


def with_values(name: str, values: Any, dtype: type[np.generic]) -> Callable[[Tensors], Tensors]:
    return lambda prompt: prompt | {name: np.array(values, dtype)}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (without("mrope_position_ids"), "mrope_position_ids is missing"),
        (without("mrope_position_delta"), "mrope_position_delta is missing"),
        (with_values("mrope_position_ids", np.zeros((3, 9)), np.int32), r"must be int32 \[3, 10\]"),
        (with_values("mrope_position_ids", np.zeros((3, 10)), np.int64), "mrope_position_ids is int64"),
        (with_values("mrope_position_ids", np.full((3, 10), -1), np.int32), "range from -1"),
        (with_values("mrope_position_ids", np.full((3, 10), 64), np.int32), "the model has 0 to 63"),
        (with_values("mrope_position_delta", [-5, 0], np.int32), r"must be int32 \[1\]"),
        (with_values("mrope_position_delta", [3], np.int32), r"mrope_position_delta is 3; .* have -5"),
        (without("item_hash"), "item_hash is missing"),
        (with_values("item_hash", np.zeros((3, 31)), np.uint8), r"must be uint8 \[3, 32\]"),
        (with_values("item_hash", np.zeros((2, 32)), np.uint8), r"item_hash is uint8 \[2, 32\]"),
        (with_values("item_hash", np.zeros((3, 32)), np.int8), "item_hash is int8"),
        # By the check that both models share; tests/engine/test_contract.py has the rest.
        (without("pixel_patches"), "pixel_patches is missing"),
        (with_values("input_ids", [1, 100], np.int32), "vocabulary is 0 to 99"),
        (with_values("item_spans", [[0, 1, 2]], np.int32), "item 1 has 0 spans"),
    ],
)
def test_a_contradiction_is_named(change: Callable[[Tensors], Tensors], complaint: str) -> None:
    with pytest.raises(InvalidPrompt, match=complaint):
        build(change(mixed_tensors()))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_a_mixed_prompt_is_refused_where_features_might_be_dealt_to_the_wrong_items(family: str) -> None:
    tensors = image_tensors()
    ids = [1, IMAGE_TOKEN, 2, VIDEO_TOKEN]
    tensors |= {
        "input_ids": np.array(ids, np.int32),
        "grid_thw": np.array([[1, 1, 1], [1, 1, 1]]),
        "item_modality": np.array([1, 2], np.int32),
        "item_spans": np.array([[0, 1, 1], [1, 3, 1]], np.int32),
        "item_hash": np.zeros((2, 32), np.uint8),
    }
    assert build(tensors, "qwen3_vl").item_order
    with pytest.raises(InvalidPrompt, match="Send one kind a prompt"):
        build(tensors, family)


@pytest.mark.parametrize(("family", "runs"), [("qwen3_vl", 2), ("qwen2_5_vl", 1)])
def test_a_video_in_the_form_of_another_family_is_refused(family: str, runs: int) -> None:
    other = "qwen2_5_vl" if family == "qwen3_vl" else "qwen3_vl"
    tensors = video_tensors()
    if family == "qwen3_vl":  # two runs with a token between them
        tensors |= {
            "input_ids": np.array([1, 98, 98, 2, 98, 98], np.int32),
            "item_spans": np.array([[0, 1, 2], [0, 4, 2]], np.int32),
        }
    assert len(build(tensors, family).keys.run_lengths) == runs
    with pytest.raises(InvalidPrompt, match="must have length"):
        build(tensors, other)


# -- sampling ----------------------------------------------------------------------------------------------------------


def test_greedy_is_a_choice_of_one() -> None:
    assert params.sampling_arguments(SamplingParameters(max_tokens=5, seed=7), 9) == {
        "max_tokens": 5,
        "top_k": 1,
        "detokenize": False,
        "include_stop_str_in_output": True,
    }


def test_sampling_always_says_top_p() -> None:
    arguments = params.sampling_arguments(SamplingParameters(temperature=0.5, seed=7), 9)
    assert {name: arguments.get(name) for name in ("temperature", "top_p", "top_k", "seed")} == {
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": None,
        "seed": 7,
    }


def test_top_k_is_handed_on() -> None:
    assert params.sampling_arguments(SamplingParameters(temperature=1.0, top_k=9), 9)["top_k"] == 9


@pytest.mark.parametrize(("stops", "end_id", "others"), [((), None, None), ((5,), 5, None), ((5, 6, 7), 5, [6, 7])])
def test_the_first_stop_token_is_the_end_and_the_others_stop_too(
    stops: tuple[int, ...], end_id: int | None, others: list[int] | None
) -> None:
    arguments = params.sampling_arguments(SamplingParameters(stop_token_ids=stops), 9)
    assert (arguments.get("end_id"), arguments.get("stop_token_ids")) == (end_id, others)


def test_with_a_constraint_the_checkpoints_own_end_stays() -> None:
    arguments = params.sampling_arguments(SamplingParameters(stop_token_ids=(7, 8), json_schema="{}"), 10)
    assert "end_id" not in arguments
    assert arguments["stop_token_ids"] == [7, 8]


def test_a_feature_is_handed_on_only_where_it_is_set() -> None:
    plain = params.sampling_arguments(SamplingParameters(), 9)
    features: dict[str, Any] = {"min_p": 0.5, "repetition_penalty": 2.0, "logprobs": 0}
    assert params.sampling_arguments(SamplingParameters(**features), 9) == plain | features
    counted = params.sampling_arguments(SamplingParameters(presence_penalty=1.0), 9)
    assert counted == plain | {"presence_penalty": 1.0, "prompt_ignore_length": 9}


@pytest.mark.parametrize(("name", "guide"), [("json_schema", "json"), ("regex", "regex"), ("grammar", "grammar")])
def test_a_constraint_has_tensorrt_llm_s_name(name: str, guide: str) -> None:
    constraint: dict[str, Any] = {name: "{}"}
    arguments = params.sampling_arguments(SamplingParameters(**constraint), 9)
    assert arguments["guided_decoding"] == {guide: "{}"}


def test_a_token_that_nothing_is_told_of_has_no_number_and_as_many_alternatives() -> None:
    likely = [{5: SimpleNamespace(logprob=-3.0), 6: SimpleNamespace(logprob=-1.0), 7: SimpleNamespace(logprob=-2.0)}]
    known, unknown = params.token_logprobs([5, 99], likely, 2)
    assert known == TokenLogprob(-3.0, ((6, -1.0), (7, -2.0)))
    assert math.isnan(unknown.logprob)
    assert [token_id for token_id, _ in unknown.top] == [99, 99]


@pytest.mark.parametrize(
    ("token_ids", "stop_reason", "missing"),
    [([1, 2], None, [5]), ([1, 5], None, []), ([1, 2], 6, [6]), ([1, 6], 6, []), ([], None, [5])],
)
def test_the_stop_token_is_added_where_it_was_cut_off(
    token_ids: list[int], stop_reason: int | None, missing: list[int]
) -> None:
    assert params.missing_stop_token(token_ids, 5, [6, 7], stop_reason) == missing
