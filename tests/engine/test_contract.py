"""The check of prompts that the served models make, without Triton: `engine_client.contract`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.triton.local_server import REPOSITORY
from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.layout import ModelLayout
from engine_client.contract.prompt import check_prompt
from engine_client.contract.sampling import SamplingParameters
from engine_client.contract.tensors import (
    CONTRACT_INPUTS,
    FAMILY_INPUTS,
    FEATURE_OUTPUTS,
    FEATURE_TENSORS,
    FIRST_ROW,
    HELD_INPUTS,
    HELD_OUTPUTS,
    ContractTensor,
)
from engine_client.triton.backend.rows import normalize_patches
from engine_client.triton.kserve import datatype_of
from tests.engine.model_files import model_file
from tests.engine.prompts import (
    FEATURE_COUNT,
    IMAGE_TOKEN,
    MEAN,
    STD,
    VIDEO_TOKEN,
    PromptBuilder,
    image_prompt,
    mixed_prompt,
    text_prompt,
    video_prompt,
)

generation = model_file("vlm_transformers", "generation")

LAYOUT = ModelLayout(
    patch_size=16,
    temporal_patch_size=2,
    merge_size=2,
    image_token_id=IMAGE_TOKEN,
    video_token_id=VIDEO_TOKEN,
    vocabulary_size=151936,
    max_positions=128000,
)
Tensors = dict[str, np.ndarray]


def build(tensors: Tensors) -> dict[str, torch.Tensor]:
    inputs: dict[str, torch.Tensor] = generation.build_model_inputs(check_prompt(tensors, LAYOUT), torch.device("cpu"))
    return inputs


def test_text_alone_makes_text_inputs() -> None:
    inputs = build(text_prompt())
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert inputs["input_ids"].dtype == torch.int64
    assert inputs["input_ids"].shape == (1, 8)


def test_grids_are_dealt_to_their_modality_in_order() -> None:
    prompt = mixed_prompt()
    inputs = build(prompt)
    assert prompt["grid_thw"].tolist() == [[1, 4, 4], [2, 6, 4], [1, 2, 8]]
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4], [1, 2, 8]]
    assert inputs["video_grid_thw"].tolist() == [[2, 6, 4]]
    assert check_prompt(prompt, LAYOUT).row_count == 80


def test_a_prompt_may_be_checked_before_its_rows_have_come() -> None:
    prompt = mixed_prompt()
    del prompt["pixel_patches"]
    assert check_prompt(prompt, LAYOUT).row_count == 80


def test_token_types_mark_the_placeholders() -> None:
    prompt = mixed_prompt()
    ids = prompt["input_ids"]
    expected = np.where(ids == IMAGE_TOKEN, 1, np.where(ids == VIDEO_TOKEN, 2, 0))
    assert build(prompt)["mm_token_type_ids"][0].tolist() == expected.tolist()


def test_normalized_patches_equal_the_processors_float32_bit_for_bit() -> None:
    values = np.tile(np.arange(256, dtype=np.uint8), FEATURE_COUNT // 256)[None]
    channels = values.reshape(3, -1).astype(np.float32)
    # transformers 5.23, `_fuse_mean_std_and_rescale_factor`: mean and std times 255 in float32, then two float32 steps.
    expected = (channels - MEAN[:, None] * np.float32(255)) / (STD[:, None] * np.float32(255))
    got = normalize_patches(torch.from_numpy(values), MEAN, STD)
    assert got.numpy().tobytes() == expected.astype(np.float32).tobytes()


def test_names_of_other_engines_are_ignored() -> None:
    assert set(build(image_prompt() | {"item_hash": np.zeros((1, 32), np.uint8)})) == set(build(image_prompt()))


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda prompt: {name: array for name, array in prompt.items() if name not in names}


def with_values(name: str, values: Any, dtype: type[np.generic]) -> Callable[[Tensors], Tensors]:
    return lambda prompt: prompt | {name: np.array(values, dtype)}


def moved_span(row: int, column: int, by: int) -> Callable[[Tensors], Tensors]:
    def change(prompt: Tensors) -> Tensors:
        spans = prompt["item_spans"].copy()
        spans[row, column] += by
        return prompt | {"item_spans": spans}

    return change


# video_prompt: 3 temporal steps of 4 x 4 patches; spans of 4 tokens at offsets 8, 18, 28.
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (without("input_ids"), "input_ids is missing"),
        (with_values("input_ids", [], np.int32), "input_ids is empty"),
        (with_values("input_ids", [1, 151936], np.int32), "vocabulary is 0 to 151935"),
        (with_values("input_ids", [-1], np.int32), "input_ids range from -1"),
        (with_values("input_ids", [1, 2], np.int64), r"must be int32 \[any\]"),
        (without("grid_thw"), "came without grid_thw"),
        (without("item_spans"), "item_spans is missing"),
        (without("grid_thw", "pixel_patches", "item_modality", "item_spans"), "12 placeholder tokens"),
        (with_values("pixel_patches", np.zeros((48, 1536)), np.float32), "must be uint8"),
        (with_values("pixel_patches", np.zeros((47, 1536)), np.uint8), r"need \[48, 1536\]"),
        (with_values("pixel_patches", np.zeros((48, 1176)), np.uint8), r"need \[48, 1536\]"),
        (with_values("pixel_std", [0.5, 0.0, 0.5], np.float32), "pixel_std is"),
        (with_values("grid_thw", [[3, 4, 5]], np.int64), "multiples of 2"),
        (with_values("grid_thw", [[0, 4, 4]], np.int64), "must be positive"),
        (with_values("grid_thw", [[3, 4]], np.int64), r"must be int64 \[any, 3\]"),
        (with_values("item_modality", [1], np.int32), "an image has t = 1"),
        (with_values("item_modality", [3], np.int32), r"takes 1 \(image\) and 2 \(video\)"),
        (with_values("item_modality", [2, 2], np.int32), "they must agree"),
        (moved_span(0, 0, 1), "must name items in order"),
        (moved_span(0, 1, 1), "only the placeholder token 151656"),
        (moved_span(0, 2, 1), "must have length 4"),
        (moved_span(2, 1, 1000), "within 35 input ids"),
        (moved_span(2, 1, -10), "must follow the span before it"),
        (moved_span(0, 1, -100), "must follow the span before it"),
        (
            with_values("item_spans", [[0, 8, 4], [0, 18, 4]], np.int32),
            "has 2 spans; its grid has t = 3, which makes 3",
        ),
        (with_values("item_spans", np.zeros((0, 3)), np.int32), "has 0 spans"),
    ],
)
def test_a_contradiction_is_named(change: Callable[[Tensors], Tensors], complaint: str) -> None:
    prompt = video_prompt()
    assert prompt["item_spans"].tolist() == [[0, 8, 4], [0, 18, 4], [0, 28, 4]]
    with pytest.raises(InvalidPrompt, match=complaint):
        build(change(prompt))


def test_two_images_need_text_between_them() -> None:
    prompt = PromptBuilder().image(2, 2).image(2, 2).tensors()
    ids = [IMAGE_TOKEN, IMAGE_TOKEN]  # the runs would be one, and the second image would get no rotary positions
    spans = np.array([[0, 0, 1], [1, 1, 1]], np.int32)
    with pytest.raises(InvalidPrompt, match="touches the span before it"):
        build(prompt | {"input_ids": np.array(ids, np.int32), "item_spans": spans})


def test_sampling_without_tensors_has_the_defaults() -> None:
    assert SamplingParameters.from_tensors({}) == SamplingParameters()


@pytest.mark.parametrize("stop_token_ids", [(), (7, 8)])
def test_sampling_is_what_its_tensors_say(stop_token_ids: tuple[int, ...]) -> None:
    sampling = SamplingParameters(9, 0.5, 0.25, 3, 2**64 - 1, stop_token_ids)
    assert SamplingParameters.from_tensors(sampling.tensors()) == sampling


FEATURES: dict[str, Any] = {
    "temperature": 0.5,
    "min_p": 0.25,
    "presence_penalty": -2.0,
    "frequency_penalty": 1.5,
    "repetition_penalty": 1.25,
    "logprobs": 0,
    "answer_count": 128,
    "grammar": 'root ::= "é"',
}


def test_features_travel_as_tensors_and_only_where_they_are_set() -> None:
    sampling = SamplingParameters(**FEATURES)
    assert sampling.features == FEATURES.keys() - {"temperature"}
    tensors = sampling.tensors()
    for name in sampling.features:
        assert tensors[name].dtype == FEATURE_TENSORS[name].dtype
        assert tensors[name].ndim == len(FEATURE_TENSORS[name].shape)
    assert SamplingParameters.from_tensors(tensors) == sampling
    assert not SamplingParameters().tensors().keys() & FEATURE_TENSORS.keys()
    assert SamplingParameters(logprobs=None, repetition_penalty=1.0, presence_penalty=-0.0).features == frozenset()


def test_a_text_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(InvalidPrompt, match="regex is no text in UTF-8"):
        SamplingParameters.from_tensors({"regex": np.array([255], np.uint8)})


@pytest.mark.parametrize(
    ("name", "values", "dtype"),
    [
        ("min_p", [1.5], np.float32),
        ("presence_penalty", [np.nan], np.float32),
        ("repetition_penalty", [0], np.float32),
        ("logprobs", [21], np.int32),
        ("answer_count", [2], np.int32),  # with a temperature of 0
        ("max_tokens", [0], np.int32),
        ("max_tokens", [1, 2], np.int32),
        ("temperature", [-1], np.float32),
        ("temperature", [np.nan], np.float32),
        ("top_p", [0], np.float32),
        ("top_p", [1.1], np.float32),
        ("top_k", [-1], np.int32),
    ],
)
def test_sampling_out_of_range_is_named(name: str, values: list[float], dtype: type[np.generic]) -> None:
    with pytest.raises(InvalidPrompt, match=name):
        SamplingParameters.from_tensors({name: np.array(values, dtype)})


CONFIGURATIONS = [
    *sorted(REPOSITORY.glob("*/config.pbtxt")),
    REPOSITORY.parents[1] / "kustomize/components/model/config.pbtxt",
]


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.parent.name)
def test_models_declare_the_contract_s_tensors(path: Path) -> None:
    inputs, _ = declared_tensors(path)
    contract = as_declared(CONTRACT_INPUTS)
    others = {name: tensor for name, tensor in inputs.items() if name not in FEATURE_TENSORS}
    held = as_declared(HELD_INPUTS) if others.keys() & HELD_INPUTS.keys() else {}
    families = as_declared(FAMILY_INPUTS) if others.keys() & FAMILY_INPUTS.keys() else {}
    assert others == contract | held | families | {FIRST_ROW: ("INT64", (1,))}


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.parent.name)
def test_models_declare_the_features_that_they_have_with_their_outputs(path: Path) -> None:
    inputs, outputs = declared_tensors(path)
    features = {name: tensor for name, tensor in inputs.items() if name in FEATURE_TENSORS}
    assert features
    assert features == as_declared({name: FEATURE_TENSORS[name] for name in features})
    expected = [as_declared(FEATURE_OUTPUTS[name]) for name in features if name in FEATURE_OUTPUTS]
    expected += [as_declared(HELD_OUTPUTS)] if inputs.keys() & HELD_INPUTS.keys() else []
    assert {name: tensor for name, tensor in outputs.items() if name not in ("token_ids", "finish_reason")} == {
        name: tensor for each in expected for name, tensor in each.items()
    }


def declared_tensors(path: Path) -> tuple[dict[str, tuple[str, tuple[int, ...]]], ...]:
    """Inputs and outputs of a configuration: name → type and shape."""
    sections = re.split(r"^output \[", path.read_text(), flags=re.MULTILINE)
    found = [
        re.findall(r'name: "(\w+)" +data_type: TYPE_(\w+) +dims: \[ ([-\d, ]+) \]( +optional: true)?', section)
        for section in sections
    ]
    assert all(optional for *_, optional in found[0])
    return tuple(
        {name: (datatype, tuple(map(int, dims.split(",")))) for name, datatype, dims, _ in section} for section in found
    )


def as_declared(tensors: Mapping[str, ContractTensor]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {tensor.name: (datatype_of(tensor.name, tensor.dtype), tensor.shape) for tensor in tensors.values()}
