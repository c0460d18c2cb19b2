"""Through a real Triton come the tokens that transformers gives when it is called directly."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.triton.local_server import TritonServer
from engine_client import EngineRequest, FinishReason, SamplingParameters, TritonEngine
from tests.engine.prompts import PROMPTS, TOKEN_COUNT
from tests.engine.servers import MODEL_DIRECTORY, answer, ask_directly, serving

GREEDY = SamplingParameters(max_tokens=TOKEN_COUNT)


@pytest.mark.parametrize("name", ["text", "image", "video", "mixed"])
async def test_tokens_equal_those_of_a_direct_call(
    engine: TritonEngine, expected: Mapping[str, list[int]], name: str
) -> None:
    assert await answer(engine, EngineRequest(name, PROMPTS[name], GREEDY)) == expected[name]


async def test_prompts_generated_at_once_do_not_mix(engine: TritonEngine, expected: Mapping[str, list[int]]) -> None:
    names = ["text", "image", "video", "mixed", *(f"video{seed}" for seed in range(10, 14))] * 2
    answers = await asyncio.gather(*(answer(engine, EngineRequest(name, PROMPTS[name], GREEDY)) for name in names))
    assert answers == [expected[name] for name in names]


async def test_pixels_change_the_answer(engine: TritonEngine, expected: Mapping[str, list[int]]) -> None:
    black = PROMPTS["image"] | {"pixel_patches": np.zeros_like(PROMPTS["image"]["pixel_patches"])}
    assert await answer(engine, EngineRequest("black", black, GREEDY)) != expected["image"]


async def test_a_token_a_step_and_a_finish_reason_on_the_last(engine: TritonEngine) -> None:
    request = EngineRequest("steps", PROMPTS["text"], SamplingParameters(max_tokens=5))
    steps = [step async for step in engine.generate(request)]
    assert [len(step.token_ids) for step in steps] == [1] * 5
    assert [step.finish_reason for step in steps] == [None] * 4 + [FinishReason.LENGTH]


async def test_a_stop_token_ends_the_answer_and_is_its_last(
    engine: TritonEngine, expected: Mapping[str, list[int]]
) -> None:
    stop_token_id = expected["video"][4]
    until_stop = expected["video"][: expected["video"].index(stop_token_id) + 1]
    sampling = replace(GREEDY, stop_token_ids=(stop_token_id,))
    steps = [step async for step in engine.generate(EngineRequest("stop", PROMPTS["video"], sampling))]
    assert [token_id for step in steps for token_id in step.token_ids] == until_stop
    assert steps[-1].finish_reason is FinishReason.STOP


async def test_a_seed_repeats_its_answer_and_another_does_not(engine: TritonEngine) -> None:
    sampling = replace(GREEDY, temperature=1.0, top_p=0.95, top_k=100, seed=2**64 - 1)
    first, again, other = [
        await answer(engine, EngineRequest("sampled", PROMPTS["image"], each))
        for each in (sampling, sampling, replace(sampling, seed=7))
    ]
    assert first == again
    assert first != other


async def test_top_k_of_one_is_greedy(engine: TritonEngine, expected: Mapping[str, list[int]]) -> None:
    sampling = replace(GREEDY, temperature=2.0, top_k=1, seed=3)
    assert await answer(engine, EngineRequest("top-1", PROMPTS["mixed"], sampling)) == expected["mixed"]


async def test_tensors_for_other_engines_are_taken_and_change_nothing(
    engine: TritonEngine, expected: Mapping[str, list[int]]
) -> None:
    tensors = PROMPTS["image"] | {
        "item_hash": np.zeros((1, 32), np.uint8),
        "mrope_position_ids": np.zeros((3, len(PROMPTS["image"]["input_ids"])), np.int32),
        "mrope_position_delta": np.zeros(1, np.int32),
        "second_per_grid_ts": np.ones(1, np.float32),
    }
    assert await answer(engine, EngineRequest("more", tensors, GREEDY)) == expected["image"]


async def test_one_parameter_serves_another_checkpoint(triton: TritonServer, tmp_path: Path) -> None:
    checkpoint, prompts = tmp_path / "checkpoint", tmp_path / "prompts"
    prompts.mkdir()
    expected = ask_directly({"mixed": PROMPTS["mixed"]}, TOKEN_COUNT, prompts, str(checkpoint))
    shutil.copytree(MODEL_DIRECTORY, tmp_path / "models" / "vlm_transformers")
    config = tmp_path / "models" / "vlm_transformers" / "config.pbtxt"
    unset = 'key: "checkpoint"  value: { string_value: "" }'
    assert unset in config.read_text()
    config.write_text(config.read_text().replace(unset, unset.replace('""', f'"{checkpoint}"')))
    with serving("vlm_transformers", tmp_path / "models") as server:
        async with TritonEngine(server.grpc_address) as engine:
            assert await answer(engine, EngineRequest("other", PROMPTS["mixed"], GREEDY)) == expected["mixed"]


async def test_leaving_the_answer_early_leaves_the_engine_usable(
    engine: TritonEngine, expected: Mapping[str, list[int]]
) -> None:
    async with aclosing(engine.generate(EngineRequest("left", PROMPTS["video"], GREEDY))) as steps:
        await anext(steps)
    assert await answer(engine, EngineRequest("next", PROMPTS["video"], GREEDY)) == expected["video"]
