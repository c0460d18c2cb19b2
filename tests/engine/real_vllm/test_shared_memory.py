"""A real vLLM reads pixels in shared memory: its answers are the same, and no link is left, whoever leaves or is killed."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from engine_client import (
    EngineRejected,
    EngineRequest,
    EngineUnavailable,
    OwnedRegion,
    SamplingParameters,
)
from engine_client.contract.tensors import Array
from engine_client.types import FinishReason
from engine_client.vllm import VllmEngine
from preprocessor.client import AsyncClient, chat, image, video
from preprocessor.config import EngineSettings
from preprocessor.models.family import Model
from tests.bench.service.watched import WatchedServer
from tests.engine.real_vllm.conftest import MARKS
from tests.engine.vllm_prompts import (
    CLIP,
    KINDS,
    PHOTO,
    TOKEN_COUNT,
    answer,
    tensors_of,
)
from tests.engine.vllm_server import SharedVllm
from tests.service.conftest import serving
from tests.waiting import eventually

pytestmark = MARKS


@pytest.fixture
def region() -> Iterator[OwnedRegion]:
    with OwnedRegion.create(64 << 20) as made:
        yield made
        assert names_of(made) == [made.key[1:]], "a link is left"


@pytest_asyncio.fixture
async def sharing_engine(address: str, region: OwnedRegion) -> AsyncIterator[VllmEngine]:
    """One that reads `region`, or fails."""
    async with VllmEngine(address) as client:
        client.share(region, is_required=True)
        yield client


def names_of(region: OwnedRegion) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"{region.key[1:]}*")]


def inside(region: OwnedRegion, tensors: Mapping[str, Array], start: int = 8192) -> dict[str, Array]:
    """The same, with the pixels in the region, and with hashes of which the engine has nothing yet."""
    made = {**tensors, "item_hash": np.frombuffer(os.urandom(tensors["item_hash"].nbytes), tensors["item_hash"].dtype)}
    made["item_hash"] = made["item_hash"].reshape(tensors["item_hash"].shape)
    pixels = tensors["pixel_patches"]
    made["pixel_patches"] = np.frombuffer(region.buffer, np.uint8, pixels.size, start).reshape(pixels.shape)
    made["pixel_patches"][:] = pixels
    return made


@pytest.mark.parametrize("kind", [kind for kind, media in KINDS.items() if media])
async def test_tokens_are_the_same_by_shared_memory(
    kind: str, sharing_engine: VllmEngine, region: OwnedRegion, tiny: Model, expected: Mapping[str, list[int]]
) -> None:
    token_ids, reason = await answer(sharing_engine, inside(region, tensors_of(tiny, KINDS[kind])))
    assert (token_ids, reason) == (expected[kind], FinishReason.LENGTH)


async def test_prompts_left_at_any_time_leave_no_link_and_no_wrong_pixels(
    sharing_engine: VllmEngine, region: OwnedRegion, tiny: Model, expected: Mapping[str, list[int]]
) -> None:
    chance = random.Random(22)
    tensors = tensors_of(tiny, KINDS["video and image"])
    released = asked = 0

    def release() -> None:
        nonlocal released
        released += 1

    async def leave(number: int) -> None:
        placed = inside(region, tensors, start=8192 + number * (4 << 20))
        request = EngineRequest(f"left-{number}", placed, SamplingParameters(max_tokens=200), on_released=release)
        with suppress(TimeoutError):
            async with asyncio.timeout(chance.uniform(0, 0.3)), aclosing(sharing_engine.generate(request)) as steps:
                async for _ in steps:
                    pass

    for _ in range(5):
        await asyncio.gather(*(leave(number) for number in range(8)))
        asked += 8
        assert names_of(region) == [region.key[1:]]
    await eventually(lambda: released == asked)
    token_ids, _ = await answer(sharing_engine, inside(region, tensors))
    assert token_ids == expected["video and image"]


async def test_a_prompt_that_the_server_refuses_leaves_no_link(
    sharing_engine: VllmEngine, region: OwnedRegion, tiny: Model
) -> None:
    tensors = inside(region, tensors_of(tiny, KINDS["video"]))
    with pytest.raises(EngineRejected):
        await answer(sharing_engine, tensors, temperature=3.0)  # vLLM takes 2 at most
    assert names_of(region) == [region.key[1:]]


async def test_a_link_that_the_server_does_not_read_is_replaced_by_bytes(
    address: str, region: OwnedRegion, tiny: Model, expected: Mapping[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", os.symlink)  # it follows none
    async with VllmEngine(address) as engine:
        engine.share(region)
        token_ids, _ = await answer(engine, inside(region, tensors_of(tiny, KINDS["video and image"])))
    assert token_ids == expected["video and image"]


async def test_the_service_s_pixels_are_read_where_workers_wrote_them(
    address: str, tiny: Model, expected: Mapping[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    make_link = os.link

    def link(source: Path, path: Path) -> None:
        made.append(path)
        make_link(source, path)

    monkeypatch.setattr(os, "link", link)
    settings = EngineSettings(address=f"vllm://{address}", transport="shared-memory")
    async with (
        serving(tiny, engine_settings=settings) as caller,
        AsyncClient(caller.server.address) as client,
    ):
        content = [video(CLIP, fps=2), image(PHOTO), "What is this?"]
        prompt = chat([{"role": "user", "content": content}])
        for _ in range(3):
            async with client.generate(prompt, max_tokens=TOKEN_COUNT) as reply:
                await reply.read()
            assert list(reply.token_ids) == expected["video and image"]
        await eventually(lambda: not caller.server.pool.used_bytes)
    assert len(made) == 6
    assert not [path for path in made if path.exists()]


async def test_a_killed_service_leaves_nothing_after_the_next_start(address: str, checkpoint: Path) -> None:
    engine = ("--engine", f"vllm://{address}", "--engine-transport", "shared-memory")
    options = ("--model", str(checkpoint), *engine, "--workers", "1", "--memory-budget", "256MiB")
    prompt = chat([{"role": "user", "content": [video(CLIP, fps=2)]}])

    async def ask(client: AsyncClient) -> list[int]:
        async with client.generate(prompt, max_tokens=TOKEN_COUNT) as reply:
            await reply.read()
        return list(reply.token_ids)

    with WatchedServer(*options) as service:
        async with AsyncClient(service.address, retry_seconds=0) as client:
            token_ids = await ask(client)
            [region] = service.regions()
            asking = [asyncio.create_task(ask(client)) for _ in range(8)]
            await asyncio.sleep(0.2)  # some are read then, some are not
            service.process.kill()
            service.wait()
            await asyncio.wait(asking)
    with WatchedServer(*options) as service:
        assert list(region.parent.glob(f"{region.name}*")) == []
        async with AsyncClient(service.address, retry_seconds=0) as client:
            assert await ask(client) == token_ids


async def test_a_killed_server_leaves_no_link(
    vllm: SharedVllm, checkpoint: Path, region: OwnedRegion, tiny: Model
) -> None:
    released: list[int] = []
    started: set[int] = set()
    tensors = inside(region, tensors_of(tiny, KINDS["video"]))

    async def ask(engine: VllmEngine, number: int) -> None:
        request = EngineRequest(
            f"r{number}", tensors, SamplingParameters(max_tokens=4000), on_released=lambda: released.append(number)
        )
        async for _ in engine.generate(request):
            started.add(number)

    doomed = vllm.serving(checkpoint)
    async with VllmEngine(doomed.address) as engine:
        engine.share(region, is_required=True)
        asking = [asyncio.create_task(ask(engine, number)) for number in range(4)]
        await eventually(lambda: len(started) == 4)
        asking += [asyncio.create_task(ask(engine, number)) for number in range(4, 8)]
        await asyncio.sleep(0.05)  # some are read then, some are not
        doomed.kill()
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {EngineUnavailable}
        assert names_of(region) == [region.key[1:]]
        await eventually(lambda: len(released) == 8)
