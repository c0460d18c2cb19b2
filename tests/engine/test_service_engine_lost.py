"""Triton dies, or forgets, or its model's process does: what callers of the service get, and what is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from deploy.triton.local_server import TritonServer
from engine_client.triton import kserve, kserve_regions
from preprocessor.client import CallFailed
from preprocessor.models.family import Model
from preprocessor.service import health
from tests.engine.served import (
    CHECKSUM,
    FINISH,
    HELD,
    PIECES_PROFILE,
    SCRIPTED_PROFILE,
    SPEC,
    Answer,
    ask,
    assert_at_rest,
    checksum,
    engines_of,
    registered,
    sent_whole_count,
    service_before,
    until_ready,
)
from tests.engine.servers import Gate, be_impatient
from tests.service.conftest import Caller, chat
from tests.waiting import PATIENCE_SECONDS, eventually

LONG = 100_000
"""Minutes of tokens: a caller that waits for their end has failed."""


@pytest.fixture(autouse=True)
def brisk_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHECK_SECONDS", 0.2)


async def refused(caller: Caller) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        await caller.generate(SPEC)
    return caught.value


async def answered_rightly(caller: Caller, model: Model) -> None:
    """The model `pieces` tells what it got."""
    answer = await ask(caller, Answer())
    assert (answer.code, tuple(answer.token_ids[1:])) == (grpc.StatusCode.OK, checksum(model))


@pytest.mark.parametrize("transport", ["auto", "shared-memory"])
async def test_after_a_restart_that_lost_its_regions_the_next_caller_gets_tokens_by_shared_memory(
    model: Model, doomed_pieces_triton: TritonServer, tmp_path: Path, transport: str
) -> None:
    triton = doomed_pieces_triton
    settings = {"asks": "pieces", "profile": PIECES_PROFILE, "transport": transport}
    async with service_before(model, tmp_path, triton, **settings) as caller:
        await answered_rightly(caller, model)
        [before] = await registered(triton)
        await asyncio.to_thread(triton.restart)
        assert await registered(triton) == []
        await caller.server.health.refresh()
        await until_ready(caller)
        await answered_rightly(caller, model)
        assert await registered(triton) == [before]


async def test_regions_lost_without_a_restart_cost_no_caller_anything(
    model: Model, doomed_pieces_triton: TritonServer, tmp_path: Path
) -> None:
    triton = doomed_pieces_triton
    settings = {"asks": "pieces", "profile": PIECES_PROFILE, "transport": "shared-memory"}
    async with service_before(model, tmp_path, triton, **settings) as caller:
        await answered_rightly(caller, model)
        [known] = await registered(triton)
        async with grpc.aio.insecure_channel(triton.grpc_address) as channel:
            forget: Any = channel.unary_unary(kserve.SERVICE + "SystemSharedMemoryUnregister")
            await forget(kserve_regions.encode_region_unregister(known.name))
        await asyncio.gather(*(answered_rightly(caller, model) for _ in range(4)))
        assert await registered(triton) == [known]


async def test_a_service_that_starts_before_its_engine_waits_unready_and_prepares_meanwhile(
    model: Model, doomed_pieces_triton: TritonServer, tmp_path: Path
) -> None:
    triton = doomed_pieces_triton
    triton.kill()
    async with service_before(model, tmp_path, triton, asks="pieces", profile=PIECES_PROFILE) as caller:
        await until_ready(caller, is_ready=False)
        error = await refused(caller)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE")
        assert (await caller.prepare(SPEC)).header.token_count > 0
        await assert_at_rest(caller)
        await asyncio.to_thread(triton.restart)
        await until_ready(caller)
        await answered_rightly(caller, model)


@pytest.mark.parametrize(
    ("ending", "tokens_before", "transport"),
    [(HELD, 0, "shared-memory"), (FINISH, 1, "shared-memory"), (FINISH, 1, "grpc")],
    ids=["before the first token", "in mid-answer", "in mid-answer, by gRPC"],
)
async def test_a_server_killed_under_a_request_is_unavailable_until_it_is_back(
    model: Model,
    doomed_triton: TritonServer,
    tmp_path: Path,
    ending: int,
    tokens_before: int,
    transport: str,
    gate: Gate,
) -> None:
    settings = {"asks": "scripted", "profile": SCRIPTED_PROFILE.format(ending=ending), "transport": transport}
    async with service_before(model, tmp_path, doomed_triton, **settings) as caller:
        await until_ready(caller)
        answer = Answer()
        asking = asyncio.create_task(ask(caller, answer, max_tokens=LONG, seed=gate.seed))
        if tokens_before:
            await answer.first_token.wait()
        else:
            await eventually(lambda: sent_whole_count(caller) == 1)
        doomed_triton.kill()
        assert (await asking).code is grpc.StatusCode.UNAVAILABLE
        assert bool(answer.token_ids) == bool(tokens_before)
        assert answer.token_ids == list(range(len(answer.token_ids)))
        await until_ready(caller, is_ready=False)
        error = await refused(caller)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE")
        await asyncio.to_thread(doomed_triton.restart)
        await until_ready(caller)
        assert (await ask(caller, Answer())).token_ids == [0, 1, 2]


async def test_a_server_killed_after_an_answer_has_spoilt_nothing(
    model: Model, doomed_triton: TritonServer, tmp_path: Path
) -> None:
    settings = {"asks": "scripted", "profile": SCRIPTED_PROFILE.format(ending=CHECKSUM)}
    async with service_before(model, tmp_path, doomed_triton, **settings) as caller:
        expected = [0, 1, 2, checksum(model)[1]]
        assert (await ask(caller, Answer())).token_ids == expected
        doomed_triton.kill()
        await until_ready(caller, is_ready=False)
        await asyncio.to_thread(doomed_triton.restart)
        await until_ready(caller)
        assert (await ask(caller, Answer())).token_ids == expected


async def test_a_model_process_that_dies_in_mid_answer_is_unavailable_and_found_out(
    model: Model, doomed_triton: TritonServer, tmp_path: Path
) -> None:
    settings = {"asks": "scripted", "profile": SCRIPTED_PROFILE.format(ending=FINISH)}
    async with service_before(model, tmp_path, doomed_triton, **settings) as caller:
        answer = Answer()
        asking = asyncio.create_task(ask(caller, answer, max_tokens=LONG))
        await answer.first_token.wait()
        for process in doomed_triton.model_pids():
            os.kill(process, signal.SIGKILL)
        [engine] = engines_of(caller)
        be_impatient(engine)
        assert (await asking).code is grpc.StatusCode.UNAVAILABLE
        # Triton goes on saying that it is ready: callers are what shows the service otherwise.
        while (await caller.get("/readyz?method=Generate"))[0] == 200:
            error = await refused(caller)
            assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_UNAVAILABLE")
        be_impatient(engine, PATIENCE_SECONDS)
        await asyncio.to_thread(doomed_triton.restart)
        await until_ready(caller)
        assert (await ask(caller, Answer())).token_ids == [0, 1, 2]


async def test_a_caller_who_only_prepares_notices_nothing(
    model: Model, doomed_triton: TritonServer, tmp_path: Path
) -> None:
    settings = {"asks": "scripted", "profile": SCRIPTED_PROFILE.format(ending=FINISH)}
    async with service_before(model, tmp_path, doomed_triton, **settings) as caller:
        doomed_triton.kill()
        results = await asyncio.gather(*(caller.prepare(chat("still there?")) for _ in range(4)))
        assert all(result.header.token_count for result in results)
