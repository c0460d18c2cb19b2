"""Qwen2-VL and Qwen2.5-VL in a real vLLM: its tokens are those of transformers. The first takes the address of the second."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing

import pytest

from engine_client import (
    EngineMismatch,
    EngineRequest,
    EngineUnavailable,
    SamplingParameters,
)
from preprocessor.types.request import Media
from tests.engine.vllm_prompts import KINDS, answer, clip, picture, tensors_of, until_ready
from tests.engine.vllm_server import INSTALLED, SharedVllm
from tests.engine.vllm_tiny import Tiny, make_tiny

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not INSTALLED.exists(), reason="no vLLM; `make vllm` sets one up"),
]
# Rates at which the seconds of a step are no whole number, which Qwen2.5-VL's positions are made of. No clip has more time steps
# than its larger side has tokens: there vLLM 0.32 and transformers 5.23 number the text behind it differently (deploy/README.md).
PROMPTS: Mapping[str, tuple[Media, ...]] = {
    **KINDS,
    "three frames a second": (clip(fps=3),),
    "rates that differ": (clip("a", fps=1), picture("b"), clip("c", fps=3)),
}


@pytest.fixture(scope="module")
def qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny("qwen2-vl", tmp_path_factory, PROMPTS)


@pytest.fixture(scope="module")
def qwen2_5_vl(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny("qwen2.5-vl", tmp_path_factory, PROMPTS)


@pytest.mark.parametrize("kind", PROMPTS)
async def test_qwen2_5_vl_answers_as_transformers_does(kind: str, vllm: SharedVllm, qwen2_5_vl: Tiny) -> None:
    async with qwen2_5_vl.client(vllm.serving(qwen2_5_vl.checkpoint).address) as engine:
        token_ids, _ = await answer(engine, tensors_of(qwen2_5_vl.model, PROMPTS[kind]))
    assert token_ids == qwen2_5_vl.expected[kind]


async def test_a_server_killed_in_mid_answer_is_unavailable_and_another_model_at_its_address_is_refused(
    vllm: SharedVllm, qwen2_vl: Tiny, qwen2_5_vl: Tiny
) -> None:
    server = vllm.serving(qwen2_5_vl.checkpoint)
    tensors = tensors_of(qwen2_5_vl.model, KINDS["image"])
    async with qwen2_5_vl.client(server.address) as engine:
        request = EngineRequest("killed", tensors, SamplingParameters(max_tokens=4000))
        async with aclosing(engine.generate(request)) as steps:
            await anext(steps)
            server.kill()
            with pytest.raises(EngineUnavailable) as raised:
                async for _ in steps:
                    pass
        assert raised.value.tokens_received
        await asyncio.to_thread(vllm.serving, qwen2_vl.checkpoint)
        # Their vocabularies and patches are the same.
        for ask in (until_ready(engine), answer(engine, tensors)):
            with pytest.raises(EngineMismatch, match="family of the engine is qwen2_vl, of this side qwen2_5_vl"):
                await ask


@pytest.mark.parametrize("kind", PROMPTS)
async def test_qwen2_vl_answers_as_transformers_does(kind: str, vllm: SharedVllm, qwen2_vl: Tiny) -> None:
    async with qwen2_vl.client(vllm.serving(qwen2_vl.checkpoint).address) as engine:
        token_ids, _ = await answer(engine, tensors_of(qwen2_vl.model, PROMPTS[kind]))
    assert token_ids == qwen2_vl.expected[kind]
