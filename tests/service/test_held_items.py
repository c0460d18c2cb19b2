"""Pixels are neither made nor sent where the engine holds the items, and made where it does not after all."""

from __future__ import annotations

import grpc
import numpy as np
import pytest

from engine_client import EngineCapabilities, EngineRequest
from engine_client.testing import FakeEngine
from preprocessor import pipeline
from preprocessor.client import CallFailed
from preprocessor.config import AccessSettings
from preprocessor.models.family import Model
from preprocessor.service.made_items import MadeItems, scoped_hashes
from preprocessor.service.reading import read_spec
from preprocessor.types.plan import Substitution
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import damaged, keyframe_packets, moving_shapes_clip, photo
from tests.service.conftest import Caller, chat, image, serving, video
from tests.waiting import PATIENCE_SECONDS, eventually

CLIP = moving_shapes_clip(seconds=2, width=128, height=96)
PHOTO = photo(96, 64)
PIECES = EngineCapabilities(takes_pieces=True)
WHOLE = EngineCapabilities()


class Keeping(FakeEngine):
    """Holds items, and keeps the pixels of each request as they were: the arrays are the service's only until the first token."""

    def __init__(self, capabilities: EngineCapabilities = PIECES) -> None:
        super().__init__([11, 12], keeps_items=True, capabilities=capabilities)
        self.pixels: list[np.ndarray | None] = []

    async def _await_rows(self, request: EngineRequest, deadline: float | None) -> None:
        await super()._await_rows(request, deadline)
        pixels = request.tensors.get("pixel_patches")
        self.pixels.append(None if pixels is None else pixels.copy())


async def held(caller: Caller) -> dict[str, float]:
    samples = await caller.samples()
    return {result: samples["preprocessor_engine_held_items_total", result] for result in ("hit", "lost", "miss")}


def turn(text: str, *more: pb.Media) -> pb.PrepareSpec:
    return chat(video("clip", CLIP), *more, text)


@pytest.mark.parametrize("capabilities", [PIECES, WHOLE], ids=["pieces", "whole"])
async def test_the_next_turn_makes_and_sends_no_pixels(model: Model, capabilities: EngineCapabilities) -> None:
    engine = Keeping(capabilities)
    async with serving(model, engine) as caller:
        await caller.generate(turn("What moves?"), max_tokens=2)
        before = await caller.samples()
        answer = await caller.generate(turn("And where to?"), max_tokens=2)
        after = await caller.samples()
        assert caller.server.pool.pending_count == 0
    first, second = (request.tensors for request in engine.requests)
    assert "pixel_patches" in first
    assert "pixel_patches" not in second
    assert first["item_hash"].tobytes() == second["item_hash"].tobytes()
    assert second["grid_thw"].tolist() == first["grid_thw"].tolist()
    assert [token for each in answer for token in each.delta.token_ids] == [11, 12]
    assert answer[-1].completion.report.cached_item_count == 1
    assert "decode" not in {stage.stage for stage in answer[-1].completion.report.stages}
    assert after["preprocessor_pixel_bytes_total",] == before["preprocessor_pixel_bytes_total",]
    sent = [each["preprocessor_sent_bytes_total", "engine"] for each in (before, after)]
    assert sent[0] > first["pixel_patches"].nbytes
    assert sent[1] - sent[0] == sum(array.nbytes for array in second.values())
    results = {result: after["preprocessor_engine_held_items_total", result] for result in ("hit", "lost", "miss")}
    assert results == {"hit": 1, "lost": 0, "miss": 1}


@pytest.mark.parametrize("capabilities", [PIECES, WHOLE], ids=["pieces", "whole"])
@pytest.mark.parametrize("is_cached", [True, False])
async def test_pixels_are_made_where_the_engine_holds_the_items_no_more(
    model: Model, capabilities: EngineCapabilities, is_cached: bool
) -> None:
    engine = Keeping(capabilities)
    async with serving(model, engine) as caller:
        await caller.generate(turn("What moves?"), max_tokens=2)
        engine.held_hashes.clear()
        if not is_cached:
            caller.server.pool.cache.clear()
        answer = await caller.generate(turn("And where to?"), max_tokens=2)
        assert answer[-1].completion.report.cached_item_count == is_cached
        await caller.generate(turn("And now?"), max_tokens=2)
        assert await held(caller) == {"hit": 1, "lost": 1, "miss": 1}
        assert (caller.server.pool.pending_count, caller.server.pool.used_bytes) == (0, 0)
    expected = pipeline.prepare(model, read_spec(turn("And where to?"))[0]).tensors["pixel_patches"]
    np.testing.assert_array_equal(engine.pixels[1], expected)
    assert engine.pixels[2] is None


