"""Mixtures of experts and Qwen3.5, which has linear attention, in a real vLLM: its tokens are those of transformers."""

from __future__ import annotations

import pytest

from tests.engine.vllm_prompts import KINDS, answer, tensors_of
from tests.engine.vllm_server import INSTALLED, SharedVllm
from tests.engine.vllm_tiny import Tiny, make_tiny

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not INSTALLED.exists(), reason="no vLLM; `make vllm` sets one up"),
]


@pytest.fixture(scope="module", params=["qwen3-vl-moe", "qwen3.5", "qwen3.5-moe"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(request.param, tmp_path_factory)


@pytest.mark.parametrize("kind", KINDS)
async def test_its_answers_are_those_of_transformers(kind: str, vllm: SharedVllm, tiny: Tiny) -> None:
    async with tiny.client(vllm.serving(tiny.checkpoint).address) as engine:
        token_ids, _ = await answer(engine, tensors_of(tiny.model, KINDS[kind]))
    assert token_ids == tiny.expected[kind]
