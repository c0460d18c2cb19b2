"""`vlm_vllm` in a real Triton, with a real vLLM in it: transformers' tokens by every way, and a core that dies is noticed.

vLLM's own gRPC service is held to the same tokens, from the same checkpoint and prompts, in `test_vllm.py`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
import re
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import pytest_asyncio

from deploy.triton.local_server import TritonServer
from engine_client import (
    FEATURE_TENSORS,
    EngineDeadlineExceeded,
    EngineRejected,
    EngineRequest,
    EngineUnavailable,
    OwnedRegion,
    RowProgress,
    SamplingParameters,
    Transport,
    TritonEngine,
)
from engine_client.contract.tensors import Array
from engine_client.triton import messages
from engine_client.types import FinishReason
from preprocessor.client import AsyncClient, chat, image, video
from preprocessor.config import EngineSettings
from preprocessor.models.family import Model
from tests.engine import servers
from tests.engine.direct_sampling import FREQUENCY, PRESENCE, REPETITION, TOP
from tests.engine.held import OnDemand, written_bytes
from tests.engine.servers import outcome_count
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
from tests.engine.vllm_server import CONTEXT_TOKENS, INSTALLED
from tests.engine.vllm_triton_server import MAX_ITEMS, MODEL, serving_vllm_in_triton
from tests.loading import load_family_model
from tests.service.conftest import serving
from tests.waiting import PATIENCE_SECONDS, eventually

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1200),  # a start takes minutes where others compute
    pytest.mark.skipif(not INSTALLED.exists(), reason="no vLLM; `make vllm` sets one up"),
]

MANY_TOKENS = 4000
FUZZ_COUNT = 300


@pytest.fixture(scope="module")
def server(tiny_qwen3_vl: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with serving_vllm_in_triton(tiny_qwen3_vl, tmp_path_factory.mktemp("vllm-in-triton")) as running:
        yield running


@pytest.fixture(scope="module")
def tiny(tiny_qwen3_vl: Path) -> Model:
    return load_family_model(str(tiny_qwen3_vl))


@pytest.fixture(scope="module")
def expected(tiny_qwen3_vl: Path, tiny: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    return ask_transformers(tiny_qwen3_vl, tiny, tmp_path_factory.mktemp("prompts"))


@pytest_asyncio.fixture
async def engine(server: TritonServer) -> AsyncIterator[TritonEngine]:
    async with TritonEngine(server.grpc_address, MODEL) as client:
        yield client


def core_pids(server: TritonServer) -> list[int]:
    """Of the processes in which vLLM computes."""
    return [
        process.pid
        for process in psutil.Process(server.pid).children(recursive=True)
        if any("EngineCore" in part for part in process.cmdline())
    ]


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["pieces", "whole", "shared memory"])
async def test_tokens_equal_those_of_transformers(
    way: str, server: TritonServer, tiny: Model, expected: Mapping[str, list[int]]
) -> None:
    with OwnedRegion.create(64 << 20) as region:
        shared = {"shared_region": region, "transport": Transport.SHARED_MEMORY} if way == "shared memory" else {}
        async with TritonEngine(server.grpc_address, MODEL, **shared) as engine:  # type: ignore[arg-type]
            if way == "whole":
                engine._model._takes_pieces = False
            for kind, media in KINDS.items():
                tensors = tensors_of(tiny, media)
                if shared and media:
                    tensors["pixel_patches"] = moved(tensors["pixel_patches"], region)
                assert await answer(engine, tensors) == (expected[kind], FinishReason.LENGTH), kind


def moved(rows: Array, region: OwnedRegion) -> Array:
    placed = np.frombuffer(region.buffer, np.uint8, rows.size).reshape(rows.shape)
    placed[:] = rows
    return placed


@pytest.mark.parametrize("way", ["pieces", "whole"])
async def test_the_next_prompt_about_the_same_items_sends_no_pixels_and_gets_the_same_tokens(
    way: str,
    engine: TritonEngine,
    server: TritonServer,
    tiny: Model,
    expected: Mapping[str, list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if way == "whole":
        monkeypatch.setattr(engine._model, "takes_pieces", _no)
    for number, (kind, media) in enumerate(KINDS.items()):
        if not media:
            continue
        tensors = tensors_of(tiny, media)
        tensors["item_hash"] = tensors["item_hash"] ^ np.uint8(64 + 2 * number + (way == "whole"))
        assert not engine.holds(tensors["item_hash"])
        assert await answer(engine, tensors) == (expected[kind], FinishReason.LENGTH), kind
        assert engine.holds(tensors["item_hash"])
        sizes, again = written_bytes(monkeypatch), OnDemand(tensors)
        greedy = dataclasses.replace(again.request, sampling=SamplingParameters(TOKEN_COUNT))
        assert await servers.answer(engine, greedy) == expected[kind]
        assert again.count == 0
        assert sum(sizes) < 8192 + tensors["input_ids"].nbytes + tensors["mrope_position_ids"].nbytes
        # A wrong guess: of an item that was never there.
        tensors["item_hash"] = tensors["item_hash"] ^ np.uint8(128)
        engine._held.learn([row.tobytes() for row in tensors["item_hash"]], [True] * len(tensors["item_hash"]))
        wrong, refused = OnDemand(tensors), outcome_count(server, "not_held")
        greedy = dataclasses.replace(wrong.request, sampling=SamplingParameters(TOKEN_COUNT))
        assert await servers.answer(engine, greedy) == expected[kind]
        assert (wrong.count, outcome_count(server, "not_held")) == (1, refused + 1)


async def _no(timeout_seconds: float) -> bool:
    return False


async def test_rows_that_come_while_they_are_written_give_the_same_tokens(
    engine: TritonEngine, tiny: Model, expected: Mapping[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MIN_PIECE_BYTES", 1)
    tensors = tensors_of(tiny, KINDS["video and image"])
    rows = tensors["pixel_patches"]
    tensors["pixel_patches"] = np.full_like(rows, 99)
    pending = RowProgress("pixel_patches")
    request = EngineRequest("written", tensors, SamplingParameters(TOKEN_COUNT), pending=pending)
    asking = asyncio.create_task(servers.answer(engine, request))
    for start in range(0, len(rows), 100):
        await asyncio.sleep(0)
        tensors["pixel_patches"][start : start + 100] = rows[start : start + 100]
        pending.finish(min(start + 100, len(rows)))
    assert await asking == expected["video and image"]


async def test_many_prompts_at_once_have_their_own_answers(
    engine: TritonEngine, tiny: Model, expected: Mapping[str, list[int]]
) -> None:
    kinds = list(KINDS) * 3
    answers = await asyncio.gather(*(answer(engine, tensors_of(tiny, KINDS[kind])) for kind in kinds))
    assert [token_ids for token_ids, _ in answers] == [expected[kind] for kind in kinds]


async def test_a_short_answer_is_not_held_up_by_a_long_one(engine: TritonEngine, tiny: Model) -> None:
    async with aclosing(engine.generate(long_request(tiny))) as steps:
        await anext(steps)
        token_ids, _ = await answer(engine, tensors_of(tiny, ()))
        assert len(token_ids) == TOKEN_COUNT
        await anext(steps)  # the long one goes on


def long_request(model: Model) -> EngineRequest:
    return EngineRequest("long", tensors_of(model, ()), SamplingParameters(MANY_TOKENS, temperature=1.0))


async def test_pixels_reach_the_encoder(engine: TritonEngine, tiny: Model) -> None:
    tensors = tensors_of(tiny, (picture(),))
    inverted = {"pixel_patches": 255 - tensors["pixel_patches"], "item_hash": tensors["item_hash"] ^ 1}
    assert await answer(engine, tensors) != await answer(engine, tensors | inverted)


async def test_a_stop_token_ends_the_answer_and_is_its_last(engine: TritonEngine, tiny: Model) -> None:
    tensors = tensors_of(tiny, (picture(),))
    whole, _ = await answer(engine, tensors)
    stopped = await answer(engine, tensors, stop_token_ids=(whole[3],))
    assert stopped == (whole[: whole.index(whole[3]) + 1], FinishReason.STOP)


async def test_equal_seeds_sample_equal_tokens(engine: TritonEngine, tiny: Model) -> None:
    tensors = tensors_of(tiny, ())
    one, same, other = [await answer(engine, tensors, temperature=1.0, seed=seed) for seed in (7, 7, 2**63 + 8)]
    assert one == same != other


async def test_the_service_prepares_and_vllm_answers(
    server: TritonServer, tiny: Model, expected: Mapping[str, list[int]]
) -> None:
    settings = EngineSettings(address=server.grpc_address, model=MODEL)
    async with (
        serving(tiny, engine_settings=settings) as caller,
        AsyncClient(caller.server.address) as client,
    ):
        content = [video(CLIP, fps=2), image(PHOTO), "What is this?"]
        async with client.generate(chat([{"role": "user", "content": content}]), max_tokens=TOKEN_COUNT) as reply:
            await reply.read()
    assert list(reply.token_ids) == expected["video and image"]


# -- sampling parameters that an engine may lack -----------------------------------------------------------------------


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
    sampling = {"temperature": 1.0, "regex": "(red|blue) [0-9]{3}", "stop_token_ids": stop_token_ids}
    token_ids, reason = await answer(engine, tensors_of(tiny, (clip(),)), 200, **sampling)
    assert reason is FinishReason.STOP  # whose token is the last
    assert re.fullmatch("(red|blue) [0-9]{3}", tiny.tokenizer.decode(token_ids[:-1]))


@pytest.mark.parametrize(("name", "text"), [("regex", "("), ("grammar", "root ::="), ("json_schema", "no JSON")])
async def test_a_constraint_that_makes_no_sense_is_rejected(
    engine: TritonEngine, tiny: Model, name: str, text: str
) -> None:
    with pytest.raises(EngineRejected, match="vLLM refused the prompt"):
        await answer(engine, tensors_of(tiny, ()), **{name: text})


# -- ends --------------------------------------------------------------------------------------------------------------


async def test_an_answer_that_is_left_is_aborted(server: TritonServer, engine: TritonEngine, tiny: Model) -> None:
    before = outcome_count(server, "cancelled")
    async with aclosing(engine.generate(long_request(tiny))) as steps:
        await anext(steps)
    with pytest.raises(EngineDeadlineExceeded):
        async with aclosing(engine.generate(long_request(tiny), timeout_seconds=1.0)) as steps:
            async for _ in steps:
                pass
    await eventually(lambda: outcome_count(server, "cancelled") == before + 2)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        pytest.param({"item_hash": None}, "item_hash is missing", id="no hashes"),
        pytest.param({"pixel_mean": np.ones(3, np.float32)}, "normalizes by its checkpoint's", id="another mean"),
        pytest.param({"item_spans": None}, "item_spans is missing", id="no spans"),
        pytest.param({"stop_token_ids": np.array([10**6], np.int32)}, "vLLM refused the prompt", id="stop token"),
    ],
)
async def test_a_wrong_prompt_is_the_callers_fault(
    server: TritonServer, engine: TritonEngine, tiny: Model, changed: dict[str, Array | None], complaint: str
) -> None:
    before = outcome_count(server, "rejected")
    tensors = tensors_of(tiny, (picture(),)) | changed
    stop_token_ids = tensors.pop("stop_token_ids", None)
    given = {} if stop_token_ids is None else {"stop_token_ids": tuple(stop_token_ids.tolist())}
    with pytest.raises(EngineRejected, match=complaint):
        await answer(engine, {name: array for name, array in tensors.items() if array is not None}, **given)
    assert outcome_count(server, "rejected") == before + 1


async def test_a_prompt_above_the_engines_limits_is_rejected(engine: TritonEngine, tiny: Model) -> None:
    with pytest.raises(EngineRejected, match=f"the model has {CONTEXT_TOKENS}"):
        await answer(engine, {"input_ids": np.ones(CONTEXT_TOKENS, np.int32)})
    pictures = tuple(picture(str(number)) for number in range(MAX_ITEMS["image"] + 1))
    with pytest.raises(EngineRejected, match=f"the prompt has {len(pictures)} images; the engine takes"):
        await answer(engine, tensors_of(tiny, pictures))


async def test_a_frame_without_its_marker_is_rejected(engine: TritonEngine, tiny: Model) -> None:
    tensors = tensors_of(tiny, (clip(),))
    for shift in (-1, int(tensors["item_spans"][-1, 2])):  # before the last frame, and after it
        ids = tensors["input_ids"].copy()
        ids[tensors["item_spans"][-1, 1] + shift] = 7
        with pytest.raises(EngineRejected, match="no vision marker stands"):
            await answer(engine, tensors | {"input_ids": ids})


async def test_no_prompt_ends_the_core(engine: TritonEngine, tiny: Model, expected: Mapping[str, list[int]]) -> None:
    chance = random.Random(22)
    whole = [tensors_of(tiny, media) for media in KINDS.values() if media]
    prompts = [broken(chance.choice(whole), chance) for _ in range(FUZZ_COUNT)]
    for start in range(0, FUZZ_COUNT, 10):
        await asyncio.gather(*(rejected_or_answered(engine, tensors) for tensors in prompts[start : start + 10]))
    token_ids, _ = await answer(engine, tensors_of(tiny, KINDS["video"]))
    assert token_ids == expected["video"]


async def rejected_or_answered(engine: TritonEngine, tensors: Mapping[str, Array]) -> None:
    with suppress(EngineRejected):
        await answer(engine, tensors, max_tokens=1)


# -- a dead core; the last test of the file, for nothing of the server is left -------------------------------------------


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
