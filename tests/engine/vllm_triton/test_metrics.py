"""vLLM's own figures are among Triton's metrics."""

from __future__ import annotations

import re
from contextlib import aclosing

from deploy.triton.local_server import TritonServer
from engine_client import TritonEngine
from preprocessor.models.family import Model
from tests.engine.vllm_prompts import TOKEN_COUNT, answer, clip, tensors_of
from tests.engine.vllm_triton_server import MARKS, MODEL, long_request
from tests.waiting import eventually

pytestmark = MARKS


def figure(server: TritonServer, name: str) -> float:
    """Of all of vLLM's engines; 0 before there is one."""
    pattern = rf'^vllm:{name}{{[^}}]*model="{MODEL}"[^}}]*}} (\S+)$'
    return sum(map(float, re.findall(pattern, server.metrics(), re.MULTILINE)))


async def test_tokens_of_prompts_and_answers_are_counted(
    server: TritonServer, engine: TritonEngine, tiny: Model
) -> None:
    names = ("prompt_tokens_total", "generation_tokens_total", "prefix_cache_queries_total", "prefix_cache_hits_total")
    tensors = tensors_of(tiny, (clip(fps=4),), "How many?")
    length = len(tensors["input_ids"])
    await answer(engine, tensors)  # whatever was counted late is of prompts before
    await eventually(lambda: figure(server, "num_requests_running") == 0)
    before = {name: figure(server, name) for name in names}
    await answer(engine, tensors)
    await eventually(lambda: figure(server, "prefix_cache_hits_total") > before["prefix_cache_hits_total"])
    await eventually(
        lambda: figure(server, "generation_tokens_total") >= before["generation_tokens_total"] + TOKEN_COUNT
    )
    await eventually(lambda: figure(server, "prompt_tokens_total") >= before["prompt_tokens_total"] + length)


async def test_what_runs_is_told_while_it_runs(server: TritonServer, engine: TritonEngine, tiny: Model) -> None:
    async with aclosing(engine.generate(long_request(tiny))) as steps:
        await anext(steps)
        await eventually(lambda: figure(server, "num_requests_running") == 1)
        await eventually(lambda: figure(server, "kv_cache_usage_perc") > 0)
        assert figure(server, "num_requests_waiting") == 0
    await eventually(lambda: figure(server, "num_requests_running") == 0)
