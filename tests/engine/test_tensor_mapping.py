"""Profiles: what they do to tensors, what they refuse to say, and what real models answer to them."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.triton.local_server import TritonServer
from engine_client import (
    EngineInfo,
    EngineMismatch,
    EngineRejected,
    EngineRequest,
    FinishReason,
    MappingError,
    PixelType,
    SamplingParameters,
    TensorInfo,
    TritonEngine,
    builtin_mapping_names,
    load_mapping,
    parse_mapping,
)
from tests.engine.prompts import image_prompt
from tests.engine.servers import SCRIPTED_REPOSITORY, answer, serving


@pytest.fixture(scope="module")
def legacy_triton() -> Iterator[TritonServer]:
    with serving("legacy_encoders", SCRIPTED_REPOSITORY) as server:
        yield server
        server.kill()


def legacy_prompt() -> dict[str, np.ndarray]:
    """An image of 4 x 6 patches whose pixels the workers made as FP16."""
    tensors = image_prompt()
    return tensors | {"pixel_patches": (tensors["pixel_patches"] % 3).astype(np.float16)}


# -- against real models -----------------------------------------------------------------------------------------------


async def test_the_contract_as_it_is_fits_the_deployed_model(triton: TritonServer) -> None:
    async with TritonEngine(triton.grpc_address, mapping=load_mapping("vlm_transformers")) as engine:
        await engine.check_ready()
        request = EngineRequest("plain", image_prompt(), SamplingParameters(max_tokens=3))
        assert len(await answer(engine, request)) == 3


async def test_the_legacy_layout_arrives_as_its_model_declares_it(legacy_triton: TritonServer) -> None:
    profile, prompt = load_mapping("multimodal_encoders"), legacy_prompt()
    async with TritonEngine(legacy_triton.grpc_address, "legacy_encoders", mapping=profile) as engine:
        await engine.check_ready()
        steps = [step async for step in engine.generate(EngineRequest("l", prompt, SamplingParameters(max_tokens=99)))]
    pixels, ids = prompt["pixel_patches"], prompt["input_ids"]
    assert list(steps[0].token_ids) == [
        *(1, 1, 1, *pixels.shape),
        int(pixels.astype(np.float64).sum()),
        *prompt["grid_thw"][0],
        *(1, len(ids)),
        len(ids),
        ids.sum(),
        99,
        zlib.crc32(pixels.data) & 0x7FFFFFFF,
    ]
    assert [step.finish_reason for step in steps] == [None, FinishReason.STOP]  # told from the count: 15 of 99 tokens


async def test_a_prompt_beyond_the_legacy_layout_is_rejected_unsent(legacy_triton: TritonServer) -> None:
    two_images = legacy_prompt() | {"grid_thw": np.array([[1, 2, 6], [1, 2, 6]], np.int64)}
    profile = load_mapping("multimodal_encoders")
    async with TritonEngine(legacy_triton.grpc_address, "legacy_encoders", mapping=profile) as engine:
        with pytest.raises(EngineRejected, match=r"grid_thw has shape \[2, 3\]; it is to be sent as \[1, 3\]"):
            await answer(engine, EngineRequest("two", two_images))
        with pytest.raises(
            EngineRejected, match=r"pixel_patches is uint8; mapping multimodal_encoders takes pixels as fp16"
        ):
            await answer(engine, EngineRequest("uint8", image_prompt()))


async def test_every_mismatch_is_listed_with_both_sides_and_nothing_is_sent(legacy_triton: TritonServer) -> None:
    text = """
        pixel_form = "bf16"
        other_inputs = "drop"
        [inputs.pixel_patches]
        name = "pixel_values"
        [inputs.grid_thw]
        name = "image_grid_thw"
        datatype = "INT32"
        [inputs.input_ids]
        name = "prompt_ids"
        [outputs.token_ids]
        datatype = "INT64"
    """
    async with TritonEngine(
        legacy_triton.grpc_address, "legacy_encoders", mapping=parse_mapping(text, "bad")
    ) as engine:
        with pytest.raises(EngineMismatch) as raised:
            await engine.check_ready()
        with pytest.raises(EngineMismatch):
            await answer(engine, EngineRequest("r", legacy_prompt()))
    assert set(raised.value.mismatches) == {
        "input pixel_patches is sent as pixel_values of type BF16, and the model takes FP16",
        "input pixel_patches is sent as pixel_values with shape [-1, -1], and the model takes [-1, -1, -1, -1, -1]",
        "input grid_thw is sent as image_grid_thw of type INT32, and the model takes INT64",
        "input input_ids is sent as prompt_ids, and the model takes only "
        "attention_mask, image_grid_thw, max_tokens, pixel_values, vision_input_id",
        "output token_ids is read, and the model gives only output_ids",
        "output finish_reason is read, and the model gives only output_ids",
    }
    assert raised.value.reason == "ENGINE_MISMATCH"
    assert all(mismatch in str(raised.value) for mismatch in raised.value.mismatches)


async def test_the_contract_as_it_is_does_not_fit_a_legacy_model(legacy_triton: TritonServer) -> None:
    profile = load_mapping("vlm_transformers")
    async with TritonEngine(legacy_triton.grpc_address, "legacy_encoders", mapping=profile) as engine:
        with pytest.raises(EngineMismatch, match="pixel_patches is sent as pixel_patches, and the model takes only"):
            await engine.check_ready()


# -- what is compared --------------------------------------------------------------------------------------------------


def test_an_input_that_the_model_requires_and_nobody_sends_is_a_mismatch() -> None:
    profile = parse_mapping('other_inputs = "drop"\n[inputs.input_ids]', "p")
    info = EngineInfo(
        server_name="s",
        server_version="0",
        model_name="m",
        model_versions=("1",),
        inputs=(TensorInfo("input_ids", "INT32", (-1,), False), TensorInfo("beam_width", "INT32", (1,), False)),
        outputs=(TensorInfo("token_ids", "INT32", (-1,)), TensorInfo("finish_reason", "BYTES", (1,))),
    )
    assert profile.mismatches(info) == [
        "input beam_width is required by the model, and nothing is sent under that name"
    ]
    for is_optional in (True, None):  # None: an engine that does not say
        relaxed = replace(info, inputs=(info.inputs[0], replace(info.inputs[1], is_optional=is_optional)))
        assert profile.mismatches(relaxed) == []


# -- what is done to tensors -------------------------------------------------------------------------------------------


def test_the_contract_as_it_is_passes_every_array_on_untouched() -> None:
    prompt = image_prompt() | {"some_models_own": np.ones(2)}
    wire = load_mapping("vlm_transformers").wire_tensors(prompt)
    assert wire.keys() == prompt.keys()
    assert all(wire[name] is prompt[name] for name in prompt)


def test_pixels_are_renamed_and_reshaped_without_a_copy() -> None:
    prompt = legacy_prompt()
    wire = load_mapping("multimodal_encoders").wire_tensors(prompt)
    assert np.shares_memory(wire["pixel_values"], prompt["pixel_patches"])


def test_tensors_are_dropped_converted_and_added() -> None:
    profile = parse_mapping(
        """
        drop = ["item_hash"]
        [inputs.item_spans]
        name = "spans"
        datatype = "INT64"
        [inputs.second_per_grid_ts]
        datatype = "FP16"
        [constants.streaming]
        datatype = "BOOL"
        value = true
        shape = [1, 1]
        [constants.weights]
        datatype = "FP32"
        value = [0.5, 1.5]
        [constants.mask]
        datatype = "INT64"
        value = 1
        like = "input_ids"
        """,
        "p",
    )
    wire = profile.wire_tensors(
        {
            "input_ids": np.array([5, 6, 7], np.int32),
            "item_hash": np.zeros((1, 32), np.uint8),
            "item_spans": np.array([[0, 1, 2]], np.int32),
            "second_per_grid_ts": np.array([0.5], np.float32),
        }
    )
    assert {name: (array.dtype.name, array.tolist()) for name, array in wire.items()} == {
        "input_ids": ("int32", [5, 6, 7]),
        "spans": ("int64", [[0, 1, 2]]),
        "second_per_grid_ts": ("float16", [0.5]),
        "streaming": ("bool", [[True]]),
        "weights": ("float32", [0.5, 1.5]),
        "mask": ("int64", [1, 1, 1]),
    }


def test_a_value_that_the_wanted_type_cannot_hold_is_refused() -> None:
    profile = parse_mapping('[inputs.seed]\ndatatype = "INT32"', "p")
    tensors: dict[str, np.ndarray] = {"input_ids": np.zeros(1, np.int32), "seed": np.array([2**40], np.uint64)}
    with pytest.raises(ValueError, match=f"seed has values from {2**40} to {2**40}; INT32 holds"):
        profile.wire_tensors(tensors)


def test_what_a_constant_is_shaped_like_may_be_missing_from_a_prompt() -> None:
    profile = parse_mapping('[constants.mask]\ndatatype = "INT64"\nvalue = 1\nlike = "pixel_patches"', "p")
    assert profile.wire_tensors({"input_ids": np.zeros(1, np.int32)}).keys() == {"input_ids"}


def test_each_tensors_name_on_the_wire_can_be_asked_for() -> None:
    profile = load_mapping("multimodal_encoders")
    assert [profile.wire_name(name) for name in ("pixel_patches", "item_hash")] == ["pixel_values", None]
    assert load_mapping("vlm_transformers").wire_name("item_hash") == "item_hash"


# -- files -------------------------------------------------------------------------------------------------------------


def test_these_profiles_come_with_the_package() -> None:
    assert builtin_mapping_names() == ["multimodal_encoders", "vlm_transformers"]
    forms = [load_mapping(name).pixel_type for name in builtin_mapping_names()]
    assert forms == [PixelType.FP16, PixelType.UINT8]


def test_a_profile_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('pixel_form = "bf16"')
    assert load_mapping(path).pixel_type is PixelType.BF16


def test_a_profile_that_is_nowhere_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(MappingError, match=r"tensor mapping nowhere .*multimodal_encoders, vlm_transformers"):
        load_mapping("nowhere")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("pixel_from = 'uint8'", r"pixel_from is 'uint8'; accepted: pixel_form or other_inputs"),
        ("[inputs.grid_thw]\nnmae = 'x'", r"inputs\.grid_thw\.nmae is 'x'; accepted: name or datatype or shape"),
        ("[constants.x]\ntype = 'x'", r"constants\.x\.type"),
        ("[outputs.text]", r"outputs\.text"),
        ("[outputs.token_ids]\nshape = [1]", r"outputs\.token_ids\.shape"),
        ("[outputs.finish_reason]\ndatatype = 'BYTES'", r"outputs\.finish_reason\.datatype"),
        ("pixel_form = 'int8'", r"pixel_form is 'int8'; accepted: uint8 or bf16 or fp16 or fp32"),
        ("other_inputs = true", r"other_inputs is True; accepted: send or drop"),
        ("drop = 'item_hash'", r"drop is 'item_hash'; accepted: a list of names"),
        ("drop = ['grid_thw']\n[inputs.grid_thw]", r"drop is \['grid_thw'\]; accepted: names without an entry"),
        ("inputs = 1", r"inputs is 1; accepted: tables \[inputs\.NAME\]"),
        ("[inputs.grid_thw]\nname = ''", r"inputs\.grid_thw\.name is None; accepted: a text"),
        ("[inputs.grid_thw]\ndatatype = 'INT65'", r"inputs\.grid_thw\.datatype is 'INT65'; accepted: a KServe v2 type"),
        ("[inputs.grid_thw]\ndatatype = 'FP16'", r"inputs\.grid_thw\.datatype is 'FP16'; accepted: another integer"),
        ("[inputs.pixel_patches]\ndatatype = 'FP16'", r"inputs\.pixel_patches\.datatype.*pixel_form says"),
        ("[inputs.grid_thw]\nshape = [0, 3]", r"inputs\.grid_thw\.shape is \[0, 3\]; accepted: a list of lengths"),
        ("[constants.x]\ndatatype = 'INT64'", r"constants\.x\.value is None"),
        ("[constants.x]\ndatatype = 'BYTES'\nvalue = 'a'", r"constants\.x\.datatype is 'BYTES'"),
        ("[constants.x]\ndatatype = 'INT8'\nvalue = 300", r"constants\.x\.value is 300; accepted: what INT8 can hold"),
        ("[constants.x]\ndatatype = 'INT8'\nvalue = 1.5", r"constants\.x\.value is 1\.5; accepted: what INT8 can hold"),
        ("[constants.x]\ndatatype = 'INT8'\nvalue = '1'", r"constants\.x\.value is '1'; accepted: what INT8 can hold"),
        ("[constants.x]\ndatatype = 'INT8'\nvalue = [1, 2]\nshape = [3]", r"constants\.x\.shape is \[3\]"),
        ("[constants.x]\ndatatype = 'INT8'\nvalue = [1]\nlike = 'input_ids'", r"constants\.x\.like"),
        ("[constants.x]\ndatatype = 'INT8'\nvalue = 1\nlike = 'nothing'", r"constants\.x\.like is 'nothing'"),
        ("[inputs.grid_thw]\nname = 'input_ids'", r"inputs and constants is \['input_ids'\]; accepted: one tensor"),
        ("[constants.input_ids]\ndatatype = 'INT8'\nvalue = 1", r"inputs and constants is \['input_ids'\]"),
        (
            "[outputs.token_ids]\ndatatype = 'INT16'",
            r"outputs\.token_ids\.datatype is 'INT16'; accepted: INT32 or INT64",
        ),
        ("[outputs.finish_reason]\nname = 'x'\nis_told = false", r"outputs\.finish_reason\.is_told is False"),
        ("pixel_form = ", r"tensor mapping p is not TOML"),
    ],
)
def test_what_a_file_must_not_say_is_refused_by_key_and_value(text: str, complaint: str) -> None:
    with pytest.raises(MappingError, match=complaint) as raised:
        parse_mapping(text, "p")
    assert str(raised.value).startswith("tensor mapping p")
