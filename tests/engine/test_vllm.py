"""A real vLLM behind its own gRPC service: our prompts are answered as transformers answers them, and none ends its core."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_client import (
    FEATURE_TENSORS,
    EngineError,
    EngineRejected,
    EngineRequest,
    EngineStep,
    EngineUnavailable,
    Fingerprint,
    SamplingParameters,
)
from engine_client.contract.sampling import MAX_LOGPROBS
from engine_client.contract.tensors import Array
from engine_client.errors import EngineMismatch
from engine_client.types import FinishReason
from engine_client.vllm import VllmEngine
from engine_client.vllm.prompt import encode_prompt
from preprocessor.client import AsyncClient, chat, image, video
from preprocessor.config import EngineSettings
from preprocessor.models.family import Model
from preprocessor.models.fingerprint import fingerprint_parts
from preprocessor.v1 import preprocessor_pb2 as service_pb
from tests.engine.direct_sampling import FREQUENCY, PRESENCE, REPETITION, TOP
from tests.engine.vllm_prompts import (
    CLIP,
    KINDS,
    PHOTO,
    TOKEN_COUNT,
    answer,
    ask_transformers,
    ask_transformers_to_sample,
    broken,
    clip,
    picture,
    tensors_of,
)
from tests.engine.vllm_server import CONTEXT_TOKENS, INSTALLED, SharedVllm
from tests.loading import load_family_model
from tests.service.conftest import serving

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not INSTALLED.exists(), reason="no vLLM; `make vllm` sets one up"),
]


@pytest.fixture(scope="module")
def checkpoint(tiny_qwen3_vl: Path) -> Path:
    return tiny_qwen3_vl


@pytest.fixture(scope="module")
def address(vllm: SharedVllm, checkpoint: Path) -> str:
    return vllm.serving(checkpoint).address


@pytest.fixture(scope="module")
def tiny(checkpoint: Path) -> Model:
    return load_family_model(str(checkpoint))


@pytest_asyncio.fixture
async def engine(address: str) -> AsyncIterator[VllmEngine]:
    async with VllmEngine(address) as client:
        yield client


@pytest.fixture(scope="module")
def expected(checkpoint: Path, tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    return ask_transformers(checkpoint, tiny, tmp_path_factory.mktemp("prompts"))


@pytest.mark.parametrize("kind", KINDS)
async def test_tokens_equal_those_of_transformers(
    kind: str, engine: VllmEngine, tiny: Model, expected: Mapping[str, list[int]]
) -> None:
    token_ids, reason = await answer(engine, tensors_of(tiny, KINDS[kind]))
    assert (token_ids, reason) == (expected[kind], FinishReason.LENGTH)


async def test_pixels_reach_the_encoder(engine: VllmEngine, tiny: Model) -> None:
    tensors = tensors_of(tiny, (picture(),))
    inverted = tensors | {
        "pixel_patches": 255 - tensors["pixel_patches"],
        "item_hash": tensors["item_hash"] ^ 1,
    }
    assert await answer(engine, tensors) != await answer(engine, inverted)


async def test_a_stop_token_ends_the_answer_and_is_its_last(engine: VllmEngine, tiny: Model) -> None:
    tensors = tensors_of(tiny, (picture(),))
    whole, _ = await answer(engine, tensors)
    token_ids, reason = await answer(engine, tensors, stop_token_ids=(whole[3],))
    assert (token_ids, reason) == (whole[: whole.index(whole[3]) + 1], FinishReason.STOP)


async def test_equal_seeds_sample_equal_tokens(engine: VllmEngine, tiny: Model) -> None:
    tensors = tensors_of(tiny, ())
    one, other = [await answer(engine, tensors, temperature=1.0, seed=seed) for seed in (7, 7)]
    assert one == other


async def test_many_prompts_at_once_have_their_own_answers(
    engine: VllmEngine, tiny: Model, expected: Mapping[str, list[int]]
) -> None:
    kinds = list(KINDS) * 3
    answers = await asyncio.gather(*(answer(engine, tensors_of(tiny, KINDS[kind])) for kind in kinds))
    assert [token_ids for token_ids, _ in answers] == [expected[kind] for kind in kinds]


async def test_an_answer_that_is_left_is_aborted_in_the_engine(address: str, engine: VllmEngine, tiny: Model) -> None:
    request = EngineRequest("left", tensors_of(tiny, ()), SamplingParameters(max_tokens=4000))
    async with aclosing(engine.generate(request)) as steps:
        async for _ in steps:
            break
    async with grpc.aio.insecure_channel(address) as channel:
        loads: Any = channel.unary_unary(
            "/vllm.grpc.engine.VllmEngine/GetLoads",
            request_serializer=pb.GetLoadsRequest.SerializeToString,
            response_deserializer=pb.GetLoadsResponse.FromString,
        )
        async with asyncio.timeout(60):
            while sum(one.num_running_reqs for one in (await loads(pb.GetLoadsRequest())).loads):
                # Its figures are of the last step of any prompt.
                await answer(engine, tensors_of(tiny, ()), max_tokens=1)


async def test_an_item_that_was_seen_is_not_encoded_again(address: str, engine: VllmEngine, tiny: Model) -> None:
    tensors = tensors_of(tiny, (clip(fps=4),), "Seen before?")
    await answer(engine, tensors)
    server = await engine._agreed_server(60)
    wire = encode_prompt("test", EngineRequest("again", tensors), server)
    async with grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.unary_stream(
            "/vllm.grpc.engine.VllmEngine/Generate", response_deserializer=pb.GenerateResponse.FromString
        )(wire)
        replies = [reply async for reply in call]
    assert replies[-1].complete.cached_tokens > 0


async def test_the_model_s_own_files_are_compared_with_the_fingerprint(address: str, tiny: Model) -> None:
    parts = fingerprint_parts(tiny)
    async with VllmEngine(address, fingerprint=Fingerprint(parts)) as engine:
        await engine.check_ready()
        published = (await engine.describe()).parameters
    assert {"fingerprint.tokenizer_sha256", "fingerprint.patch_size", "fingerprint.pixel_mean"} <= published.keys()
    async with VllmEngine(address, fingerprint=Fingerprint(parts | {"patch_size": "14"})) as engine:
        with pytest.raises(EngineMismatch, match="patch_size"):
            await engine.check_ready()


async def test_no_prompt_ends_the_core(engine: VllmEngine, tiny: Model, expected: Mapping[str, list[int]]) -> None:
    chance = random.Random(21)
    whole = [tensors_of(tiny, media) for media in KINDS.values() if media]
    for _ in range(500):
        with suppress(EngineRejected):
            await answer(engine, broken(chance.choice(whole), chance), max_tokens=1)
    token_ids, _ = await answer(engine, tensors_of(tiny, KINDS["video"]))
    assert token_ids == expected["video"]


async def test_a_prompt_above_the_context_is_rejected(engine: VllmEngine) -> None:
    with pytest.raises(EngineRejected, match=f"{CONTEXT_TOKENS}"):
        await answer(engine, {"input_ids": np.ones(CONTEXT_TOKENS, np.int32)})


async def test_the_service_prepares_and_vllm_answers(
    address: str, tiny: Model, expected: Mapping[str, list[int]]
) -> None:
    settings = EngineSettings(address=f"vllm://{address}")
    async with (
        serving(tiny, engine_settings=settings) as caller,
        AsyncClient(caller.server.address) as client,
    ):
        content = [video(CLIP, fps=2), image(PHOTO), "What is this?"]
        async with client.generate(chat([{"role": "user", "content": content}]), max_tokens=TOKEN_COUNT) as reply:
            await reply.read()
    assert list(reply.token_ids) == expected["video and image"]


async def test_where_nobody_listens_the_engine_is_unavailable() -> None:
    async with VllmEngine("127.0.0.1:1") as engine:
        with pytest.raises(EngineUnavailable):
            await engine.check_ready()
        with pytest.raises(EngineError):
            await answer(engine, {"input_ids": np.array([1], np.int32)})


# -- sampling parameters -----------------------------------------------------------------------------------------------


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
    sampled = await steps_of(engine, tensors, max_tokens=1, temperature=5.0, seed=11, logprobs=4)
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
    "json_schema": (
        json.dumps({"type": "object", "properties": {"moves": {"enum": ["yes", "no"]}}, "required": ["moves"]}),
        r'\{\s*"moves"\s*:\s*"(yes|no)"\s*\}',
    ),
    "regex": (r"(red|blue) [0-9]{3}", r"(red|blue) [0-9]{3}"),
    "grammar": ('root ::= "a" root | "b"', r"a*b"),
}


@pytest.mark.parametrize("name", SHAPES)
async def test_an_answer_is_what_its_constraint_allows(engine: VllmEngine, tiny: Model, name: str) -> None:
    text, shape = SHAPES[name]
    tensors = tensors_of(tiny, (clip(),))
    for seed in range(4):
        token_ids, reason = await answer(engine, tensors, 200, temperature=1.0, seed=seed, **{name: text})
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
    with suppress(EngineRejected):  # xgrammar takes some of them for something
        await answer(engine, tensors_of(tiny, ()), **{name: text})
    token_ids, _ = await answer(engine, tensors_of(tiny, ()))
    assert token_ids == direct["ids"]


async def test_the_service_tells_what_vllm_has_and_gives_it_to_callers(address: str, tiny: Model) -> None:
    settings = EngineSettings(address=f"vllm://{address}")
    async with serving(tiny, engine_settings=settings) as caller, AsyncClient(caller.server.address) as client:
        assert set((await client.get_model()).generation_features) == FEATURE_TENSORS.keys()
        prompt = chat([{"role": "user", "content": [image(PHOTO), "What is this?"]}])
        async with client.generate(
            prompt, max_tokens=20, temperature=1.0, answer_count=2, logprobs=1, regex="(red|blue) [0-9]"
        ) as reply:
            await reply.read()
    for one in reply.answers:
        assert re.fullmatch(r"(red|blue) [0-9]", one.text)
        assert one.end.finish_reason == service_pb.FINISH_REASON_STOP
        assert len(one.logprobs) == len(one.token_ids)
        assert all(len(told.top) == 1 for told in one.logprobs)
