"""What a caller may ask of a real vLLM beside tokens: penalties, log probabilities, several answers, constraints."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from engine_client import (
    FEATURE_TENSORS,
    EngineRejected,
    EngineRequest,
    EngineStep,
    SamplingParameters,
)
from engine_client.contract.sampling import MAX_LOGPROBS
from engine_client.contract.tensors import Array
from engine_client.types import FinishReason
from engine_client.vllm import VllmEngine
from preprocessor.client import AsyncClient, OneAnswer, chat, image
from preprocessor.config import EngineSettings
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as service_pb
from tests.engine.direct_sampling import FREQUENCY, PRESENCE, REPETITION, TOP
from tests.engine.real_vllm.conftest import MARKS
from tests.engine.vllm_prompts import (
    PHOTO,
    TOKEN_COUNT,
    answer,
    ask_transformers_to_sample,
    clip,
    picture,
    tensors_of,
)
from tests.service.conftest import eventually_answered, serving

pytestmark = MARKS


@pytest.fixture(scope="module")
def direct(checkpoint: Path, tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return ask_transformers_to_sample(checkpoint, tiny, tmp_path_factory.mktemp("prompt"))


async def steps_of(engine: VllmEngine, tensors: Mapping[str, Array], **sampling: Any) -> list[EngineStep]:
    request = EngineRequest(f"test-{random.getrandbits(64):x}", tensors, SamplingParameters(**sampling))
    async with aclosing(engine.generate(request, timeout_seconds=120)) as steps:
        return [step async for step in steps]


async def test_penalties_are_those_of_transformers(engine: VllmEngine, tiny: Model, direct: Mapping[str, Any]) -> None:
    tensors = tensors_of(tiny, ())
    repetition, _ = await answer(engine, tensors, repetition_penalty=REPETITION)
    penalties, _ = await answer(engine, tensors, presence_penalty=PRESENCE, frequency_penalty=FREQUENCY)
    assert (repetition, penalties) == (direct["repetition"], direct["penalties"])
    assert direct["ids"] not in (repetition, penalties)  # or this shows nothing


async def test_a_min_p_of_one_is_greedy(engine: VllmEngine, tiny: Model, direct: Mapping[str, Any]) -> None:
    token_ids, _ = await answer(engine, tensors_of(tiny, ()), temperature=2.0, seed=3, min_p=1.0)
    assert token_ids == direct["ids"]


@pytest.mark.parametrize("top_count", [0, 1, TOP])
async def test_log_probabilities_are_those_of_transformers(
    engine: VllmEngine, tiny: Model, direct: Mapping[str, Any], top_count: int
) -> None:
    steps = await steps_of(engine, tensors_of(tiny, ()), max_tokens=TOKEN_COUNT, logprobs=top_count)
    told = [one for step in steps for one in step.logprobs]
    expected_top = [top[:top_count] for top in direct["top"]]
    assert [one.logprob for one in told] == pytest.approx(direct["logprobs"], abs=1e-3)
    assert [[token_id for token_id, _ in one.top] for one in told] == [[i for i, _ in top] for top in expected_top]
    assert [value for one in told for _, value in one.top] == pytest.approx(
        [value for top in expected_top for _, value in top], abs=1e-3
    )


async def test_alternatives_are_the_likeliest_whatever_was_sampled(engine: VllmEngine, tiny: Model) -> None:
    tensors = tensors_of(tiny, ())
    sampled = await steps_of(engine, tensors, max_tokens=1, temperature=2.0, seed=11, logprobs=4)
    (greedy,) = [step for step in await steps_of(engine, tensors, max_tokens=1, logprobs=4) if step.token_ids]
    (one,), (other,) = sampled[0].logprobs, greedy.logprobs
    assert sampled[0].token_ids[0] not in dict(other.top)  # or this shows nothing
    assert [token_id for token_id, _ in one.top] == [token_id for token_id, _ in other.top]
    assert len(await steps_of(engine, tensors, max_tokens=1, logprobs=MAX_LOGPROBS)) == 2


async def test_several_answers_come_with_their_index_and_each_with_its_end(engine: VllmEngine, tiny: Model) -> None:
    asked = {"max_tokens": TOKEN_COUNT, "temperature": 1.0, "seed": 5, "answer_count": 3, "logprobs": 0}
    runs = []
    for _ in range(2):
        ids: dict[int, list[int]] = {}
        ends: dict[int, FinishReason] = {}
        for step in await steps_of(engine, tensors_of(tiny, (picture(),)), **asked):
            assert step.answer_index not in ends
            assert len(step.logprobs) == len(step.token_ids)
            ids.setdefault(step.answer_index, []).extend(step.token_ids)
            if step.finish_reason is not None:
                ends[step.answer_index] = step.finish_reason
        assert ends == dict.fromkeys(range(3), FinishReason.LENGTH)
        runs.append(ids)
    assert [len(one) for one in runs[0].values()] == [TOKEN_COUNT] * 3
    assert len({tuple(one) for one in runs[0].values()}) == 3
    assert runs[0] == runs[1]


SHAPES = {
    # No object: between its parts random weights may write white space for ever.
    "json_schema": ('{"type": "string", "enum": ["yes", "no"]}', r'"(yes|no)"'),
    "regex": (r"(red|blue) [0-9]{3}", r"(red|blue) [0-9]{3}"),
    "grammar": ('root ::= "a" root | "b"', r"a*b"),
}


@pytest.mark.parametrize("name", SHAPES)
async def test_an_answer_is_what_its_constraint_allows(engine: VllmEngine, tiny: Model, name: str) -> None:
    text, shape = SHAPES[name]
    constraint: dict[str, Any] = {name: text}
    tensors = tensors_of(tiny, (clip(),))
    for seed in range(4):
        token_ids, reason = await answer(engine, tensors, 200, temperature=1.0, seed=seed, **constraint)
        said = tiny.tokenizer.decode(token_ids, skip_special_tokens=True)
        if reason is FinishReason.STOP:
            assert re.fullmatch(shape, said), said
            break
    else:
        pytest.fail(f"no answer came to its end; the last one began {said[:99]!r}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("regex", "("),
        ("grammar", "root ::="),
        ("grammar", "no grammar"),
        ("json_schema", '{"type": "nothing"}'),
        ("json_schema", '{"$ref": "#/$defs/missing"}'),
    ],
)
async def test_a_constraint_that_makes_no_sense_ends_no_core(
    engine: VllmEngine, tiny: Model, name: str, text: str, direct: Mapping[str, Any]
) -> None:
    with suppress(
        EngineRejected
    ):  # which of them are refused depends on the backend, which the first constraint decides
        constraint: Any = {name: text}
        await answer(engine, tensors_of(tiny, ()), **constraint)
    token_ids, _ = await answer(engine, tensors_of(tiny, ()))
    assert token_ids == direct["ids"]


async def test_the_service_tells_what_vllm_has_and_gives_it_to_callers(address: str, tiny: Model) -> None:
    settings = EngineSettings(address=f"vllm://{address}")
    async with serving(tiny, engine_settings=settings) as caller, AsyncClient(caller.server.address) as client:
        prompt = chat([{"role": "user", "content": [image(PHOTO), "What is this?"]}])
        answers: list[OneAnswer] = []

        async def ask() -> None:
            async with client.generate(
                prompt, max_tokens=20, temperature=1.0, answer_count=2, logprobs=1, regex="(red|blue) [0-9]"
            ) as reply:
                await reply.read()
            answers.extend(reply.answers)

        await eventually_answered(ask, grpc.StatusCode.UNAVAILABLE)  # a busy machine's vLLM may miss a probe
        assert set((await client.get_model()).generation_features) == FEATURE_TENSORS.keys()
    assert len(answers) == 2
    for one in answers:
        assert re.fullmatch(r"(red|blue) [0-9]", one.text)
        assert one.end.finish_reason == service_pb.FINISH_REASON_STOP
        assert len(one.logprobs) == len(one.token_ids)
        assert all(len(told.top) == 1 for told in one.logprobs)
