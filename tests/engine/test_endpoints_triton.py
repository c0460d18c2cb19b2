"""Two real Tritons as one engine, while things happen to one of them."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest

from deploy.triton.local_server import TritonServer
from engine_client import (
    EndpointHealth,
    EndpointPolicy,
    Endpoints,
    EngineDeadlineExceeded,
    EngineError,
    EngineOptions,
    EngineRejected,
    EngineRequest,
    EngineUnavailable,
    SamplingParameters,
    TritonEngine,
    connect_endpoints,
)
from engine_client.triton import stream
from tests.engine.prompts import text_prompt
from tests.engine.relay import Relay
from tests.engine.servers import LONG_ANSWER, Gate, be_impatient, outcome_count
from tests.engine.several import CALM, Ordered, by_name
from tests.waiting import PATIENCE_SECONDS, eventually

FINISH, HELD = 0, 5  # tests/engine/models/scripted
TOKEN_COUNT = 20
BRISK = EndpointPolicy(
    probe_period_seconds=0.05, probe_timeout_seconds=PATIENCE_SECONDS, min_backoff_seconds=0.1, max_backoff_seconds=0.2
)


def scripted(ending: int, token_count: int = 3, **sampling: int) -> EngineRequest:
    tensors = {"input_ids": np.array([ending], np.int32)}
    return EngineRequest("scripted", tensors, SamplingParameters(max_tokens=token_count, **sampling))  # type: ignore[arg-type]


async def answer(endpoints: Endpoints, request: EngineRequest) -> list[int]:
    async with asyncio.timeout(PATIENCE_SECONDS):
        return [token_id async for step in endpoints.generate(request) for token_id in step.token_ids]


def both(a: TritonServer, b: TritonServer, policy: EndpointPolicy = BRISK) -> Endpoints:
    return connect_endpoints([a.grpc_address, b.grpc_address], EngineOptions("scripted"), policy, chance=Ordered())


def engine_of(endpoints: Endpoints, name: str) -> TritonEngine:
    """One of theirs."""
    [engine] = [endpoint.engine for endpoint in endpoints._endpoints if endpoint.name == name]
    assert isinstance(engine, TritonEngine)
    return engine


async def test_one_of_two_engines_killed_under_load_costs_no_request_that_had_no_token_yet(
    doomed_triton: TritonServer, scripted_triton: TritonServer, gate: Gate
) -> None:
    answered = 0
    async with connect_endpoints(
        [doomed_triton.grpc_address, scripted_triton.grpc_address], EngineOptions("scripted")
    ) as endpoints:

        async def ask(index: int) -> list[int] | EngineError:
            """Half of them wait for their first token when it happens; the rest is in the middle of an answer."""
            nonlocal answered
            token_ids: list[int] = []
            try:
                request = scripted(HELD, TOKEN_COUNT, seed=gate.seed, top_k=0 if index % 2 else 5)
                async for step in endpoints.generate(request, timeout_seconds=PATIENCE_SECONDS):
                    answered += not token_ids
                    token_ids += step.token_ids
            except EngineError as error:
                assert error.tokens_received == len(token_ids)
                return error
            return token_ids

        asked = [asyncio.create_task(ask(index)) for index in range(40)]
        await eventually(lambda: answered == 20)  # all that will be now
        await eventually(lambda: sum(state.in_flight_count for state in endpoints.states()) == 40)
        assert by_name(endpoints)[doomed_triton.grpc_address].in_flight_count == 20
        doomed_triton.kill()
        gate.open()
        late = [asyncio.create_task(ask(index)) for index in range(20)]  # who come when it is dead already
        outcomes = await asyncio.gather(*asked)
        late_outcomes = await asyncio.gather(*late)
        states = by_name(endpoints)

    broken_off = [outcome for outcome in outcomes if isinstance(outcome, EngineError)]
    assert broken_off, "none of those who had tokens was at the engine that died"
    assert all(isinstance(error, EngineUnavailable) and error.tokens_received for error in broken_off), broken_off
    whole = [outcome for outcome in (*outcomes, *late_outcomes) if not isinstance(outcome, EngineError)]
    assert len(whole) == 60 - len(broken_off)
    assert all(token_ids == list(range(TOKEN_COUNT)) for token_ids in whole)
    dead, alive = states[doomed_triton.grpc_address], states[scripted_triton.grpc_address]
    assert dead.health is EndpointHealth.EJECTED
    assert alive.health is EndpointHealth.HEALTHY
    assert alive.retry_count == dead.failure_count - len(broken_off) > 0
    assert dead.in_flight_count == alive.in_flight_count == 0


async def test_an_engine_whose_model_process_died_is_left_though_it_says_ready(
    doomed_triton: TritonServer, scripted_triton: TritonServer
) -> None:
    async with both(doomed_triton, scripted_triton) as endpoints:
        assert await answer(endpoints, scripted(FINISH)) == [0, 1, 2]
        for process in doomed_triton.model_pids():
            os.kill(process, signal.SIGKILL)
        be_impatient(engine_of(endpoints, doomed_triton.grpc_address))
        async with TritonEngine(doomed_triton.grpc_address, "scripted") as engine:
            await engine.check_ready()
        for _ in range(BRISK.max_failures + 3):
            assert await answer(endpoints, scripted(FINISH)) == [0, 1, 2]
        victim = by_name(endpoints)[doomed_triton.grpc_address]
    # Later its probes may fail too: Triton 2.51 sometimes crashes when a stream to a dead model is cancelled.
    assert (victim.ejection_count, victim.success_count) == (1, 1)
    assert victim.failure_count >= 1


async def test_an_engine_that_stands_still_is_left_and_comes_back(
    scripted_triton: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SHUTDOWN_SECONDS", 0.2)
    async with (
        Relay(scripted_triton.grpc_address) as relay,
        connect_endpoints(
            [relay.address, scripted_triton.grpc_address],
            EngineOptions("scripted"),
            replace(BRISK, max_failures=1),
            chance=Ordered(),
        ) as endpoints,
    ):
        assert await answer(endpoints, scripted(FINISH)) == [0, 1, 2]
        relay.is_paused = True
        be_impatient(engine_of(endpoints, relay.address))
        assert await answer(endpoints, scripted(FINISH)) == [0, 1, 2]  # by the other, after a silence
        assert by_name(endpoints)[relay.address].health is EndpointHealth.EJECTED
        assert await answer(endpoints, scripted(FINISH)) == [0, 1, 2]
        be_impatient(engine_of(endpoints, relay.address), PATIENCE_SECONDS)
        relay.is_paused = False
        await until_back(endpoints, relay.address)


async def test_an_engine_killed_and_started_again_comes_back(
    doomed_triton: TritonServer, scripted_triton: TritonServer
) -> None:
    async with (
        Relay(doomed_triton.grpc_address) as relay,
        connect_endpoints(
            [relay.address, scripted_triton.grpc_address], EngineOptions("scripted"), BRISK, chance=Ordered()
        ) as endpoints,
    ):
        assert await answer(endpoints, scripted(FINISH)) == [0, 1, 2]
        doomed_triton.kill()
        while by_name(endpoints)[relay.address].health is EndpointHealth.HEALTHY:
            assert await answer(endpoints, scripted(FINISH)) == [0, 1, 2]
        relay.upstream = scripted_triton.grpc_address  # a server at the old address again
        await until_back(endpoints, relay.address)


async def until_back(endpoints: Endpoints, name: str) -> None:
    """Ask on, each time answered, until that endpoint has answered too and is healthy."""
    before = by_name(endpoints)[name].success_count
    async with asyncio.timeout(PATIENCE_SECONDS):
        while by_name(endpoints)[name].success_count == before:
            assert await answer(endpoints, scripted(FINISH)) == [0, 1, 2]
            await asyncio.sleep(0.02)
    assert by_name(endpoints)[name].health is EndpointHealth.HEALTHY


async def test_a_slow_engine_is_not_a_dead_one(scripted_triton: TritonServer, gate: Gate) -> None:
    policy = replace(BRISK, min_silence_seconds=PATIENCE_SECONDS)
    async with Endpoints({"slow": TritonEngine(scripted_triton.grpc_address, "scripted")}, policy) as endpoints:
        for _ in range(BRISK.max_failures + 1):
            with pytest.raises(EngineDeadlineExceeded):
                async for _ in endpoints.generate(scripted(HELD, seed=gate.seed), timeout_seconds=0.1):
                    pass
        assert by_name(endpoints)["slow"].health is EndpointHealth.HEALTHY
        gate.open()
        assert await answer(endpoints, scripted(HELD, seed=gate.seed)) == [0, 1, 2]


async def test_an_engine_without_the_model_is_left_for_one_that_has_it(scripted_triton: TritonServer) -> None:
    engines = {
        "without": TritonEngine(scripted_triton.grpc_address, "elsewhere"),
        "with": TritonEngine(scripted_triton.grpc_address, "scripted"),
    }
    async with Endpoints(engines, BRISK, chance=Ordered()) as endpoints:
        await endpoints.check_ready()
        for _ in range(5):
            assert await answer(endpoints, scripted(FINISH)) == [0, 1, 2]
        state = by_name(endpoints)["without"]
    assert state.success_count == 0
    assert "not loaded" in state.last_error or "unknown model" in state.last_error


async def test_when_no_engine_has_the_model_the_error_says_so_of_each(scripted_triton: TritonServer) -> None:
    engines = {name: TritonEngine(scripted_triton.grpc_address, name) for name in ("here", "there")}
    async with Endpoints(engines, BRISK) as endpoints:
        with pytest.raises(
            EngineUnavailable, match=r"here .*model here .*not loaded; there .*model there .*not loaded"
        ):
            await endpoints.check_ready()


async def test_a_wrong_dtype_is_rejected_once_and_blames_no_endpoint(
    scripted_triton: TritonServer,
) -> None:
    engines = {
        "a": TritonEngine(scripted_triton.grpc_address, "scripted"),
        "b": TritonEngine(scripted_triton.grpc_address, "scripted"),
    }
    async with Endpoints(engines, CALM, chance=Ordered()) as endpoints:
        for _ in range(CALM.max_failures + 1):
            with pytest.raises(EngineRejected, match="INT64"):
                await answer(endpoints, EngineRequest("wrong", {"input_ids": np.array([FINISH], np.int64)}))
        states = endpoints.states()
        assert await answer(endpoints, scripted(FINISH)) == [0, 1, 2]
    assert [(state.failure_count, state.retry_count, state.health) for state in states] == [
        (0, 0, EndpointHealth.HEALTHY),
        (0, 0, EndpointHealth.HEALTHY),
    ]


async def test_leaving_stops_the_engine_that_answers(triton: TritonServer) -> None:
    before = outcome_count(triton, "cancelled")
    async with connect_endpoints(triton.grpc_address) as endpoints:
        request = EngineRequest("left", text_prompt(), LONG_ANSWER)
        async with aclosing(endpoints.generate(request)) as steps:
            await anext(steps)
        await eventually(lambda: outcome_count(triton, "cancelled") == before + 1)
