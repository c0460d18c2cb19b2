"""`vlm_tensorrt_llm` in a real Triton: its configuration, how it fails to start, and its glue, over a real client.

There is no TensorRT-LLM here, so the first tests see it missing, and the others put `stand_in/` in its place: what they
prove is everything around the engine.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
import torch

from deploy.triton.local_server import TritonServer, TritonSetupError
from engine_client import (
    EngineFailed,
    EngineMismatch,
    EngineRejected,
    EngineRequest,
    EngineUnavailable,
    Fingerprint,
    FinishReason,
    SamplingParameters,
    TritonEngine,
    load_mapping,
)
from engine_client.triton.backend.rows import normalize_patches
from tests.engine.servers import answer, outcome_count
from tests.engine.tensorrt_llm_model import (
    FOLDER,
    PARAMETERS,
    Tensors,
    image_tensors,
    mixed_tensors,
    settings,
    text_tensors,
)
from tests.engine.tensorrt_llm_server import serving_stand_in
from tests.waiting import PATIENCE_SECONDS, eventually

MODEL = FOLDER.name
MAX_IN_FLIGHT = 3
COUNT_UP, END_ID, FAIL, SILENT, REFUSED, LEAVING, CHECKSUM, LINGERING = 1, 2, 4, 6, 7, 8, 9, 12  # stand_in/…/script.py
FOUR_TOKENS = SamplingParameters(max_tokens=4)


# -- without TensorRT-LLM ----------------------------------------------------------------------------------------------


def test_without_tensorrt_llm_the_model_does_not_load_and_names_the_releases_that_it_knows() -> None:
    with (
        pytest.raises(TritonSetupError) as raised,
        TritonServer([MODEL], environment={"VLM_CHECKPOINT": "Qwen/Qwen3-VL-4B-Instruct"}),
    ):
        pass
    assert "vlm_tensorrt_llm: tensorrt_llm cannot be imported (No module named 'tensorrt_llm')" in str(raised.value)
    assert "this model knows the releases 1.3.0rc23 to 1.4.0rc1" in str(raised.value)


def test_without_a_checkpoint_the_model_says_where_to_name_one() -> None:
    with (
        pytest.raises(TritonSetupError, match="checkpoint is empty, and so is VLM_CHECKPOINT"),
        TritonServer([MODEL], environment={"VLM_CHECKPOINT": ""}),
    ):
        pass


def test_the_configuration_has_every_parameter_that_is_read() -> None:
    text = (FOLDER / "config.pbtxt").read_text()
    written = dict(line.split('key: "')[1].split('"', 1) for line in text.splitlines() if 'key: "' in line)
    values = {name: rest.split('string_value: "')[1].rpartition('"')[0] for name, rest in written.items()}
    assert {name for name in values if not name.startswith("fingerprint.")} == set(PARAMETERS)
    assert settings.ModelParameters.from_parameters(values, {"VLM_CHECKPOINT": "there"}).pixel_device == "cuda:0"


def test_both_models_share_what_is_the_same_for_every_engine() -> None:
    for model in (MODEL, "vlm_transformers"):
        text = (FOLDER.with_name(model) / "1/model.py").read_text()
        assert "from engine_client.contract.assembler import PromptAssembler" in text
        assert "from engine_client.triton.backend.receiver import OpenPrompt, PromptReceiver" in text


# -- with the stand-in -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """For the tests that leave it as it was."""
    with serving_stand_in(tmp_path_factory, max_in_flight=str(MAX_IN_FLIGHT)) as running:
        yield running


@pytest_asyncio.fixture
async def client(server: TritonServer) -> AsyncIterator[TritonEngine]:
    async with TritonEngine(server.grpc_address, MODEL) as one:
        yield one


def asked(tensors: Tensors, sampling: SamplingParameters = FOUR_TOKENS) -> EngineRequest:
    return EngineRequest("asked", tensors, sampling)


def taken_count(server: TritonServer) -> int:
    """Prompts that the stand-in has begun with."""
    return server.log_path.read_text().count("the stand-in takes a prompt")


def outcomes(server: TritonServer, *names: str) -> list[int]:
    return [outcome_count(server, name) for name in names]


async def test_tokens_are_streamed_and_the_last_has_the_reason(client: TritonEngine) -> None:
    steps = [step async for step in client.generate(asked(mixed_tensors(COUNT_UP)))]
    assert [step.token_ids for step in steps] == [(0,), (1,), (2,), (3,)]
    assert [step.finish_reason for step in steps] == [None, None, None, FinishReason.LENGTH]


async def test_it_takes_the_engine_contract_as_it_is(server: TritonServer) -> None:
    profile, fingerprint = (
        load_mapping("vlm_transformers"),
        Fingerprint({"contract_version": "1", "family": "qwen3-vl"}),
    )
    async with TritonEngine(server.grpc_address, MODEL, mapping=profile, fingerprint=fingerprint) as engine:
        await engine.check_ready()
        assert await answer(engine, asked(mixed_tensors(COUNT_UP))) == [0, 1, 2, 3]


async def test_it_is_not_asked_by_those_who_speak_another_contract(server: TritonServer) -> None:
    async with TritonEngine(server.grpc_address, MODEL, fingerprint=Fingerprint({"contract_version": "2"})) as engine:
        with pytest.raises(EngineMismatch, match="contract_version of the engine is 1, of this side 2"):
            await answer(engine, asked(text_tensors(COUNT_UP)))


async def test_a_stop_token_is_the_last(client: TritonEngine) -> None:
    sampling = SamplingParameters(max_tokens=4, stop_token_ids=(40, 41))
    steps = [step async for step in client.generate(asked(text_tensors(END_ID), sampling))]
    assert [token_id for step in steps for token_id in step.token_ids] == [0, 1, 40]
    assert steps[-1].finish_reason is FinishReason.STOP


async def test_pixels_arrive_normalized_in_the_models_dtype(client: TritonEngine) -> None:
    tensors = image_tensors(CHECKSUM)
    floats = normalize_patches(torch.from_numpy(tensors["pixel_patches"]), tensors["pixel_mean"], tensors["pixel_std"])
    expected = zlib.crc32(floats.to(torch.bfloat16).float().numpy().tobytes()) & 0x7FFFFFFF
    assert await answer(client, asked(tensors)) == [expected]


async def test_an_answer_that_is_left_is_aborted(server: TritonServer, client: TritonEngine) -> None:
    [before] = outcomes(server, "cancelled")
    async with aclosing(client.generate(asked(text_tensors(LINGERING)))) as steps:
        await anext(steps)
    taken_before = taken_count(server)
    silent = asyncio.create_task(answer(client, asked(text_tensors(SILENT))))
    await eventually(lambda: taken_count(server) > taken_before)
    silent.cancel()
    await eventually(lambda: outcomes(server, "cancelled") == [before + 2])


async def test_a_prompt_too_many_is_refused_as_unavailable(server: TritonServer, client: TritonEngine) -> None:
    [before] = outcomes(server, "cancelled")
    tasks = [asyncio.create_task(answer(client, asked(text_tensors(SILENT)))) for _ in range(MAX_IN_FLIGHT + 1)]
    done, _ = await asyncio.wait(tasks, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    with pytest.raises(EngineUnavailable, match="too many prompts are here already; 3 may be"):
        done.pop().result()
    await eventually(lambda: outcomes(server, "cancelled") == [before + MAX_IN_FLIGHT])
    assert await answer(client, asked(text_tensors(COUNT_UP))) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("tensors", "error", "complaint", "outcome"),
    [
        pytest.param(
            {"input_ids": image_tensors()["input_ids"]}, EngineRejected, "2 placeholder", "rejected", id="bad"
        ),
        pytest.param(text_tensors(REFUSED), EngineRejected, "the script refuses", "rejected", id="refused"),
        pytest.param(text_tensors(LEAVING), EngineUnavailable, "LLM is shutting down", "refused", id="leaving"),
        pytest.param(text_tensors(FAIL), EngineFailed, "the script fails", "failed", id="failing"),
    ],
)
async def test_an_error_is_the_callers_or_the_engines(
    server: TritonServer, client: TritonEngine, tensors: Tensors, error: type[Exception], complaint: str, outcome: str
) -> None:
    [before] = outcomes(server, outcome)
    with pytest.raises(error, match=complaint):
        await answer(client, asked(tensors))
    assert outcomes(server, outcome) == [before + 1]
    assert await answer(client, asked(text_tensors(COUNT_UP))) == [0, 1, 2, 3]


async def test_unloading_waits_for_answers_and_then_shuts_the_engine_down(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    with serving_stand_in(tmp_path_factory) as server:
        async with TritonEngine(server.grpc_address, MODEL) as client:
            steps = client.generate(asked(text_tensors(COUNT_UP), SamplingParameters(max_tokens=60)))
            received = [(await anext(steps)).token_ids]
            unloading = asyncio.create_task(unload(server))
            received += [step.token_ids async for step in steps]
            await unloading
        assert received == [(token_id,) for token_id in range(60)]
        await eventually(lambda: "the stand-in is shut down" in server.log_path.read_text())


async def unload(server: TritonServer) -> None:
    request = b"\x12" + bytes([len(MODEL)]) + MODEL.encode()  # RepositoryModelUnloadRequest.model_name
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        call: Any = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelUnload")
        await call(request, timeout=PATIENCE_SECONDS)
