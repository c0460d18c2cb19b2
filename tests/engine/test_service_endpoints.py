"""The service in front of two Tritons, of which one dies under load, or both are replaced."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from deploy.triton.local_server import TritonServer
from engine_client import EndpointHealth, Endpoints
from preprocessor.models.family import Model
from tests.engine.served import (
    FINISH,
    HELD,
    SCRIPTED_PROFILE,
    SPEC,
    Answer,
    ask,
    assert_at_rest,
    service_before,
    until_ready,
)
from tests.engine.servers import SCRIPTED_REPOSITORY, Gate, serving
from tests.service.conftest import chat
from tests.waiting import eventually

TOKEN_COUNT = 40
WHOLE = list(range(TOKEN_COUNT))
SPECS = (SPEC, chat("No pixels at all."))


@pytest.mark.parametrize("transport", ["auto", "grpc"])
async def test_one_of_two_engines_killed_under_load_costs_no_caller_who_had_no_token_yet(
    model: Model, doomed_triton: TritonServer, scripted_triton: TritonServer, tmp_path: Path, transport: str, gate: Gate
) -> None:
    servers = (doomed_triton, scripted_triton)
    settings = {"asks": "scripted", "profile": SCRIPTED_PROFILE.format(ending=HELD), "transport": transport}
    async with service_before(model, tmp_path, *servers, **settings) as caller:
        await until_ready(caller)
        answering, waiting, late = ([Answer() for _ in range(10)] for _ in range(3))

        def begin(answers: list[Answer], stop_before: int = 0) -> list[asyncio.Task[Answer]]:
            how = {"max_tokens": TOKEN_COUNT, "seed": gate.seed, "top_k": stop_before}
            asked = zip(answers, SPECS * len(answers), strict=False)
            return [asyncio.create_task(ask(caller, one, spec, **how)) for one, spec in asked]

        tasks = begin(answering, stop_before=5)
        await asyncio.gather(*(one.first_token.wait() for one in answering))
        tasks += begin(waiting)
        await eventually(lambda: sum(state.in_flight_count for state in caller.server.engine.states()) == 20)  # type: ignore[union-attr]
        doomed_triton.kill()
        gate.open()
        tasks += begin(late)
        await asyncio.gather(*tasks)

        broken_off = [one for one in answering + waiting + late if one.code is not grpc.StatusCode.OK]
        assert all(one.code is grpc.StatusCode.UNAVAILABLE for one in broken_off)
        assert all(one.token_ids == WHOLE[: len(one.token_ids)] for one in broken_off)
        spared = waiting + late
        assert [one.token_ids for one in spared] == [WHOLE] * len(spared)
        assert broken_off, "none of those who had tokens was at the engine that died"

        await assert_at_rest(caller)
        await until_ready(caller)
        samples = await caller.samples()
        dead, alive = doomed_triton.grpc_address, scripted_triton.grpc_address
        assert samples["preprocessor_engine_standing", dead, "ejected"] == 1
        assert samples["preprocessor_engine_standing", alive, "healthy"] == 1
        retries = samples["preprocessor_engine_retries_total", alive]
        assert samples["preprocessor_engine_requests_total", dead, "failed"] == retries + len(broken_off)
        assert retries > 0
        assert samples["preprocessor_engine_requests_total", alive, "answered"] >= len(spared)


async def test_two_engines_replaced_in_turn_cost_no_caller_anything(
    model: Model, doomed_triton: TritonServer, tmp_path: Path
) -> None:
    """As a StatefulSet does, whose `minReadySeconds` give the service time to take one back before the next one goes."""
    with serving("scripted", SCRIPTED_REPOSITORY) as other:
        servers = (doomed_triton, other)
        settings = {"asks": "scripted", "profile": SCRIPTED_PROFILE.format(ending=FINISH), "transport": "grpc"}
        async with service_before(model, tmp_path, *servers, **settings) as caller:
            await until_ready(caller)
            engine = caller.server.engine
            assert isinstance(engine, Endpoints)
            is_over = asyncio.Event()

            async def keep_asking() -> list[Answer]:
                answers = []
                while not is_over.is_set():
                    answers.append(await ask(caller, Answer()))
                return answers

            asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
            for server in servers:
                await asyncio.to_thread(server.stop)
                await eventually(lambda: any(state.health is EndpointHealth.EJECTED for state in engine.states()))
                await asyncio.to_thread(server.restart)
                await eventually(lambda: all(state.health is EndpointHealth.HEALTHY for state in engine.states()))
            is_over.set()
            answers = [answer for one in await asyncio.gather(*asking) for answer in one]
            assert {(answer.code, *answer.token_ids) for answer in answers} == {(grpc.StatusCode.OK, 0, 1, 2)}
