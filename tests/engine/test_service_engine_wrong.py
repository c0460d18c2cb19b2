"""An engine that is slow, or not the one that was meant: what callers of the service get, and what is left behind."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from deploy.triton.local_server import TritonServer
from engine_client import EndpointHealth
from preprocessor.client.calls import CallFailed
from preprocessor.models.family import Model
from tests.engine.served import (
    FAIL,
    HELD,
    PIECES_PROFILE,
    SCRIPTED_PROFILE,
    SPEC,
    Answer,
    ask,
    assert_at_rest,
    sent_whole_count,
    service_before,
    until_ready,
)
from tests.engine.servers import Gate, outcome_count
from tests.service.conftest import Caller, chat
from tests.waiting import GROWING_SECONDS, PATIENCE_SECONDS, eventually

MAX_RUNNING = 4  # deploy/triton/models/vlm_transformers/config.pbtxt
LONG = 100_000


async def refused(caller: Caller) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        await caller.generate(SPEC)
    return caught.value


async def test_a_deadline_that_passes_while_the_engine_is_busy_stops_that_prompt_alone(
    model: Model, triton: TritonServer, tmp_path: Path
) -> None:
    async with service_before(model, tmp_path, triton, asks="vlm_transformers") as caller:
        before = outcome_count(triton, "cancelled")
        running = [Answer() for _ in range(MAX_RUNNING)]
        tasks = [asyncio.create_task(ask(caller, one, chat("Tell me."), max_tokens=LONG)) for one in running]
        await asyncio.gather(*(one.first_token.wait() for one in running))
        for seconds in GROWING_SECONDS:  # until the engine has had the prompt before its deadline
            asking = asyncio.create_task(ask(caller, Answer(), timeout_seconds=seconds))
            await eventually(lambda: asking.done() or sent_whole_count(caller) > MAX_RUNNING)  # noqa: B023
            has_begun = not asking.done()
            late = await asking
            assert (late.code, late.token_ids) == (grpc.StatusCode.DEADLINE_EXCEEDED, [])
            if has_begun:
                break
        assert has_begun
        lengths = [len(one.token_ids) for one in running]
        await eventually(lambda: all(len(one.token_ids) > was for one, was in zip(running, lengths, strict=True)))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await eventually(lambda: outcome_count(triton, "cancelled") > before + MAX_RUNNING)
        assert len((await ask(caller, Answer(), chat("Now?"))).token_ids) == 3


async def test_a_deadline_that_passes_before_the_first_token_blames_no_engine(
    model: Model, scripted_triton: TritonServer, tmp_path: Path, gate: Gate
) -> None:
    profile = SCRIPTED_PROFILE.format(ending=HELD)
    async with service_before(model, tmp_path, scripted_triton, asks="scripted", profile=profile) as caller:
        [endpoint] = caller.server.engine._endpoints  # type: ignore[union-attr]
        breaker = endpoint.breaker
        breaker._policy = replace(
            breaker._policy, min_silence_seconds=PATIENCE_SECONDS
        )  # no silence here is a long one
        for _ in range(breaker._policy.max_failures + 1):
            answer = await ask(caller, Answer(), timeout_seconds=0.3, seed=gate.seed)
            assert (answer.code, answer.token_ids) == (grpc.StatusCode.DEADLINE_EXCEEDED, [])
        await assert_at_rest(caller)
        await until_ready(caller)
        assert (endpoint.state.health, endpoint.state.failure_count) == (EndpointHealth.HEALTHY, 0)
        assert (await ask(caller, Answer())).token_ids == [0, 1, 2]


async def test_a_model_that_breaks_at_a_request_says_so_and_takes_the_next(
    model: Model, scripted_triton: TritonServer, tmp_path: Path
) -> None:
    profile = SCRIPTED_PROFILE.format(ending=FAIL)
    async with service_before(model, tmp_path, scripted_triton, asks="scripted", profile=profile) as caller:
        for _ in range(4):
            error = await refused(caller)
            assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "ENGINE_FAILED")
            assert "the script says so" in error.message
        await until_ready(caller)


async def test_a_model_that_is_not_loaded_makes_the_service_unready_and_is_named(
    model: Model, scripted_triton: TritonServer, tmp_path: Path
) -> None:
    async with service_before(model, tmp_path, scripted_triton, asks="elsewhere") as caller:
        assert "model elsewhere" in await until_ready(caller, is_ready=False)
        error = await refused(caller)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE")
        assert "elsewhere" in error.message
        assert (await caller.prepare(SPEC)).header.token_count > 0


async def test_a_type_that_the_model_does_not_take_is_found_before_the_first_prompt_where_a_profile_says_what_is_sent(
    model: Model, pieces_triton: TritonServer, tmp_path: Path
) -> None:
    profile = f'pixel_form = "fp16"\n{PIECES_PROFILE}'
    async with service_before(model, tmp_path, pieces_triton, asks="pieces", profile=profile) as caller:
        assert "of type FP16, and the model takes UINT8" in await until_ready(caller, is_ready=False)
        error = await refused(caller)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_MISMATCH")
        assert "of type FP16, and the model takes UINT8" in error.message


async def test_without_a_profile_the_engine_itself_turns_away_what_it_does_not_take(
    model: Model, pieces_triton: TritonServer, tmp_path: Path
) -> None:
    async with service_before(model, tmp_path, pieces_triton, asks="pieces") as caller:
        await until_ready(caller)
        error = await refused(caller)
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ENGINE_REJECTED")
        assert "missing required input" in error.message
