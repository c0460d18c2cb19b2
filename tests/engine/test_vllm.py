"""A real vLLM behind its own gRPC service: our prompts are answered as transformers answers them, and none ends its core."""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections.abc import AsyncIterator, Iterator, Mapping
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
    OwnedRegion,
    SamplingParameters,
)
from engine_client.contract.sampling import MAX_LOGPROBS
from engine_client.contract.tensors import Array
from engine_client.errors import EngineMismatch
from engine_client.types import FinishReason
from engine_client.vllm import VllmEngine
from engine_client.vllm.prompt import encode_prompt
from preprocessor.client import AsyncClient, OneAnswer, chat, image, video
from preprocessor.config import EngineSettings
from preprocessor.models.family import Model
from preprocessor.models.fingerprint import fingerprint_parts
from preprocessor.v1 import preprocessor_pb2 as service_pb
from tests.bench.service.watched import WatchedServer
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
from tests.service.conftest import eventually_answered, serving
from tests.waiting import eventually

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not INSTALLED.exists(), reason="no vLLM; `make vllm` sets one up"),
]


@pytest.fixture(scope="module")
def checkpoint(tiny_qwen3_vl: Path) -> Path:
    return tiny_qwen3_vl


@pytest.fixture
def address(vllm: SharedVllm, checkpoint: Path) -> str:
    """Of a server in working order: a test may have killed it."""
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
    server = await engine._model.require_server()
    wire = encode_prompt("test", EngineRequest("again", tensors), server)
    async with grpc.aio.insecure_channel(address) as channel:
        method: Any = channel.unary_stream(
            "/vllm.grpc.engine.VllmEngine/Generate", response_deserializer=pb.GenerateResponse.FromString
        )
        replies = [reply async for reply in method(wire)]
    assert replies[-1].complete.cached_tokens > 0


async def test_features_of_an_item_that_was_seen_are_used_again_behind_another_beginning(
    engine: VllmEngine, tiny: Model
) -> None:
    """Shown by pixels that would give another answer: they are sent under the hash of those that were seen, and not encoded."""
    await answer(engine, tensors_of(tiny, (clip(fps=3),)))
    whole = tensors_of(tiny, (picture(), clip(fps=3)))  # the beginning is new, so the cache of prefixes does not help
    inverted = whole["pixel_patches"].copy()
    first_row = whole["grid_thw"][0].prod()
    inverted[first_row:] = 255 - inverted[first_row:]
    hashes = [
        whole["item_hash"] ^ np.array([[0], [mask]], np.uint8) for mask in (0x55, 0x66)
    ]  # other clips, the same photo
    unseen, _ = await answer(engine, whole | {"item_hash": hashes[0]})
    unseen_inverted, _ = await answer(engine, whole | {"item_hash": hashes[1], "pixel_patches": inverted})
    assert unseen != unseen_inverted
    seen, _ = await answer(engine, whole | {"pixel_patches": inverted})
    assert seen == unseen


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


# -- shared memory -----------------------------------------------------------------------------------------------------


@pytest.fixture
def region() -> Iterator[OwnedRegion]:
    with OwnedRegion.create(64 << 20) as made:
        yield made
        assert names_of(made) == [made.key[1:]], "a link is left"


@pytest_asyncio.fixture
async def sharing_engine(address: str, region: OwnedRegion) -> AsyncIterator[VllmEngine]:
    """One that reads `region`, or fails."""
    async with VllmEngine(address) as client:
        client.share(region, is_required=True)
        yield client


def names_of(region: OwnedRegion) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"{region.key[1:]}*")]


def inside(region: OwnedRegion, tensors: Mapping[str, Array], start: int = 8192) -> dict[str, Array]:
    """The same, with the pixels in the region, and with hashes of which the engine has nothing yet."""
    made = {**tensors, "item_hash": np.frombuffer(os.urandom(tensors["item_hash"].nbytes), tensors["item_hash"].dtype)}
    made["item_hash"] = made["item_hash"].reshape(tensors["item_hash"].shape)
    pixels = tensors["pixel_patches"]
    made["pixel_patches"] = np.frombuffer(region.buffer, np.uint8, pixels.size, start).reshape(pixels.shape)
    made["pixel_patches"][:] = pixels
    return made


@pytest.mark.parametrize("kind", [kind for kind, media in KINDS.items() if media])
async def test_tokens_are_the_same_by_shared_memory(
    kind: str, sharing_engine: VllmEngine, region: OwnedRegion, tiny: Model, expected: Mapping[str, list[int]]
) -> None:
    token_ids, reason = await answer(sharing_engine, inside(region, tensors_of(tiny, KINDS[kind])))
    assert (token_ids, reason) == (expected[kind], FinishReason.LENGTH)


