"""`vlm_vllm` has every sampling parameter that an engine may lack."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from engine_client import FEATURE_TENSORS, EngineRejected, EngineRequest, SamplingParameters, TritonEngine
from engine_client.types import FinishReason
from preprocessor.models.family import Model
from tests.engine.direct_sampling import FREQUENCY, PRESENCE, REPETITION, TOP
from tests.engine.vllm_prompts import TOKEN_COUNT, answer, ask_transformers_to_sample, clip, picture, tensors_of
from tests.engine.vllm_triton_server import MARKS

pytestmark = MARKS


@pytest.fixture(scope="module")
def direct(tiny_qwen3_vl: Path, tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return ask_transformers_to_sample(tiny_qwen3_vl, tiny, tmp_path_factory.mktemp("prompt"))


async def test_it_has_every_sampling_parameter(engine: TritonEngine) -> None:
    assert await engine.sampling_features() == FEATURE_TENSORS.keys()


async def test_penalties_are_those_of_transformers(
    engine: TritonEngine, tiny: Model, direct: Mapping[str, Any]
) -> None:
    tensors = tensors_of(tiny, ())
    repetition, _ = await answer(engine, tensors, repetition_penalty=REPETITION)
    penalties, _ = await answer(engine, tensors, presence_penalty=PRESENCE, frequency_penalty=FREQUENCY)
    minimum, _ = await answer(engine, tensors, temperature=2.0, seed=3, min_p=1.0)
    assert (repetition, penalties, minimum) == (direct["repetition"], direct["penalties"], direct["ids"])


async def test_log_probabilities_are_those_of_transformers(
    engine: TritonEngine, tiny: Model, direct: Mapping[str, Any]
) -> None:
    sampling = SamplingParameters(TOKEN_COUNT, logprobs=TOP)
    steps = [step async for step in engine.generate(EngineRequest("likely", tensors_of(tiny, ()), sampling))]
    told = [one for step in steps for one in step.logprobs]
    assert [one.logprob for one in told] == pytest.approx(direct["logprobs"], abs=1e-3)
    assert [[token_id for token_id, _ in one.top] for one in told] == [
        [token_id for token_id, _ in top[:TOP]] for top in direct["top"]
    ]


async def test_several_answers_come_with_their_index_and_each_with_its_end(engine: TritonEngine, tiny: Model) -> None:
    sampling = SamplingParameters(TOKEN_COUNT, temperature=1.0, seed=5, answer_count=3)
    ids: dict[int, list[int]] = {}
    ends: dict[int, FinishReason] = {}
    async for step in engine.generate(EngineRequest("several", tensors_of(tiny, (picture(),)), sampling)):
        ids.setdefault(step.answer_index, []).extend(step.token_ids)
        if step.finish_reason is not None:
            ends[step.answer_index] = step.finish_reason
    assert ends == dict.fromkeys(range(3), FinishReason.LENGTH)
    assert len({tuple(one) for one in ids.values()}) == 3


@pytest.mark.parametrize("stop_token_ids", [(), (1,)])
async def test_an_answer_is_what_its_constraint_allows(
    engine: TritonEngine, tiny: Model, stop_token_ids: tuple[int, ...]
) -> None:
    sampling: dict[str, Any] = {"temperature": 1.0, "regex": "(red|blue) [0-9]{3}", "stop_token_ids": stop_token_ids}
    token_ids, reason = await answer(engine, tensors_of(tiny, (clip(),)), 200, **sampling)
    assert reason is FinishReason.STOP  # whose token is the last
    assert re.fullmatch("(red|blue) [0-9]{3}", tiny.tokenizer.decode(token_ids[:-1]))


@pytest.mark.parametrize(("name", "text"), [("regex", "("), ("grammar", "root ::="), ("json_schema", "no JSON")])
async def test_a_constraint_that_makes_no_sense_is_rejected(
    engine: TritonEngine, tiny: Model, name: str, text: str
) -> None:
    with pytest.raises(EngineRejected, match="vLLM refused the prompt"):
        await answer(engine, tensors_of(tiny, ()), **dict[str, Any]({name: text}))
