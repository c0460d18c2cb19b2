"""Pixels that vLLM reads in shared memory: who reads what, and what those get who cannot."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from engine_client import (
    EngineOptions,
    EngineUnavailable,
    OwnedRegion,
    Transport,
    connect_endpoints,
)
from engine_client.vllm import VllmEngine, links
from preprocessor import pipeline
from preprocessor.cli.doctor.engine import check_engines
from preprocessor.cli.doctor.finding import Verdict
from preprocessor.client import AsyncClient, CallFailed
from preprocessor.client import chat as client_chat
from preprocessor.client import video as client_video
from preprocessor.config import EngineSettings
from preprocessor.models.family import Model
from preprocessor.types.request import ChatPrompt, Media, MediaPart, Message, Modality, PreparationRequest
from tests.bench.service.watched import WatchedServer, entered
from tests.engine.vllm_links.conftest import (
    CLIP,
    IMAGE,
    PHOTO,
    VIDEO,
    Asked,
    checksum,
    inside,
    links_of,
    said,
    tensors_of,
)
from tests.engine.vllm_stand_in import StandIn, serving_stand_in
from tests.service.conftest import chat, image, serving, video
from tests.waiting import eventually, has_ended

# -- what is read ------------------------------------------------------------------------------------------------------


async def test_pixels_in_the_region_are_read_there(
    engine: VllmEngine, server: StandIn, region: OwnedRegion, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tensors = tensors_of(model, VIDEO)
    for _ in range(2):
        asked = Asked(inside(region, tensors))
        assert await asked.of(engine) == [checksum(tensors["pixel_patches"])]
        assert asked.is_released
    assert server.by_link == [True, True]
    assert ["by shared memory" in line for line in said(caplog)] == [True]
    assert await engine.choose_transport() is Transport.SHARED_MEMORY


@pytest.mark.parametrize(
    ("media", "by_link"),
    [
        ((VIDEO, IMAGE, IMAGE), [True, True]),
        ((IMAGE, IMAGE, VIDEO), [True, True]),
        ((IMAGE, VIDEO, IMAGE), [True, False]),
        ((IMAGE, VIDEO, IMAGE, VIDEO), [False, False]),
    ],
    ids=["video first", "images first", "images around", "interleaved"],
)
async def test_each_modality_has_a_range_where_its_items_lie_together_and_is_sent_where_they_do_not(
    engine: VllmEngine,
    server: StandIn,
    region: OwnedRegion,
    model: Model,
    media: tuple[Media, ...],
    by_link: list[bool],
) -> None:
    tensors = tensors_of(model, *media)
    starts = np.concatenate([[0], tensors["grid_thw"].prod(axis=1).cumsum()])
    rows = [tensors["pixel_patches"][start:stop] for start, stop in itertools.pairwise(starts)]
    expected = [
        checksum(np.concatenate([rows[item] for item, each in enumerate(media) if each.modality is modality]))
        for modality in (Modality.VIDEO, Modality.IMAGE)
    ]
    assert await Asked(inside(region, tensors)).of(engine) == expected
    assert server.by_link == by_link


async def test_pixels_elsewhere_are_sent(engine: VllmEngine, server: StandIn, model: Model) -> None:
    tensors = tensors_of(model, VIDEO)
    asked = Asked(tensors)
    assert await asked.of(engine) == [checksum(tensors["pixel_patches"])]
    assert (asked.is_released, server.by_link) == (True, [False])


# -- who cannot read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"namespace": "another-boot:7"}, "another-boot:7"),
        ({"namespace": ""}, "unknown"),
        ({"normalizes": False}, "normalized floats"),
    ],
    ids=["another", "unknown", "floats"],
)
async def test_a_server_that_cannot_read_the_region_gets_bytes_or_nothing(
    region: OwnedRegion, model: Model, change: Mapping[str, object], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tensors = inside(region, tensors_of(model, VIDEO))
    async with serving_stand_in(lambda made: made.__dict__.update(change)) as server:
        async with VllmEngine(server.address) as engine:
            engine.share(region)
            for _ in range(2):
                await Asked(tensors).of(engine)
            assert await engine.choose_transport() is Transport.GRPC
            [line] = said(caplog)
            assert reason in line
        async with VllmEngine(server.address) as engine:
            engine.share(region, is_required=True)
            asked = Asked(tensors)
            with pytest.raises(EngineUnavailable, match=reason):
                await asked.of(engine)
            assert asked.is_released
            with pytest.raises(EngineUnavailable, match=reason):
                await engine.choose_transport()
    assert server.by_link == [False, False]


@pytest.mark.parametrize("step", ["open_error", "remove_error"])
async def test_a_server_of_another_user_gets_bytes_at_once_and_is_tried_again_later(
    engine: VllmEngine,
    server: StandIn,
    region: OwnedRegion,
    model: Model,
    step: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setattr(server, step, PermissionError(errno.EACCES, "Permission denied"))
    tensors = inside(region, tensors_of(model, VIDEO))
    for _ in range(2):
        asked = Asked(tensors)
        assert await asked.of(engine) == [checksum(tensors["pixel_patches"])]
        assert asked.is_released
        assert links_of(region) == []
    assert server.by_link == [True, False, False]
    [line] = said(caplog)
    assert "Permission denied" in line
    setattr(server, step, None)
    monkeypatch.setattr(links, "RECHECK_SECONDS", 0.0)
    assert engine._links is not None
    engine._links.refuse("soon forgotten")
    await Asked(tensors).of(engine)
    assert server.by_link[3:] == [True]


async def test_a_server_of_another_user_is_unavailable_where_shared_memory_is_required(
    server: StandIn, region: OwnedRegion, model: Model
) -> None:
    server.open_error = PermissionError(errno.EACCES, "Permission denied")
    async with VllmEngine(server.address) as engine:
        engine.share(region, is_required=True)
        asked = Asked(inside(region, tensors_of(model, VIDEO)))
        with pytest.raises(EngineUnavailable, match=r"cannot read OwnedRegion.*Permission denied"):
            await asked.of(engine)
        assert asked.is_released


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EPERM, errno.EACCES, errno.EMLINK])
async def test_where_no_link_can_be_made_bytes_are_sent_and_it_is_said_once(
    engine: VllmEngine,
    server: StandIn,
    region: OwnedRegion,
    model: Model,
    number: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_link, made = os.link, 0

    def refuse_second(source: Path, path: Path) -> None:
        nonlocal made
        made += 1
        if made > 1:
            raise OSError(number, os.strerror(number), path)
        make_link(source, path)

    monkeypatch.setattr(os, "link", refuse_second)
    tensors = inside(region, tensors_of(model, VIDEO, IMAGE))
    for _ in range(2):
        asked = Asked(tensors)
        await asked.of(engine)
        assert asked.is_released
        assert links_of(region) == []
    assert (made, server.by_link) == (2, [False] * 4)
    [line] = said(caplog)
    assert os.strerror(number) in line


async def test_of_two_servers_only_that_which_sees_the_region_reads_there(region: OwnedRegion, model: Model) -> None:
    tensors = inside(region, tensors_of(model, VIDEO))

    def move(made: StandIn) -> None:
        made.namespace = "another-boot:7"

    async with serving_stand_in() as near, serving_stand_in(move) as far:
        addresses = [f"vllm://{server.address}" for server in (near, far)]
        async with connect_endpoints(addresses, EngineOptions()) as engines:
            engines.share(region)
            while not (near.read and far.read):
                assert await Asked(tensors).of(engines) == [checksum(tensors["pixel_patches"])]
    assert (set(near.by_link), set(far.by_link)) == ({True}, {False})


# -- the service -------------------------------------------------------------------------------------------------------


async def test_the_service_has_its_pixels_read_where_a_worker_wrote_them(model: Model, server: StandIn) -> None:
    settings = EngineSettings(address=f"vllm://{server.address}", transport="shared-memory")
    async with serving(model, engine_settings=settings, memory_budget_bytes=256 << 20) as caller:
        assert caller.server._region is not None
        region = caller.server._region
        await asyncio.gather(
            *(caller.generate(chat(video("v", CLIP), image("i", PHOTO)), max_tokens=4) for _ in range(6))
        )
        assert server.by_link == [True] * 12
        server.may_reply.clear()
        asking = asyncio.create_task(caller.generate(chat(video("v", CLIP)), max_tokens=4))
        await eventually(lambda: len(server.read) == 13)
        await eventually(lambda: not caller.server.pool.used_bytes)  # though the prompt has no token yet
        server.may_reply.set()
        await asking
        assert links_of(region) == []
    expected = pipeline.prepare(
        model,
        PreparationRequest(ChatPrompt((Message("user", (MediaPart("v"),)),)), (Media("v", Modality.VIDEO, CLIP),)),
    )
    assert server.read[-1] == expected.tensors["pixel_patches"].tobytes()


async def test_what_a_killed_service_left_goes_when_the_next_one_starts(server: StandIn) -> None:
    server.may_read.clear()
    options = ("--engine", f"vllm://{server.address}", "--engine-transport", "shared-memory", "--workers", "1")
    async with entered(WatchedServer(*options, "--memory-budget", "64MiB", is_warm=True)) as service:
        async with AsyncClient(service.address, retry_seconds=0) as client:

            async def ask() -> None:
                async with client.generate(client_chat([{"role": "user", "content": [client_video(CLIP)]}])) as reply:
                    await reply.read()

            asking = asyncio.create_task(ask())
            await eventually(server.opened.is_set)
            [region] = service.regions()
            [link] = region.parent.glob(f"{region.name}-*")
            tree = service.tree()
            service.process.kill()
            service.wait()
            await eventually(lambda: all(map(has_ended, tree)))
            with pytest.raises(CallFailed):
                await asking
        # They may be gone already: any service that starts on this machine removes them, those of other tests too.
        async with entered(WatchedServer(*options, "--memory-budget", "64MiB", is_warm=True)):
            assert not region.exists()
            assert not link.exists()


@pytest.mark.parametrize(
    ("namespace", "transport", "verdict", "found"),
    [
        (None, "auto", Verdict.OK, "tensors go by shared-memory"),
        ("another-boot:7", "auto", Verdict.WARNING, "another-boot:7"),
        ("another-boot:7", "shared-memory", Verdict.FAILED, "another-boot:7"),
        ("another-boot:7", "grpc", Verdict.OK, "tensors go by grpc"),
    ],
)
async def test_doctor_says_how_tensors_go(
    server: StandIn, namespace: str | None, transport: str, verdict: Verdict, found: str
) -> None:
    server.namespace = server.namespace if namespace is None else namespace
    settings = EngineSettings(address=f"vllm://{server.address}", transport=transport)
    findings = {finding.name: finding for finding in await check_engines(settings, None, 1 << 20)}
    assert findings["engine transport"].verdict is verdict
    assert found in findings["engine transport"].found
