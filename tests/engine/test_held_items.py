"""Prompts without pixels, through a real Triton whose model holds what it has made of their items."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from deploy.triton.local_server import TritonServer
from engine_client import (
    EngineRejected,
    EngineRequest,
    EngineUnavailable,
    OwnedRegion,
    RowProgress,
    TritonEngine,
    connect_endpoints,
)
from engine_client.triton import messages
from tests.engine.held import GREEDY, OnDemand, Tensors, hashed, metric, written_bytes
from tests.engine.prompts import PROMPTS, PromptBuilder, mixed_prompt
from tests.engine.servers import MODEL_DIRECTORY, answer, outcome_count, serving
from tests.waiting import PATIENCE_SECONDS, eventually


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size of each message that is sent to an engine, in bytes."""
    return written_bytes(monkeypatch)


def write_model(folder: Path, cache_bytes: int) -> Path:
    """A repository with the deployed model, whose cache has that size."""
    target = folder / "vlm_transformers"
    shutil.copytree(MODEL_DIRECTORY, target, ignore=shutil.ignore_patterns("__pycache__"))
    config = target / "config.pbtxt"
    before = config.read_text()
    config.write_text(before.replace('"1073741824"', f'"{cache_bytes}"'))
    assert config.read_text() != before
    return folder


VIDEO_BYTES = 12 * 64 * 4 * 3
"""Features of `video_prompt`: merged patches, each a float32 of the hidden size, for the embedding and two layers."""


