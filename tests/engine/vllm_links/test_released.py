"""Pixels that vLLM reads in shared memory: when their memory is free again, and that no link is left behind."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from engine_client import (
    EngineFailed,
    EngineRejected,
    OwnedRegion,
    connect_endpoints,
    remove_abandoned_regions,
)
from engine_client.vllm import VllmEngine, links
from preprocessor.models.family import Model
from tests.engine.vllm_links.conftest import IMAGE, VIDEO, Asked, inside, links_of, tensors_of
from tests.engine.vllm_stand_in import StandIn
from tests.waiting import eventually

A_WHILE_SECONDS = 0.5


async def test_memory_is_free_as_soon_as_it_is_read_though_the_prompt_waits(
    engine: VllmEngine, server: StandIn, region: OwnedRegion, model: Model
) -> None:
    server.may_reply.clear()
    asked = Asked(inside(region, tensors_of(model, VIDEO, IMAGE)))
    asking = asyncio.create_task(asked.of(engine))
    await eventually(lambda: asked.is_released)
    assert len(server.read) == 2
    assert not asked.token_ids
    server.may_reply.set()
    assert len(await asking) == 2


async def test_endpoints_let_it_go_when_nobody_else_could_be_asked(
    server: StandIn, region: OwnedRegion, model: Model
) -> None:
    server.may_reply.clear()
    asked = Asked(inside(region, tensors_of(model, VIDEO)))
    async with connect_endpoints(f"vllm://{server.address}") as engines:
        engines.share(region)
        asking = asyncio.create_task(asked.of(engines))
        await eventually(lambda: asked.is_released)
        server.may_reply.set()
        assert len(await asking) == 1


async def test_a_reader_that_keeps_its_files_has_read_when_it_replies(
    engine: VllmEngine, server: StandIn, region: OwnedRegion, model: Model
) -> None:
    server.removes_links = False
    server.may_reply.clear()
    asked = Asked(inside(region, tensors_of(model, VIDEO)))
    asking = asyncio.create_task(asked.of(engine))
    await eventually(lambda: bool(server.read))
    assert (asked.is_released, len(links_of(region))) == (False, 1)
    server.may_reply.set()
    await asking
    assert (asked.is_released, links_of(region)) == (True, [])


async def test_a_prompt_that_is_left_while_it_is_read_keeps_its_memory_a_while(
    engine: VllmEngine, server: StandIn, region: OwnedRegion, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "UNCERTAIN_SECONDS", A_WHILE_SECONDS)
    server.may_read.clear()
    tensors = inside(region, tensors_of(model, VIDEO))
    asked = Asked(tensors)
    asking = asyncio.create_task(asked.of(engine))
    await eventually(server.opened.is_set)
    left_at_seconds = time.monotonic()
    asking.cancel()
    await asyncio.wait([asking])
    assert links_of(region) == []
    server.may_read.set()
    await eventually(lambda: bool(server.read))
    assert server.read == [tensors["pixel_patches"].tobytes()]
    await eventually(lambda: asked.is_released)
    assert asked.released_at_seconds >= left_at_seconds + A_WHILE_SECONDS


async def test_a_prompt_that_is_left_after_it_was_read_keeps_nothing(
    engine: VllmEngine, server: StandIn, region: OwnedRegion, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "POLL_SECONDS", 1000.0)
    server.may_reply.clear()
    asked = Asked(inside(region, tensors_of(model, VIDEO)))
    asking = asyncio.create_task(asked.of(engine))
    await eventually(lambda: bool(server.read) and not links_of(region))
    asking.cancel()
    await asyncio.wait([asking])
    assert asked.is_released


async def test_a_prompt_that_is_refused_keeps_nothing(
    engine: VllmEngine, server: StandIn, region: OwnedRegion, model: Model
) -> None:
    server.refusal = (grpc.StatusCode.INVALID_ARGUMENT, "no")
    asked = Asked(inside(region, tensors_of(model, VIDEO)))
    with pytest.raises(EngineRejected):
        await asked.of(engine)
    assert (asked.is_released, links_of(region)) == (True, [])


async def test_a_prompt_whose_server_breaks_keeps_its_memory_a_while_and_no_link(
    engine: VllmEngine, server: StandIn, region: OwnedRegion, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "UNCERTAIN_SECONDS", A_WHILE_SECONDS)
    server.refusal = (grpc.StatusCode.INTERNAL, "out of luck")
    asked = Asked(inside(region, tensors_of(model, VIDEO)))
    asked_at_seconds = time.monotonic()
    with pytest.raises(EngineFailed):
        await asked.of(engine)
    assert links_of(region) == []
    await eventually(lambda: asked.is_released)
    assert asked.released_at_seconds >= asked_at_seconds + A_WHILE_SECONDS


async def test_a_prompt_that_is_malformed_leaves_no_link(
    engine: VllmEngine, server: StandIn, region: OwnedRegion, model: Model
) -> None:
    tensors = inside(region, tensors_of(model, VIDEO, IMAGE))
    tensors["item_spans"] = tensors["item_spans"][:-1]
    asked = Asked(tensors)
    with pytest.raises(EngineRejected):
        await asked.of(engine)
    assert (asked.is_released, server.by_link) == (True, [])


async def test_closing_leaves_no_link(server: StandIn, region: OwnedRegion, model: Model) -> None:
    server.may_read.clear()
    engine = VllmEngine(server.address)
    engine.share(region)
    asking = asyncio.create_task(Asked(inside(region, tensors_of(model, VIDEO))).of(engine))
    await eventually(server.opened.is_set)
    await engine.close()
    assert links_of(region) == []
    await asyncio.wait([asking])


async def test_a_sweep_leaves_the_links_of_a_living_region(
    engine: VllmEngine, server: StandIn, region: OwnedRegion, model: Model
) -> None:
    server.may_read.clear()
    asking = asyncio.create_task(Asked(inside(region, tensors_of(model, VIDEO))).of(engine))
    await eventually(server.opened.is_set)
    [link] = links_of(region)
    remove_abandoned_regions()
    assert link.exists()
    server.may_read.set()
    assert len(await asking) == 1
