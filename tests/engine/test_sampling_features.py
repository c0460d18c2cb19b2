"""Sampling parameters through a real Triton: those that `vlm_transformers` has do what transformers does, others are refused."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from deploy.triton.local_server import INSTALLED, TritonServer
from engine_client import (
    EngineRejected,
    EngineRequest,
    EngineStep,
    SamplingParameters,
    TensorMapping,
    TritonEngine,
)
from engine_client.triton.outputs import Outputs
from engine_client.triton.tensor_mapping import InputRule
from tests.engine.direct_sampling import FREQUENCY, PRESENCE, REPETITION, TOP
from tests.engine.prompts import PROMPTS
from tests.engine.servers import MODEL_DIRECTORY, answer

TOKEN_COUNT = 12
GREEDY = SamplingParameters(max_tokens=TOKEN_COUNT)
HAD = {"min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logprobs"}


@pytest.fixture(scope="module")
def direct(triton: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What transformers itself answers to the prompt of text."""
    prompt = tmp_path_factory.mktemp("prompt") / "text.npz"
    np.savez(prompt, **dict[str, Any](PROMPTS["text"]))
    python = os.environ.get("TRITON_PYTHON", INSTALLED / "venv/bin/python")
    script = Path(__file__).with_name("direct_sampling.py")
    ran = subprocess.run(
        [python, script, MODEL_DIRECTORY, prompt, str(TOKEN_COUNT)],
        env={"OMP_NUM_THREADS": "1"} | dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def asked(sampling: SamplingParameters, prompt: str = "text") -> EngineRequest:
    return EngineRequest("sampling", PROMPTS[prompt], sampling)


async def steps_of(engine: TritonEngine, sampling: SamplingParameters) -> list[EngineStep]:
    return [step async for step in engine.generate(asked(sampling))]


async def test_the_model_says_what_it_has(engine: TritonEngine) -> None:
    assert await engine.sampling_features() == HAD


async def test_penalties_are_those_of_transformers(engine: TritonEngine, direct: dict[str, Any]) -> None:
    repetition = replace(GREEDY, repetition_penalty=REPETITION)
    penalties = replace(GREEDY, presence_penalty=PRESENCE, frequency_penalty=FREQUENCY)
    assert await answer(engine, asked(repetition)) == direct["repetition"]
    assert await answer(engine, asked(penalties)) == direct["penalties"]
    assert direct["ids"] not in (direct["repetition"], direct["penalties"])  # or this shows nothing


async def test_log_probabilities_are_those_of_transformers(engine: TritonEngine, direct: dict[str, Any]) -> None:
    for top_count in (0, TOP):
        steps = await steps_of(engine, replace(GREEDY, logprobs=top_count))
        told = [one for step in steps for one in step.logprobs]
        assert [token_id for step in steps for token_id in step.token_ids] == direct["ids"]
        assert [one.logprob for one in told] == pytest.approx(direct["logprobs"], abs=1e-4)
        assert [[token_id for token_id, _ in one.top] for one in told] == [
            [token_id for token_id, _ in top[:top_count]] for top in direct["top"]
        ]
        assert [value for one in told for _, value in one.top] == pytest.approx(
            [value for top in direct["top"] for _, value in top[:top_count]], abs=1e-4
        )


async def test_log_probabilities_are_the_model_s_own_whatever_is_penalized(engine: TritonEngine) -> None:
    sampling = replace(GREEDY, logprobs=1, temperature=2.0, seed=5, presence_penalty=2.0, min_p=0.1)
    for step in await steps_of(engine, sampling):
        ((_, best),) = step.logprobs[0].top
        assert step.logprobs[0].logprob <= best < 0


async def test_no_token_is_less_likely_than_min_p_allows(engine: TritonEngine) -> None:
    temperature, min_p = 1.5, 0.3
    below = 0
    for share in (min_p, 0.0):
        for seed in range(8):
            sampling = replace(GREEDY, temperature=temperature, seed=seed, min_p=share, logprobs=1)
            for step in await steps_of(engine, sampling):
                best = step.logprobs[0].top[0][1]
                relative = math.exp((step.logprobs[0].logprob - best) / temperature)
                if share:
                    assert relative >= min_p - 1e-4
                else:
                    below += relative < min_p
    assert below  # without it some are


async def test_a_min_p_of_one_is_greedy(engine: TritonEngine, direct: dict[str, Any]) -> None:
    assert await answer(engine, asked(replace(GREEDY, temperature=2.0, seed=3, min_p=1.0))) == direct["ids"]


@pytest.mark.parametrize(
    ("name", "value"), [("answer_count", 2), ("json_schema", "{}"), ("regex", "a"), ("grammar", 'root ::= "a"')]
)
async def test_what_the_model_lacks_is_refused_by_name(engine: TritonEngine, name: str, value: object) -> None:
    sampling = SamplingParameters(max_tokens=2, temperature=1.0, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(EngineRejected, match=f"vlm_transformers .* has no {name}"):
        await answer(engine, asked(sampling))
    assert len(await answer(engine, asked(replace(GREEDY, max_tokens=2)))) == 2


async def test_a_value_out_of_range_is_refused_by_the_model_too(triton: TritonServer) -> None:
    """Whoever sends tensors of their own."""
    renamed = TensorMapping(inputs={"seed": InputRule("logprobs", "INT32")}, dropped=frozenset({"logprobs"}))
    async with TritonEngine(triton.grpc_address, mapping=renamed) as engine:
        with pytest.raises(EngineRejected, match=r"logprobs is 21; it must be from 0 to 20"):
            await answer(engine, asked(SamplingParameters(seed=21)))


@pytest_asyncio.fixture
async def scripted(scripted_triton: TritonServer) -> AsyncIterator[TritonEngine]:
    async with TritonEngine(scripted_triton.grpc_address, "scripted") as client:
        yield client


async def test_a_model_that_declares_none_has_none(scripted: TritonEngine) -> None:
    assert await scripted.sampling_features() == frozenset()
    with pytest.raises(EngineRejected, match=r"has no logprobs, min_p"):
        await answer(scripted, asked(SamplingParameters(min_p=0.5, logprobs=0)))


def test_a_mapping_decides_under_which_name_a_feature_is_sent() -> None:
    inputs = {"min_prob": "FP32", "presence_penalty": "INT32", "logprobs": "INT32", "answer_count": "INT32"}
    outputs = {"answer_index": "INT32"}
    mapping = TensorMapping(inputs={"min_p": InputRule("min_prob")})
    assert mapping.features(inputs, outputs) == {"min_p", "answer_count"}  # of logprobs the outputs are missing
    assert TensorMapping(dropped=frozenset({"answer_count"})).features(inputs, outputs) == frozenset()
    silent = TensorMapping(drops_others=True, outputs=Outputs(finish_reason=None))
    assert silent.features(inputs, outputs) == frozenset()
    assert mapping.wire_tensors({"min_p": np.ones(1, np.float32)}).keys() == {"min_prob"}