async def test_prompts_left_at_any_time_leave_no_link_and_no_wrong_pixels(
    sharing_engine: VllmEngine, region: OwnedRegion, tiny: Model, expected: Mapping[str, list[int]]
) -> None:
    chance = random.Random(22)
    tensors = tensors_of(tiny, KINDS["video and image"])
    released = asked = 0

    def release() -> None:
        nonlocal released
        released += 1

    async def leave(number: int) -> None:
        placed = inside(region, tensors, start=8192 + number * (4 << 20))
        request = EngineRequest(f"left-{number}", placed, SamplingParameters(max_tokens=200), on_released=release)
        with suppress(TimeoutError):
            async with asyncio.timeout(chance.uniform(0, 0.3)), aclosing(sharing_engine.generate(request)) as steps:
                async for _ in steps:
                    pass

    for _ in range(5):
        await asyncio.gather(*(leave(number) for number in range(8)))
        asked += 8
        assert names_of(region) == [region.key[1:]]
    await eventually(lambda: released == asked)
    token_ids, _ = await answer(sharing_engine, inside(region, tensors))
    assert token_ids == expected["video and image"]


async def test_a_prompt_that_the_server_refuses_leaves_no_link(
    sharing_engine: VllmEngine, region: OwnedRegion, tiny: Model
) -> None:
    tensors = inside(region, tensors_of(tiny, KINDS["video"]))
    with pytest.raises(EngineRejected):
        await answer(sharing_engine, tensors, temperature=3.0)  # vLLM takes 2 at most
    assert names_of(region) == [region.key[1:]]


async def test_a_link_that_the_server_does_not_read_is_replaced_by_bytes(
    address: str, region: OwnedRegion, tiny: Model, expected: Mapping[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", os.symlink)  # it follows none
    async with VllmEngine(address) as engine:
        engine.share(region)
        token_ids, _ = await answer(engine, inside(region, tensors_of(tiny, KINDS["video and image"])))
    assert token_ids == expected["video and image"]


async def test_the_service_s_pixels_are_read_where_workers_wrote_them(
    address: str, tiny: Model, expected: Mapping[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    make_link = os.link

    def link(source: Path, path: Path) -> None:
        made.append(path)
        make_link(source, path)

    monkeypatch.setattr(os, "link", link)
    settings = EngineSettings(address=f"vllm://{address}", transport="shared-memory")
    async with (
        serving(tiny, engine_settings=settings) as caller,
        AsyncClient(caller.server.address) as client,
    ):
        content = [video(CLIP, fps=2), image(PHOTO), "What is this?"]
        prompt = chat([{"role": "user", "content": content}])
        for _ in range(3):
            async with client.generate(prompt, max_tokens=TOKEN_COUNT) as reply:
                await reply.read()
            assert list(reply.token_ids) == expected["video and image"]
        await eventually(lambda: not caller.server.pool.used_bytes)
    assert len(made) == 6
    assert not [path for path in made if path.exists()]


async def test_a_killed_service_leaves_nothing_after_the_next_start(address: str, checkpoint: Path) -> None:
    options: tuple[str, ...] = (
        "--model",
        str(checkpoint),
        "--engine",
        f"vllm://{address}",
        "--engine-transport",
        "shared-memory",
    )
    options += ("--workers", "1", "--memory-budget", "256MiB")
    prompt = chat([{"role": "user", "content": [video(CLIP, fps=2)]}])

    async def ask(client: AsyncClient) -> list[int]:
        async with client.generate(prompt, max_tokens=TOKEN_COUNT) as reply:
            await reply.read()
        return list(reply.token_ids)

    with WatchedServer(*options) as service:
        async with AsyncClient(service.address, retry_seconds=0) as client:
            token_ids = await ask(client)
            [region] = service.regions()
            asking = [asyncio.create_task(ask(client)) for _ in range(8)]
            await asyncio.sleep(0.2)  # some are read then, some are not
            service.process.kill()
            service.wait()
            await asyncio.wait(asking)
    with WatchedServer(*options) as service:
        assert list(region.parent.glob(f"{region.name}*")) == []
        async with AsyncClient(service.address, retry_seconds=0) as client:
            assert await ask(client) == token_ids


async def test_a_killed_server_leaves_no_link(
    vllm: SharedVllm, checkpoint: Path, region: OwnedRegion, tiny: Model
) -> None:
    released: list[int] = []
    started: set[int] = set()
    tensors = inside(region, tensors_of(tiny, KINDS["video"]))

    async def ask(engine: VllmEngine, number: int) -> None:
        request = EngineRequest(
            f"r{number}", tensors, SamplingParameters(max_tokens=4000), on_released=lambda: released.append(number)
        )
        async for _ in engine.generate(request):
            started.add(number)

    doomed = vllm.serving(checkpoint)
    async with VllmEngine(doomed.address) as engine:
        engine.share(region, is_required=True)
        asking = [asyncio.create_task(ask(engine, number)) for number in range(4)]
        await eventually(lambda: len(started) == 4)
        asking += [asyncio.create_task(ask(engine, number)) for number in range(4, 8)]
        await asyncio.sleep(0.05)  # some are read then, some are not
        doomed.kill()
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {EngineUnavailable}
        assert names_of(region) == [region.key[1:]]
        await eventually(lambda: len(released) == 8)


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
    with suppress(
        EngineRejected
    ):  # which of them are refused depends on the backend, which the first constraint decides
        await answer(engine, tensors_of(tiny, ()), **dict[str, Any]({name: text}))
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