@pytest.fixture(scope="module")
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A model that holds the features of one `video_prompt`, and not of two."""
    with serving("vlm_transformers", write_model(tmp_path_factory.mktemp("small"), VIDEO_BYTES * 3 // 2)) as server:
        yield server


@pytest_asyncio.fixture
async def small_engine(small_cache: TritonServer) -> AsyncIterator[TritonEngine]:
    async with TritonEngine(small_cache.grpc_address) as client:
        yield client


async def send(engine: TritonEngine, tensors: Tensors) -> list[int]:
    return await answer(engine, EngineRequest("r", tensors, GREEDY))


async def until_ready(engine: TritonEngine) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with contextlib.suppress(EngineUnavailable):
                return await engine.check_ready()
            await asyncio.sleep(0.05)


# -- what is held --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["image", "video", "mixed", "large"])
async def test_the_second_prompt_with_the_same_items_sends_no_pixels_and_gets_the_same_tokens(
    engine: TritonEngine, triton: TritonServer, expected: Mapping[str, list[int]], written: list[int], name: str
) -> None:
    tensors = hashed(PROMPTS[name], 1)
    assert not engine.holds(tensors["item_hash"])
    assert await send(engine, tensors) == expected[name]
    assert engine.holds(tensors["item_hash"])
    assert sum(written) > tensors["pixel_patches"].nbytes
    written.clear()
    hits, again = metric(triton, "vlm_held_items_total", result="hit"), OnDemand(tensors)
    for _ in range(2):
        assert await answer(engine, again.request) == expected[name]
    assert again.count == 0
    assert max(written) < 4096 + tensors["input_ids"].nbytes
    assert metric(triton, "vlm_held_items_total", result="hit") == hits + 2 * len(tensors["grid_thw"])
    assert metric(triton, "vlm_held_bytes") > 0


@pytest.mark.parametrize("in_pieces", [True, False])
async def test_an_item_that_is_held_is_not_encoded_again_when_its_pixels_come_with_other_items(
    engine: TritonEngine,
    triton: TritonServer,
    expected: Mapping[str, list[int]],
    monkeypatch: pytest.MonkeyPatch,
    in_pieces: bool,
) -> None:
    if in_pieces:  # of seven rows, so that pieces begin and end within items
        monkeypatch.setattr(messages, "MIN_PIECE_BYTES", 1)
        monkeypatch.setattr(messages, "MAX_INLINE_PIECE_BYTES", 7 * 1536)
    mixed = hashed(mixed_prompt(), 20 + in_pieces)
    video = PromptBuilder().text(151644).video(2, 6, 4).text(151645).tensors()
    video |= {"pixel_patches": mixed["pixel_patches"][16:64], "item_hash": mixed["item_hash"][1:2]}
    await send(engine, video)
    hits, misses = (metric(triton, "vlm_held_items_total", result=each) for each in ("hit", "miss"))
    assert await send(engine, mixed) == expected["mixed"]
    assert metric(triton, "vlm_held_items_total", result="hit") == hits + 1
    assert metric(triton, "vlm_held_items_total", result="miss") == misses + 2
    assert await answer(engine, OnDemand(mixed).request) == expected["mixed"]


async def test_pixels_in_shared_memory_are_not_referred_to_where_the_items_are_held(
    triton: TritonServer, expected: Mapping[str, list[int]], written: list[int]
) -> None:
    tensors = hashed(PROMPTS["large"], 2)
    with OwnedRegion.create(16 << 20) as region:
        pixels = np.frombuffer(region.buffer, np.uint8, tensors["pixel_patches"].size)
        pixels = pixels.reshape(tensors["pixel_patches"].shape)
        pixels[:] = tensors["pixel_patches"]
        async with TritonEngine(triton.grpc_address, shared_region=region) as engine:
            assert await send(engine, tensors | {"pixel_patches": pixels}) == expected["large"]
            assert sum(written) < tensors["input_ids"].nbytes + (16 << 10)
            pixels[:] = 0  # nobody may read them from now on
            assert await answer(engine, OnDemand(tensors | {"pixel_patches": pixels}).request) == expected["large"]
        del pixels


async def test_nothing_is_held_of_items_without_hashes(engine: TritonEngine) -> None:
    await send(engine, PROMPTS["video"])
    assert not engine._held.has([b""])
    assert not engine._held._hashes


# -- wrong guesses -------------------------------------------------------------------------------------------------------


async def test_a_wrong_guess_costs_one_refusal_and_then_the_pixels_are_sent(
    engine: TritonEngine, triton: TritonServer, expected: Mapping[str, list[int]]
) -> None:
    tensors, refused = hashed(PROMPTS["video"], 3), outcome_count(triton, "not_held")
    engine._held.learn([each.tobytes() for each in tensors["item_hash"]], [True])
    wrong = OnDemand(tensors)
    assert await answer(engine, wrong.request) == expected["video"]
    assert wrong.count == 1
    assert outcome_count(triton, "not_held") == refused + 1
    right = OnDemand(tensors)
    assert await answer(engine, right.request) == expected["video"]
    assert right.count == 0
    assert outcome_count(triton, "not_held") == refused + 1


async def test_after_a_wrong_guess_rows_are_sent_while_they_are_still_written(
    engine: TritonEngine, expected: Mapping[str, list[int]]
) -> None:
    tensors = hashed(PROMPTS["large"], 4)
    engine._held.learn([each.tobytes() for each in tensors["item_hash"]], [True])
    progress = RowProgress("pixel_patches")
    wrong = OnDemand(tensors, progress)
    answering = asyncio.create_task(answer(engine, wrong.request))
    await eventually(lambda: wrong.count == 1)
    for row_count in (1000, 2000, len(tensors["pixel_patches"])):
        progress.finish(row_count)
        await asyncio.sleep(0)
    assert await answering == expected["large"]


async def test_what_making_pixels_raises_ends_the_answer_and_the_arrays_are_released(engine: TritonEngine) -> None:
    tensors, released = hashed(PROMPTS["video"], 5), []
    engine._held.learn([each.tobytes() for each in tensors["item_hash"]], [True])
    request = replace(OnDemand(tensors, error=KeyError("a file")).request, on_released=lambda: released.append(True))
    with pytest.raises(KeyError, match="a file"):
        await answer(engine, request)
    await eventually(lambda: released == [True])


@pytest.mark.parametrize("changed", ["pixel_mean", "grid_thw"])
async def test_the_same_hash_with_another_grid_or_normalization_is_not_held(
    engine: TritonEngine, triton: TritonServer, changed: str
) -> None:
    tensors = hashed(PROMPTS["video"], 6)
    await send(engine, tensors)
    if changed == "pixel_mean":
        other = tensors | {"pixel_mean": tensors["pixel_mean"] + 0.25}
    else:
        other = PromptBuilder(2).text(151644, 872, 198).video(3, 2, 8).text(3838, 151645).tensors()
        other |= {"item_hash": tensors["item_hash"]}
    without_hash = {name: array for name, array in other.items() if name != "item_hash"}
    wrong = OnDemand(other)
    assert engine.holds(other["item_hash"])
    assert await answer(engine, wrong.request) == await send(engine, without_hash)
    assert wrong.count == 1


async def test_a_prompt_that_is_wrong_beside_is_rejected_and_no_pixels_are_made(engine: TritonEngine) -> None:
    tensors = hashed(PROMPTS["video"], 7)
    await send(engine, tensors)
    wrong = OnDemand(tensors | {"item_spans": tensors["item_spans"] + 1})
    with pytest.raises(EngineRejected, match="span 0"):
        await answer(engine, wrong.request)
    assert wrong.count == 0
    assert engine.holds(tensors["item_hash"])


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"uses_held_items": np.ones(1, np.uint8)}, "uses_held_items came with pixel_patches"),
        ({"item_hash": np.zeros((2, 32), np.uint8)}, r"item_hash is uint8 \[2, 32\]; it must be uint8 \[1, 32\]"),
    ],
)
async def test_what_contradicts_itself_is_rejected(engine: TritonEngine, tensors: Tensors, why: str) -> None:
    with pytest.raises(EngineRejected, match=why):
        await send(engine, {**hashed(PROMPTS["video"], 8), **tensors})


# -- eviction, restarts, several -----------------------------------------------------------------------------------------


async def test_the_least_recently_used_item_is_dropped_and_its_pixels_are_sent_again(
    small_engine: TritonEngine, small_cache: TritonServer, expected: Mapping[str, list[int]]
) -> None:
    one, two = hashed(PROMPTS["video10"], 10), hashed(PROMPTS["video11"], 11)
    for tensors, name in ((one, "video10"), (two, "video11"), (two, "video11"), (one, "video10")):
        assert await send(small_engine, tensors) == expected[name]
        assert metric(small_cache, "vlm_held_bytes") == VIDEO_BYTES
    dropped, held = OnDemand(two), OnDemand(two)
    assert small_engine.holds(two["item_hash"])  # it was not told
    assert await answer(small_engine, dropped.request) == expected["video11"]
    assert await answer(small_engine, held.request) == expected["video11"]
    assert (dropped.count, held.count) == (1, 0)


async def test_an_item_larger_than_the_cache_is_not_said_to_be_held(
    small_engine: TritonEngine, expected: Mapping[str, list[int]]
) -> None:
    tensors = hashed(PROMPTS["large"], 12)
    assert await send(small_engine, tensors) == expected["large"]
    assert not small_engine.holds(tensors["item_hash"])


async def test_after_a_restart_the_pixels_are_sent_again(
    small_engine: TritonEngine, small_cache: TritonServer, expected: Mapping[str, list[int]]
) -> None:
    tensors = hashed(PROMPTS["video"], 13)
    assert await send(small_engine, tensors) == expected["video"]
    small_cache.kill()
    assert small_engine.holds(tensors["item_hash"])
    with pytest.raises(EngineUnavailable):
        await answer(small_engine, OnDemand(tensors).request)
    assert not small_engine.holds(tensors["item_hash"])
    await asyncio.to_thread(small_cache.restart)
    await until_ready(small_engine)
    small_engine._held.learn([each.tobytes() for each in tensors["item_hash"]], [True])  # as if it had not noticed
    wrong = OnDemand(tensors)
    assert await answer(small_engine, wrong.request) == expected["video"]
    assert wrong.count == 1
    assert small_engine.holds(tensors["item_hash"])


@pytest.mark.slow  # it starts a server
async def test_with_a_cache_of_no_bytes_nothing_is_held(tmp_path: Path, expected: Mapping[str, list[int]]) -> None:
    tensors = hashed(PROMPTS["video"], 15)
    with serving("vlm_transformers", write_model(tmp_path, 0)) as server:
        async with TritonEngine(server.grpc_address) as engine:
            assert await send(engine, tensors) == expected["video"]
            assert not engine.holds(tensors["item_hash"])
            engine._held.learn([each.tobytes() for each in tensors["item_hash"]], [True])
            wrong = OnDemand(tensors)
            assert await answer(engine, wrong.request) == expected["video"]
            assert wrong.count == 1


async def test_of_two_engines_the_one_that_holds_the_items_gets_the_prompt(
    triton: TritonServer, small_cache: TritonServer, expected: Mapping[str, list[int]]
) -> None:
    tensors = hashed(PROMPTS["video"], 14)
    async with connect_endpoints([triton.grpc_address, small_cache.grpc_address]) as both:
        assert await answer(both, EngineRequest("r", tensors, GREEDY)) == expected["video"]
        holder = max(range(2), key=lambda index: both.states()[index].success_count)
        assert both.holds(tensors["item_hash"])
        for count in range(2, 7):
            asked = OnDemand(tensors)
            assert await answer(both, asked.request) == expected["video"]
            assert asked.count == 0
            assert both.states()[holder].success_count == count
