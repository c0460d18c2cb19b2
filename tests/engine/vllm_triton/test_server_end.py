"""A core that dies is noticed. In order the last file that uses the server of this folder, for nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing

import psutil
import pytest

from deploy.triton.local_server import TritonServer
from engine_client import EngineRequest, EngineUnavailable, RowProgress, TritonEngine
from preprocessor.models.family import Model
from tests.engine import servers
from tests.engine.vllm_prompts import answer, picture, tensors_of
from tests.engine.vllm_triton_server import MARKS, long_request
from tests.waiting import PATIENCE_SECONDS, eventually

pytestmark = MARKS


def core_pids(server: TritonServer) -> list[int]:
    """Of the processes in which vLLM computes."""
    return [
        process.pid
        for process in psutil.Process(server.pid).children(recursive=True)
        if any("EngineCore" in part for part in process.cmdline())
    ]


async def test_a_dead_core_ends_every_answer_and_the_server(
    server: TritonServer, engine: TritonEngine, tiny: Model
) -> None:
    waiting = EngineRequest("rows never come", tensors_of(tiny, (picture(),)), pending=RowProgress("pixel_patches"))
    waiter = asyncio.create_task(servers.answer(engine, waiting))
    async with aclosing(engine.generate(long_request(tiny))) as steps:
        await anext(steps)
        pids = core_pids(server)
        assert pids
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(EngineUnavailable):
            async for _ in steps:
                pass
    with pytest.raises(EngineUnavailable):
        await waiter
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(EngineUnavailable):
            while True:
                await engine.check_ready()
    with pytest.raises(EngineUnavailable):
        await answer(engine, tensors_of(tiny, ()))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.to_thread(server.wait)
    await eventually(lambda: not any(map(psutil.pid_exists, pids)))
