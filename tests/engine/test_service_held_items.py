"""Turns about the same media, through the service and real Tritons that hold their items: same tokens, no pixels."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.triton.local_server import TritonServer
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.engine.held import written_bytes
from tests.engine.served import Answer, ask, engines_of, service_before, until_ready
from tests.engine.servers import outcome_count, serving
from tests.media import moving_shapes_clip
from tests.service.conftest import Caller, chat, video
from tests.waiting import eventually

CLIP = moving_shapes_clip(seconds=2, width=160, height=120)
TURN = chat(video("clip", CLIP, sampling=pb.Sampling(fps=8)), "What moves?")
NEXT_TURN = chat(video("clip", CLIP, sampling=pb.Sampling(fps=8)), "And where to?")
MODEL = "vlm_transformers"


async def counted(caller: Caller) -> dict[str, float]:
    samples = await caller.samples()
    found = {result: samples["preprocessor_engine_held_items_total", result] for result in ("hit", "lost", "miss")}
    return found | {"pixels": samples["preprocessor_pixel_bytes_total",]}


async def tokens(caller: Caller, spec: pb.PrepareSpec, salt: str) -> list[int]:
    """Of an answer to media that are new with each salt."""
    own = pb.PrepareSpec(cache_salt=salt)
    own.MergeFrom(spec)
    answer = await ask(caller, Answer(), own, max_tokens=8)
    assert answer.code.name == "OK"
    return answer.token_ids


@pytest.mark.parametrize("transport", ["grpc", "shared-memory"])
async def test_the_next_turn_sends_no_pixels_and_gets_the_tokens_that_it_gets_with_them(
    model: Model, triton: TritonServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    async with service_before(model, tmp_path, triton, asks=MODEL, transport=transport) as caller:
        with_pixels = await tokens(caller, NEXT_TURN, f"{transport}-alone")
        await tokens(caller, TURN, transport)
        before, sizes = await counted(caller), written_bytes(monkeypatch)
        assert await tokens(caller, NEXT_TURN, transport) == with_pixels
        after = await counted(caller)
        assert sum(sizes) < 16 << 10
        assert after == before | {"hit": before["hit"] + 1}


async def test_a_service_that_has_just_started_sends_pixels_that_the_engine_does_not_encode_again(
    model: Model, triton: TritonServer, tmp_path: Path
) -> None:
    answers = []
    for _ in range(2):
        async with service_before(model, tmp_path, triton, asks=MODEL) as caller:
            answers.append(await tokens(caller, TURN, "just started"))
            assert (await counted(caller))["miss"] == 1
    assert answers[0] == answers[1]


@pytest.fixture(scope="module")
def second_triton() -> Iterator[TritonServer]:
    """One more of the same, for these tests to kill; the last one leaves it so."""
    with serving(MODEL) as server:
        yield server


async def test_an_engine_that_was_killed_and_started_again_gets_the_pixels_again(
    model: Model, second_triton: TritonServer, tmp_path: Path
) -> None:
    async with service_before(model, tmp_path, second_triton, asks=MODEL) as caller:
        first = await tokens(caller, TURN, "killed")
        second_triton.kill()
        answer = await ask(caller, Answer(), pb.PrepareSpec(cache_salt="killed", **_fields(TURN)), max_tokens=8)
        assert answer.code.name == "UNAVAILABLE"
        await asyncio.to_thread(second_triton.restart)
        await until_ready(caller)
        # As if its end had gone unnoticed: the guess is wrong.
        engine = engines_of(caller)[0]
        engine.holds = lambda item_hashes: True  # type: ignore[method-assign]
        engine._held.has = lambda hashes: True  # type: ignore[method-assign]
        refused = outcome_count(second_triton, "not_held")
        assert await tokens(caller, TURN, "killed") == first
        assert outcome_count(second_triton, "not_held") == refused + 1
        assert await tokens(caller, TURN, "killed") == first
        assert await counted(caller) | {"pixels": 0} == {"hit": 1, "lost": 1, "miss": 1, "pixels": 0}


async def test_of_two_engines_the_other_one_gets_the_pixels_when_the_one_that_holds_them_is_killed(
    model: Model, triton: TritonServer, second_triton: TritonServer, tmp_path: Path
) -> None:
    async with service_before(model, tmp_path, triton, second_triton, asks=MODEL) as caller:
        engine = caller.server.engine
        salts = iter(range(100))
        at_second: list[Any] = []
        while not at_second:  # the lot decides where an item goes first
            salt = f"two-{next(salts)}"
            first = await tokens(caller, TURN, salt)
            at_second = [salt] * engine.states()[1].success_count  # type: ignore[union-attr]
        for _ in range(3):
            assert await tokens(caller, TURN, salt) == first
        assert engine.states()[1].success_count == 4  # type: ignore[union-attr]
        second_triton.kill()
        assert await tokens(caller, TURN, salt) == first
        found = await counted(caller)
        assert found["hit"] == 3
        await eventually(lambda: engine.states()[1].failure_count >= 1)  # type: ignore[union-attr]


def _fields(spec: pb.PrepareSpec) -> dict[str, Any]:
    return {"chat": spec.chat, "media": spec.media}
