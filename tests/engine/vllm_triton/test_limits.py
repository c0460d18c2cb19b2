"""`vlm_vllm` aborts answers that are left, and refuses prompts that would end vLLM's core."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import aclosing, suppress
from typing import Any

import numpy as np
import pytest

from deploy.triton.local_server import TritonServer
from engine_client import EngineDeadlineExceeded, EngineRejected, TritonEngine
from engine_client.contract.tensors import Array
from preprocessor.models.family import Model
from tests.engine.servers import outcome_count
from tests.engine.vllm_prompts import KINDS, answer, broken, clip, picture, tensors_of
from tests.engine.vllm_server import CONTEXT_TOKENS
from tests.engine.vllm_triton_server import MARKS, MAX_ITEMS, long_request
from tests.waiting import GROWING_SECONDS, eventually

FUZZ_COUNT = 300


pytestmark = MARKS


async def test_an_answer_that_is_left_is_aborted(server: TritonServer, engine: TritonEngine, tiny: Model) -> None:
    before = outcome_count(server, "cancelled")
    async with aclosing(engine.generate(long_request(tiny))) as steps:
        await anext(steps)
    for seconds in GROWING_SECONDS:
        step_count = 0
        with pytest.raises(EngineDeadlineExceeded):
            async with aclosing(engine.generate(long_request(tiny), timeout_seconds=seconds)) as steps:
                async for _ in steps:
                    step_count += 1
        if step_count:  # else it may not have begun
            break
    await eventually(lambda: outcome_count(server, "cancelled") >= before + 2)


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
    given: dict[str, Any] = {} if stop_token_ids is None else {"stop_token_ids": tuple(stop_token_ids.tolist())}
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
