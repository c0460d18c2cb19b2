"""`vlm_vllm` in a real Triton answers with transformers' tokens, by every way that a prompt may come.

vLLM's own gRPC service is held to the same tokens, from the same checkpoint and prompts, in `real_vllm/test_answers.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing

import numpy as np
import pytest

from deploy.triton.local_server import TritonServer
from engine_client import (
    EngineRequest,
    OwnedRegion,
    RowProgress,
    SamplingParameters,
    Transport,
    TritonEngine,
)
from engine_client.contract.tensors import Array
from engine_client.triton import messages
from engine_client.types import FinishReason
from preprocessor.config import EngineSettings
from preprocessor.models.family import Model
from tests.engine import servers
from tests.engine.vllm_prompts import (
    KINDS,
    TOKEN_COUNT,
    answer,
    picture,
    tensors_of,
    tokens_through_service,
)
from tests.engine.vllm_triton_server import MARKS, MODEL, long_request

pytestmark = MARKS


@pytest.mark.parametrize("way", ["pieces", "whole", "shared memory"])
async def test_tokens_equal_those_of_transformers(
    way: str,
    server: TritonServer,
    tiny: Model,
    expected: Mapping[str, list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with OwnedRegion.create(64 << 20) as region:
        shared = {"shared_region": region, "transport": Transport.SHARED_MEMORY} if way == "shared memory" else {}
        async with TritonEngine(server.grpc_address, MODEL, **shared) as engine:  # type: ignore[arg-type]
            if way == "whole":
                monkeypatch.setattr(engine._model, "takes_pieces", takes_none)
            for kind, media in KINDS.items():
                tensors = tensors_of(tiny, media)
                if shared and media:
                    tensors["pixel_patches"] = moved(tensors["pixel_patches"], region)
                assert await answer(engine, tensors) == (expected[kind], FinishReason.LENGTH), kind


async def takes_none() -> bool:
    return False


def moved(rows: Array, region: OwnedRegion) -> Array:
    placed = np.frombuffer(region.buffer, np.uint8, rows.size).reshape(rows.shape)
    placed[:] = rows
    return placed


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
    assert await tokens_through_service(tiny, settings) == expected["video and image"]
