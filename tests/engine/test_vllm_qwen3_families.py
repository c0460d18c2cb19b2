"""A mixture of experts, and Qwen3.5, which has linear attention, in a real vLLM.

vLLM 0.32 computes linear attention on a CPU in BF16 alone, in which answers are not comparable with those of transformers. What
goes into its engine is compared in `test_vllm_input.py`, for Qwen3.5's mixture of experts too.
"""

from __future__ import annotations

import pytest

from engine_client.types import FinishReason
from tests.engine.vllm_prompts import KINDS, TOKEN_COUNT, answer, tensors_of
from tests.engine.vllm_server import INSTALLED, SharedVllm
from tests.engine.vllm_tiny import Tiny, make_tiny

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not INSTALLED.exists(), reason="no vLLM; `make vllm` sets one up"),
]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny("qwen3-vl-moe", tmp_path_factory)


@pytest.fixture(scope="module")
def qwen3_5(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny("qwen3.5", tmp_path_factory, {})


@pytest.mark.parametrize("kind", KINDS)
async def test_a_mixture_of_experts_answers_as_in_transformers(kind: str, vllm: SharedVllm, mixture: Tiny) -> None:
    async with mixture.client(vllm.serving(mixture.checkpoint).address) as engine:
        token_ids, _ = await answer(engine, tensors_of(mixture.model, KINDS[kind]))
    assert token_ids == mixture.expected[kind]


@pytest.mark.parametrize("kind", KINDS)
async def test_qwen3_5_answers_every_kind_of_prompt(kind: str, vllm: SharedVllm, qwen3_5: Tiny) -> None:
    async with qwen3_5.client(vllm.serving(qwen3_5.checkpoint, "--dtype", "bfloat16").address) as engine:
        token_ids, reason = await answer(engine, tensors_of(qwen3_5.model, KINDS[kind]))
    assert (len(token_ids), reason) == (TOKEN_COUNT, FinishReason.LENGTH)
