"""A real vLLM behind its own gRPC service: our prompts are answered as transformers answers them, and none ends its core."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import aclosing, suppress
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_client import (
    EngineError,
    EngineRejected,
    EngineRequest,
    EngineUnavailable,
    Fingerprint,
    SamplingParameters,
)
from engine_client.errors import EngineMismatch
from engine_client.types import FinishReason
from engine_client.vllm import VllmEngine
from engine_client.vllm.prompt import encode_prompt
from preprocessor.config import EngineSettings
from preprocessor.models.family import Model
from preprocessor.models.fingerprint import fingerprint_parts
from tests.engine.real_vllm.conftest import MARKS
from tests.engine.vllm_prompts import (
    KINDS,
    answer,
    broken,
    clip,
    picture,
    tensors_of,
    tokens_through_service,
)
from tests.engine.vllm_server import CONTEXT_TOKENS

pytestmark = MARKS


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
    server, _ = await engine._model.require_server()
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
    assert await tokens_through_service(tiny, settings) == expected["video and image"]


async def test_where_nobody_listens_the_engine_is_unavailable() -> None:
    async with VllmEngine("127.0.0.1:1") as engine:
        with pytest.raises(EngineUnavailable):
            await engine.check_ready()
        with pytest.raises(EngineError):
            await answer(engine, {"input_ids": np.array([1], np.int32)})