async def test_with_one_item_that_is_not_held_all_pixels_are_sent(model: Model) -> None:
    engine = Keeping()
    async with serving(model, engine) as caller:
        await caller.generate(turn("What moves?"), max_tokens=2)
        both = turn("Compare.", image("photo", PHOTO))
        await caller.generate(both, max_tokens=2)
        assert await held(caller) == {"hit": 0, "lost": 0, "miss": 3}
    expected = pipeline.prepare(model, read_spec(both)[0]).tensors["pixel_patches"]
    np.testing.assert_array_equal(engine.pixels[1], expected)


async def test_other_sampling_of_the_same_file_is_not_held(model: Model) -> None:
    engine = Keeping()
    async with serving(model, engine) as caller:
        for count in (4, 8):
            spec = chat(video("clip", CLIP, sampling=pb.Sampling(frame_count=count)), "What moves?")
            await caller.generate(spec, max_tokens=2)
        assert await held(caller) == {"hit": 0, "lost": 0, "miss": 2}


async def test_nothing_is_left_out_where_nothing_is_to_be_kept(model: Model) -> None:
    engine = Keeping()
    async with serving(model, engine, cache_share=0.0) as caller:
        for _ in range(2):
            await caller.generate(turn("What moves?"), max_tokens=2)
        assert await held(caller) == {"hit": 0, "lost": 0, "miss": 2}
    assert engine.pixels[1] is not None


async def test_what_one_caller_has_sent_is_not_held_for_another(model: Model) -> None:
    engine = Keeping()
    access = AccessSettings(is_insecure=True, caller_metadata="x-caller")
    async with serving(model, engine, access=access) as caller:
        for name in ("one", "other", "one"):
            given = pb.GenerateSpec(prompt=turn("What moves?"), parameters=pb.GenerationParameters(max_tokens=2))
            call = caller.stub.Generate(
                iter([pb.GenerateRequest(spec=given)]), timeout=PATIENCE_SECONDS, metadata=(("x-caller", name),)
            )
            async for _ in call:
                pass
        assert await held(caller) == {"hit": 1, "lost": 0, "miss": 2}
    hashes = [request.tensors["item_hash"].tobytes() for request in engine.requests]
    assert hashes[0] == hashes[2] != hashes[1]
    own = pipeline.prepare(model, read_spec(turn("What moves?"))[0]).tensors["item_hash"]
    assert own.tobytes() not in hashes
    assert scoped_hashes(own, "one").tobytes() == hashes[0]


async def test_a_report_names_frames_that_could_not_be_decoded_though_none_was_decoded(model: Model) -> None:
    engine = Keeping()
    whole = moving_shapes_clip(1, 30, 96, 64, grain=30, options=(("g", "10"),))
    first = keyframe_packets(whole)[1]
    spoiled, sampling = damaged(whole, *range(first, first + 5)), pb.Sampling(frame_count=30)
    spec = chat(video("clip", spoiled, sampling=sampling, damage_policy=pb.DAMAGE_POLICY_TOLERANT), "What?")
    async with serving(model, engine) as caller:
        reports = [(await caller.generate(spec, max_tokens=2))[-1].completion.report for _ in range(2)]
        assert await held(caller) == {"hit": 1, "lost": 0, "miss": 1}
    assert reports[0].substitutions
    assert reports[0].substitutions == reports[1].substitutions


async def test_an_item_of_which_the_report_is_forgotten_is_made_again() -> None:
    made = MadeItems(2)
    hashes = np.arange(3 * 32, dtype=np.uint8).reshape(3, 32)
    made.add(hashes[:2], [Substitution(1, 4, 3)])
    assert made.find(hashes[:2]) == (Substitution(1, 4, 3),)
    assert made.find(hashes[1::-1]) == (Substitution(0, 4, 3),)
    made.add(hashes[2:], [])
    assert made.find(hashes[2:]) == ()
    assert made.find(hashes[:1]) is None
    assert made.find(hashes[:2]) is None


async def test_a_full_queue_refuses_the_pixels_of_a_wrong_guess(model: Model) -> None:
    engine = Keeping()
    async with serving(model, engine, worker_count=1, max_queued_count=1) as caller:
        await caller.generate(turn("What moves?"), max_tokens=2)
        engine.held_hashes.clear()
        pool = caller.server.pool
        original = engine._require_available

        def fill() -> None:  # between the plan and the pixels
            original()
            while pool.pending_count < 2:
                pool.begin_request()

        engine._require_available = fill  # type: ignore[method-assign]
        with pytest.raises(CallFailed) as caught:
            await caller.generate(turn("And where to?"), max_tokens=2)
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        pool.end_request()
        pool.end_request()
        await eventually(lambda: (pool.pending_count, pool.used_bytes) == (0, 0))
