"""The client of vLLM before a server that breaks, restarts as another, or is none that can be served."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from engine_client import (
    EndpointHealth,
    EndpointPolicy,
    Endpoints,
    EngineError,
    EngineFailed,
    EngineMismatch,
    EngineOptions,
    EngineOverloaded,
    EngineRejected,
    EngineRequest,
    EngineUnavailable,
    Fingerprint,
    OnMismatch,
    SamplingParameters,
    connect_endpoints,
)
from engine_client.contract.tensors import Array
from engine_client.vllm import VllmEngine
from engine_client.vllm.server import read_bundle
from preprocessor.config import EngineSettings
from preprocessor.models import registry
from preprocessor.models.family import Model
from preprocessor.models.fingerprint import fingerprint_parts
from preprocessor.models.registry import read_model_files
from tests.engine import served
from tests.engine.late_calls import LateCalls
from tests.engine.scripted_vllm import CORE_IS_DEAD, Script, ScriptedVllm
from tests.engine.several import by_name
from tests.engine.tiny_families import WRITERS
from tests.engine.vllm_prompts import answer, clip, once_connected, tensors_of, until_ready
from tests.loading import load_family_model
from tests.service.conftest import chat, serving
from tests.waiting import PATIENCE_SECONDS, eventually

TEXT: Mapping[str, Array] = {"input_ids": np.array([1, 2, 3], np.int32)}


@pytest_asyncio.fixture
async def server() -> AsyncIterator[ScriptedVllm]:
    async with ScriptedVllm() as scripted:
        yield scripted


@pytest_asyncio.fixture
async def engine(server: ScriptedVllm) -> AsyncIterator[VllmEngine]:
    async with VllmEngine(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def tensors(model: Model) -> dict[str, Array]:
    return tensors_of(model, (clip(),))


async def restart(server: ScriptedVllm) -> None:
    await server.stop()
    await server.start()


@pytest.mark.parametrize("is_probed", [False, True])
async def test_after_a_restart_pixels_have_the_form_that_the_server_takes_now(
    server: ScriptedVllm, engine: VllmEngine, tensors: Mapping[str, Array], is_probed: bool
) -> None:
    await answer(engine, tensors)
    server.script.normalizes = False
    await restart(server)
    if is_probed:  # which connects again before the prompt does
        await until_ready(engine)
    await once_connected(lambda: answer(engine, tensors))
    assert [prompt.mm_inputs.pixel_values.dtype for prompt in server.prompts] == ["uint8", "float32"]


async def test_one_connection_asks_once_what_the_server_is(server: ScriptedVllm, engine: VllmEngine) -> None:
    for _ in range(3):
        await engine.check_ready()
        await answer(engine, TEXT)
    assert server.asked_count == 1


@pytest.mark.parametrize("is_asked", [False, True])
async def test_an_answer_by_a_later_connection_than_the_server_s_is_refused_whatever_others_do(
    server: ScriptedVllm, engine: VllmEngine, is_asked: bool
) -> None:
    """Another request fails on the connection that is lost; or another caller asks the new server what it is."""
    server.script.is_silent = True
    other = asyncio.create_task(answer(engine, TEXT))
    await eventually(lambda: server.running_count == 1)
    with LateCalls(engine._connection) as late:
        asking = asyncio.create_task(answer(engine, TEXT))
        await eventually(lambda: late.count == 1)
    await server.stop()
    with pytest.raises(EngineUnavailable):
        await other
    server.script = Script(normalizes=False)
    await server.start()
    if is_asked:
        await until_ready(engine)
    else:
        await once_connected(lambda: engine._connection.ask("HealthCheck", b"", 5.0))
    late.go_on()
    with pytest.raises(EngineUnavailable, match="the connection was made anew"):
        await asking
    assert (await answer(engine, TEXT))[0] == [1, 2, 3]


async def test_a_server_that_is_exchanged_while_its_description_is_read_is_asked_again(
    server: ScriptedVllm, engine: VllmEngine, tensors: Mapping[str, Array], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_reading, may_end = threading.Event(), threading.Event()

    def read_late(chunks: list[bytes]) -> Mapping[str, Any]:
        is_reading.set()
        assert may_end.wait(PATIENCE_SECONDS)
        return read_bundle(chunks)

    monkeypatch.setattr("engine_client.vllm.served_model.read_bundle", read_late)
    asking = asyncio.create_task(answer(engine, tensors))
    await eventually(is_reading.is_set)
    await server.stop()
    server.script.normalizes = False
    await server.start()
    await once_connected(lambda: engine._connection.ask("HealthCheck", b"", 5.0))
    may_end.set()
    await asking
    assert server.asked_count == 2
    assert [prompt.mm_inputs.pixel_values.dtype for prompt in server.prompts] == ["float32"]


async def test_a_server_that_takes_longer_than_a_probe_to_describe_itself_becomes_ready(
    server: ScriptedVllm, engine: VllmEngine
) -> None:
    gate = server.script.files_gate = asyncio.Event()
    policy = EndpointPolicy(probe_period_seconds=60.0, min_backoff_seconds=0.01, max_failures=1000)
    async with Endpoints({"vllm": engine}, policy) as endpoints:
        while not server.asked_count:
            with pytest.raises(EngineUnavailable):
                await endpoints.check_ready(0.2)
        for _ in range(2):
            with pytest.raises(EngineUnavailable):
                await endpoints.check_ready(0.2)
        gate.set()
        await once_connected(endpoints.check_ready)
    assert server.asked_count == 1


async def test_a_probe_tells_what_was_found_after_an_earlier_one_had_given_up(
    server: ScriptedVllm, engine: VllmEngine
) -> None:
    gate = server.script.files_gate = asyncio.Event()
    server.script.model_type = "llava"
    while not server.asked_count:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await engine.check_ready()
    gate.set()
    await eventually(lambda: engine._model._reading._ended_at > 0)
    with pytest.raises(EngineMismatch, match="its model is of the type llava"):
        await engine.check_ready()
    assert server.asked_count == 1


async def test_another_model_behind_the_address_is_refused_by_name_and_gets_no_prompt(
    server: ScriptedVllm, model: Model
) -> None:
    async with VllmEngine(server.address, fingerprint=Fingerprint(fingerprint_parts(model))) as engine:
        await answer(engine, TEXT)
        for script, message in (
            (Script(model_type="qwen2_5_vl"), "fingerprint family of the engine is qwen2_5_vl, of this side qwen3_vl"),
            (Script(model_type="llava"), "its model is of the type llava"),
            (Script(files={"tokenizer.json": {"model": {"vocab": {"a": 0}}}}), "tokenizer_sha256 of the engine is"),
        ):
            server.script = script
            await restart(server)
            with pytest.raises(EngineMismatch, match=message):
                await once_connected(lambda: answer(engine, TEXT))
            with pytest.raises(EngineMismatch, match=message):
                await engine.check_ready()
        server.script = Script()
        await restart(server)
        await once_connected(lambda: answer(engine, TEXT))
    assert len(server.prompts) == 2


async def test_a_servicer_before_0_14_is_refused_at_connect(server: ScriptedVllm, engine: VllmEngine) -> None:
    """As a real vLLM 0.32 with smg-grpc-servicer 0.13.6 was, on 2026-11-29."""
    server.script.encoder_dtype = ""  # a field that they do not have
    for ask in (engine.check_ready(), answer(engine, TEXT)):
        with pytest.raises(EngineMismatch, match=r"install smg-grpc-servicer>=0\.14 there"):
            await ask
    assert not server.prompts


async def test_what_cannot_be_compared_is_said_once(
    server: ScriptedVllm, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    async with VllmEngine(server.address, fingerprint=Fingerprint(fingerprint_parts(model))) as engine:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                await until_ready(engine)
                await restart(server)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "leaves out merge_size, patch_size, pixel_mean, pixel_std, rescale_factor, temporal_patch_size" in said
    assert "tokenizer_sha256" in said


async def test_a_model_with_its_files_satisfies_a_service_that_requires_a_fingerprint(
    server: ScriptedVllm, model: Model
) -> None:
    files = Path(registry.__file__).parent / "builtin" / "qwen3-vl"
    tokenizer = json.loads(model.tokenizer.backend_tokenizer.to_str())
    server.script.files = {
        "preprocessor_config.json": json.loads((files / "preprocessor_config.json").read_text()),
        "tokenizer.json": tokenizer,
    }
    required = Fingerprint(fingerprint_parts(model), OnMismatch.REQUIRE)  # with markers, which no file of a model tells
    async with VllmEngine(server.address, fingerprint=required) as engine:
        await engine.check_ready()
    server.script.files = {"tokenizer.json": tokenizer}
    async with VllmEngine(server.address, fingerprint=required) as engine:
        with pytest.raises(EngineMismatch, match="patch_size is not published"):
            await engine.check_ready()


@pytest.mark.parametrize("token_ids", [(), (1, 2)])
async def test_a_dead_core_is_unavailable_though_the_server_says_ready(
    server: ScriptedVllm, engine: VllmEngine, token_ids: tuple[int, ...]
) -> None:
    server.script = Script(token_ids=token_ids, error=(grpc.StatusCode.INTERNAL, CORE_IS_DEAD))
    await engine.check_ready()
    with pytest.raises(EngineUnavailable, match="EngineCore") as raised:
        await answer(engine, TEXT)
    assert raised.value.tokens_received == len(token_ids)


@pytest.mark.parametrize(
    "details",
    [
        "worker is saturated: 8 multimodal requests in flight and as many waiting",
        "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.",
        "The engine has reached its prefill token backlog limit. Please try again later or on a different instance.",
    ],
)
async def test_a_full_server_is_overloaded_and_as_healthy_as_before(server: ScriptedVllm, details: str) -> None:
    server.script = Script(token_ids=(), error=(grpc.StatusCode.UNAVAILABLE, details))
    async with connect_endpoints(f"vllm://{server.address}", EngineOptions()) as endpoints:
        assert isinstance(endpoints, Endpoints)
        for _ in range(10):  # as many failures would eject it
            with pytest.raises(EngineOverloaded, match=details[:30]):
                await answer(endpoints, TEXT)
        (state,) = by_name(endpoints).values()
        assert state.health is EndpointHealth.HEALTHY
        assert server.asked_count == 1  # nor is it asked again what it is
        server.script.error = None
        assert (await answer(endpoints, TEXT))[0] == []


async def test_a_server_that_answers_prompts_is_ready_however_late_its_health_check_is(
    server: ScriptedVllm, engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.script.health_gate = asyncio.Event()
    with pytest.raises(EngineUnavailable, match="did not say within"):
        await engine.check_ready(0.1)
    await answer(engine, TEXT)
    await engine.check_ready(0.1)
    monkeypatch.setattr("engine_client.vllm.served_model._LATELY_SECONDS", 0.0)
    with pytest.raises(EngineUnavailable, match="did not say within"):
        await engine.check_ready(0.1)


async def test_a_server_that_says_why_it_is_not_healthy_is_not_ready(server: ScriptedVllm, engine: VllmEngine) -> None:
    server.script.unhealthy = "Engine is not alive"
    with pytest.raises(EngineUnavailable, match="Engine is not alive"):
        await engine.check_ready()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (grpc.StatusCode.INTERNAL, EngineFailed),
        (grpc.StatusCode.INVALID_ARGUMENT, EngineRejected),
        (grpc.StatusCode.UNAVAILABLE, EngineUnavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, EngineOverloaded),
    ],
)
async def test_an_error_is_the_callers_and_the_next_prompt_is_answered(
    server: ScriptedVllm, engine: VllmEngine, status: grpc.StatusCode, kind: type[EngineError]
) -> None:
    server.script.error = (status, "so says the script")
    with pytest.raises(kind, match="so says the script") as raised:
        await answer(engine, TEXT)
    assert type(raised.value) is kind
    server.script.error = None
    assert (await answer(engine, TEXT))[0] == [1, 2, 3]


async def test_a_full_server_is_not_asked_again_what_it_is(server: ScriptedVllm, engine: VllmEngine) -> None:
    server.script.error = (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
    for _ in range(3):
        with pytest.raises(EngineOverloaded):
            await answer(engine, TEXT)
    assert server.asked_count == 1


async def test_a_server_that_falls_silent_is_unavailable_and_its_prompt_is_aborted(server: ScriptedVllm) -> None:
    server.script.is_silent = True
    async with VllmEngine(server.address) as engine:
        async with aclosing(engine.generate(EngineRequest("r", TEXT, SamplingParameters(max_tokens=9)))) as steps:
            await anext(steps)
            engine._max_silence_seconds = 0.3  # not before: a busy machine may take as long to the first token
            with pytest.raises(EngineUnavailable, match=r"sent nothing for 0\.3 s"):
                async for _ in steps:
                    pass
        await eventually(lambda: server.left_count == 1)


async def test_a_server_killed_in_mid_answer_is_unavailable_and_found_again(
    server: ScriptedVllm, engine: VllmEngine
) -> None:
    server.script.is_silent = True
    async with aclosing(engine.generate(EngineRequest("r", TEXT, SamplingParameters(max_tokens=9)))) as steps:
        await anext(steps)
        await server.stop()
        with pytest.raises(EngineUnavailable) as raised:
            async for _ in steps:
                pass
    assert raised.value.tokens_received >= 1
    with pytest.raises(EngineUnavailable):
        await answer(engine, TEXT)
    server.script = Script()
    await server.start()
    await until_ready(engine)
    assert (await answer(engine, TEXT))[0] == [1, 2, 3]


@pytest.mark.parametrize("waits_for", ["its description", "a token", "the next token"])
async def test_closing_the_client_ends_what_it_waits_for(
    server: ScriptedVllm, engine: VllmEngine, waits_for: str
) -> None:
    server.script.files_gate = asyncio.Event() if waits_for == "its description" else None
    server.script.gate = asyncio.Event() if waits_for == "a token" else None
    server.script.is_silent = True
    received: list[int] = []
    asking = asyncio.create_task(answer(engine, TEXT, on_tokens=received.extend))
    await eventually(
        {
            "its description": lambda: server.asked_count == 1,
            "a token": lambda: server.running_count == 1,
            "the next token": lambda: received == [1, 2, 3],
        }[waits_for]
    )
    await engine.close()
    with pytest.raises(EngineUnavailable, match="is closed"):
        await asking


async def test_a_caller_that_is_cancelled_while_the_client_closes_is_cancelled(
    server: ScriptedVllm, engine: VllmEngine
) -> None:
    server.script.gate = asyncio.Event()
    asking = asyncio.create_task(answer(engine, TEXT))
    await eventually(lambda: server.running_count == 1)
    asking.cancel()
    await engine.close()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_new_client_connects_at_once_while_another_pauses_between_its_attempts(server: ScriptedVllm) -> None:
    await server.stop()
    async with VllmEngine(server.address) as earlier:
        with pytest.raises(EngineUnavailable):
            await earlier.check_ready()
        await asyncio.sleep(1)  # its pauses are half a second by now
        await server.start()
        async with VllmEngine(server.address) as later:
            assert (await answer(later, TEXT))[0] == [1, 2, 3]


async def test_a_context_that_a_restart_made_shorter_is_respected(server: ScriptedVllm, engine: VllmEngine) -> None:
    await answer(engine, TEXT)
    server.script.context_tokens = 3
    await restart(server)
    with pytest.raises(EngineRejected, match="the engine's context holds 3"):
        await once_connected(lambda: answer(engine, TEXT))
    assert len(server.prompts) == 1


@pytest.mark.parametrize("has_files", [False, True])
async def test_a_server_that_sends_no_files_is_guarded_by_those_of_this_side(
    server: ScriptedVllm, tensors: Mapping[str, Array], has_files: bool
) -> None:
    """As a vLLM that was started with a hub id: a video without its vision marker ends the core of a real one."""
    files = read_model_files("qwen3-vl") if has_files else {}
    start_id = read_model_files("qwen3-vl")["config.json"]["vision_start_token_id"]
    ids = tensors["input_ids"]
    broken = {**tensors, "input_ids": np.where(ids == start_id, start_id + 5, ids)}
    async with VllmEngine(server.address, model_files=files) as engine:
        assert (await answer(engine, tensors))[0] == [1, 2, 3]
        if has_files:
            with pytest.raises(EngineRejected, match="no vision marker"):
                await answer(engine, broken)
        else:
            await answer(engine, broken)
    assert len(server.prompts) == 1 + (not has_files)


async def test_a_service_serves_a_family_whose_sizes_a_server_without_files_does_not_tell(
    server: ScriptedVllm, tmp_path: Path
) -> None:
    server.script.model_type = "gemma3"
    WRITERS["gemma3"](tmp_path)
    model = load_family_model(str(tmp_path))
    async with serving(model, engine_settings=EngineSettings(address=f"vllm://{server.address}")) as caller:
        assert (await served.ask(caller, served.Answer(), chat("What?"))).code is grpc.StatusCode.OK
    async with VllmEngine(server.address) as engine:
        with pytest.raises(
            EngineMismatch, match="it sends none of the model's files, as a vLLM that was started with a hub id"
        ):
            await answer(engine, TEXT)


@pytest.mark.parametrize("name", ["pixel_values", "image_sizes", "input_features"])
async def test_tensors_of_a_models_own_processor_are_refused_and_not_dropped(
    server: ScriptedVllm, engine: VllmEngine, name: str
) -> None:
    with pytest.raises(EngineRejected, match=f"{name} of another processor cannot be sent to vLLM"):
        await answer(engine, {**TEXT, name: np.zeros((1, 3), np.float32)})
    assert not server.prompts


@pytest.mark.parametrize("method", ["HealthCheck", "GetModelInfo", "GetServerInfo", "GetTokenizer"])
async def test_a_server_whose_answers_cannot_be_read_is_not_ready(
    server: ScriptedVllm, engine: VllmEngine, method: str
) -> None:
    server.script.files = {"config.json": {}}
    server.garbled.add(method)
    with pytest.raises(EngineUnavailable, match="another protocol"):
        await engine.check_ready()


async def test_an_answer_that_cannot_be_read_ends_its_prompt_at_once(server: ScriptedVllm, engine: VllmEngine) -> None:
    await answer(engine, TEXT)
    server.garbled.add("Generate")
    with pytest.raises(EngineFailed, match="another protocol"):
        await answer(engine, TEXT)


async def test_one_of_two_servers_that_dies_under_load_costs_no_caller_who_had_no_token_yet(
    server: ScriptedVllm,
) -> None:
    gate = server.script.gate = asyncio.Event()
    async with (
        ScriptedVllm() as doomed,
        connect_endpoints(f"vllm://{doomed.address},vllm://{server.address}", EngineOptions()) as endpoints,
    ):
        assert isinstance(endpoints, Endpoints)

        received: list[int] = []

        async def ask() -> list[int] | EngineError:
            try:
                return (await answer(endpoints, TEXT, on_tokens=received.extend))[0]
            except EngineError as error:
                return error

        asked = []
        for token_ids, count in (((), 10), ((1,), 20)):
            doomed.script = Script(token_ids=token_ids, is_silent=True)
            asked += [asyncio.create_task(ask()) for _ in range(10)]
            await eventually(lambda count=count: doomed.running_count + server.running_count == count)  # type: ignore[misc]
        assert doomed.running_count == 10
        await eventually(lambda: len(received) == 5)
        await doomed.stop()
        gate.set()
        outcomes = await asyncio.gather(*asked, *(ask() for _ in range(10)))
        states = by_name(endpoints)
    broken_off = [outcome for outcome in outcomes if isinstance(outcome, EngineError)]
    assert len(broken_off) == 5
    assert all(isinstance(error, EngineUnavailable) and error.tokens_received == 1 for error in broken_off), broken_off
    assert all(outcome == [1, 2, 3] for outcome in outcomes if not isinstance(outcome, EngineError))
    assert [state.in_flight_count for state in states.values()] == [0, 0]
    assert states[f"vllm://{server.address}"].health is EndpointHealth.HEALTHY
