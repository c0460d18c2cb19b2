"""A real vLLM that dies, hangs, or comes back as another: every caller gets tokens or a clear status, and nothing is left over.

The server is that of the other tests, since a start takes minutes: each test here says in which state it leaves it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import grpc
import pytest

from engine_client import EndpointHealth, Endpoints, EngineRequest, EngineUnavailable, SamplingParameters
from engine_client.vllm import VllmEngine
from preprocessor.config import EngineSettings
from preprocessor.models.family import Model
from tests.engine.scripted_vllm import ScriptedVllm
from tests.engine.served import Answer, ask
from tests.engine.several import by_name
from tests.engine.vllm_prompts import KINDS, answer, ask_transformers, tensors_of, until_ready
from tests.engine.vllm_server import INSTALLED, NORMALIZED_BEFORE, SharedVllm
from tests.loading import load_family_model
from tests.service.conftest import Caller, serving
from tests.waiting import eventually

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not INSTALLED.exists(), reason="no vLLM; `make vllm` sets one up"),
]
LONG = 4000
"""Tokens: a minute of them."""


@pytest.fixture(scope="module")
def tiny(tiny_qwen3_vl: Path) -> Model:
    return load_family_model(str(tiny_qwen3_vl))


@pytest.fixture(scope="module")
def expected(tiny_qwen3_vl: Path, tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    return ask_transformers(tiny_qwen3_vl, tiny, tmp_path_factory.mktemp("prompts"))


@asynccontextmanager
async def leaving_nothing(caller: Caller) -> AsyncIterator[None]:
    """Whatever happens inside: then no memory, no place at a worker, no request at an engine, no task and no descriptor more."""
    tasks, descriptors = asyncio.all_tasks(), descriptor_count()
    yield
    pool, engine = caller.server.pool, caller.server.engine
    assert isinstance(engine, Endpoints)
    await eventually(lambda: (pool.used_bytes, pool.pending_count, pool.running_count) == (0, 0, 0))
    assert pool.files.leased_bytes == pool.file_cache.size_bytes  # what stays for later requests, and nothing else
    assert pool.rows.leased_bytes == pool.cache.size_bytes
    await eventually(lambda: all(state.in_flight_count == 0 for state in engine.states()))
    await eventually(lambda: len(asyncio.all_tasks()) <= len(tasks))
    await eventually(lambda: descriptor_count() <= descriptors + 2)  # gRPC may have opened another connection


def descriptor_count() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


async def test_a_core_that_dies_under_load_costs_begun_answers_alone_and_a_restart_may_take_other_pixels(
    vllm: SharedVllm, tiny_qwen3_vl: Path, tiny: Model, expected: dict[str, list[int]]
) -> None:
    """Leaves a server that takes floats."""
    server = vllm.serving(tiny_qwen3_vl)
    async with ScriptedVllm() as other, VllmEngine(server.address) as engine:
        assert (await answer(engine, tensors_of(tiny, KINDS["video"])))[0] == expected["video"]
        addresses = f"vllm://{server.address}", f"vllm://{other.address}"
        async with serving(tiny, engine_settings=EngineSettings(address=",".join(addresses))) as caller:
            await asyncio.gather(*(ask(caller, Answer()) for _ in range(8)))  # opens what gRPC keeps open
            async with leaving_nothing(caller):
                gate = other.script.gate = asyncio.Event()
                early, late = ([Answer() for _ in range(8)] for _ in range(2))
                tasks = [asyncio.create_task(ask(caller, one, max_tokens=LONG)) for one in early]
                await eventually(lambda: other.running_count == 4)
                await eventually(lambda: sum(one.first_token.is_set() for one in early) == 4)
                for pid in server.core_pids():
                    os.kill(pid, signal.SIGKILL)
                gate.set()
                tasks += [asyncio.create_task(ask(caller, one)) for one in late]
                await asyncio.gather(*tasks)
                codes = sorted(one.code.name for one in early)
                assert codes == ["OK"] * 4 + ["UNAVAILABLE"] * 4
                whole = [one.token_ids for one in early + late if one.code is grpc.StatusCode.OK]
                assert whole == [[1, 2, 3]] * 12
            states = caller.server.engine
            assert isinstance(states, Endpoints)
            await eventually(lambda: by_name(states)[addresses[0]].health is EndpointHealth.EJECTED)
        with pytest.raises(EngineUnavailable, match="is not healthy"):
            await engine.check_ready()  # the process that listens is still there
        with pytest.raises(EngineUnavailable, match="EngineCore"):
            await answer(engine, tensors_of(tiny, ()))
        await asyncio.to_thread(server.kill)
        with pytest.raises(EngineUnavailable):
            await answer(engine, tensors_of(tiny, ()))
        await asyncio.to_thread(vllm.serving, tiny_qwen3_vl, *NORMALIZED_BEFORE)
        await until_ready(engine)
        assert (await answer(engine, tensors_of(tiny, KINDS["video"])))[0] == expected["video"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_takes_floats_answers_as_transformers_does(
    kind: str, vllm: SharedVllm, tiny_qwen3_vl: Path, tiny: Model, expected: dict[str, list[int]]
) -> None:
    async with VllmEngine(vllm.serving(tiny_qwen3_vl, *NORMALIZED_BEFORE).address) as engine:
        assert (await answer(engine, tensors_of(tiny, KINDS[kind])))[0] == expected[kind]


async def test_a_core_that_hangs_is_unavailable_though_the_server_says_ready_and_serves_again(
    vllm: SharedVllm, tiny_qwen3_vl: Path, tiny: Model, expected: dict[str, list[int]]
) -> None:
    server = vllm.serving(tiny_qwen3_vl, *NORMALIZED_BEFORE)
    async with VllmEngine(server.address, max_silence_seconds=2) as impatient, VllmEngine(server.address) as engine:
        for pid in server.core_pids():
            os.kill(pid, signal.SIGSTOP)
        try:
            await impatient.check_ready()
            with pytest.raises(EngineUnavailable, match="sent nothing for 2 s"):
                await answer(impatient, tensors_of(tiny, KINDS["image"]))
        finally:
            for pid in server.core_pids():
                os.kill(pid, signal.SIGCONT)
        assert (await answer(engine, tensors_of(tiny, KINDS["image"])))[0] == expected["image"]


async def test_an_orderly_stop_in_mid_answer_is_unavailable(vllm: SharedVllm, tiny_qwen3_vl: Path, tiny: Model) -> None:
    """Leaves no server."""
    server = vllm.serving(tiny_qwen3_vl, *NORMALIZED_BEFORE)
    request = EngineRequest("stopped", tensors_of(tiny, KINDS["image"]), SamplingParameters(max_tokens=LONG))
    async with VllmEngine(server.address) as engine:
        async with aclosing(engine.generate(request)) as steps:
            await anext(steps)
            stopping = asyncio.create_task(asyncio.to_thread(server.stop))
            with pytest.raises(EngineUnavailable) as raised:
                async for _ in steps:
                    pass
        await stopping
        assert raised.value.tokens_received
        with pytest.raises(EngineUnavailable):
            await answer(engine, tensors_of(tiny, ()))
