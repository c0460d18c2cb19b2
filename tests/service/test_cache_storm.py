"""A storm of requests with the same media, while workers are killed, callers leave and memory is short: no row and no file stays
leased that the cache does not hold, and every answer is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from preprocessor.client import AsyncClient, CallFailed, Credentials
from preprocessor.client import chat as chat_of
from preprocessor.client import video as video_of
from preprocessor.models.family import Model
from preprocessor.traffic.load import LEFT, Ask, Ending, Load
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.row_cache import Eviction
from tests.bench.service.asks import image_ask, video_ask
from tests.bench.service.checksum import Checksum
from tests.bench.service.load import drive
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import serving
from tests.waiting import PATIENCE_SECONDS, eventually

MIB = 1 << 20
BUDGET_BYTES = 96 * MIB
"""Of which 72 are for pixels, where one clip takes 30 and the cache at most 24."""
NAMED = moving_shapes_clip(seconds=2, width=160, height=120, options=(("crf", "1"),))


@pytest.fixture(scope="module")
def asks(model: Model) -> tuple[Ask, ...]:
    """Media that come again and again, in tensors from 0.2 to 30 MB."""
    clips = [moving_shapes_clip(seconds=2, width=320, height=240, seed=seed) for seed in range(4)]
    large = video_ask(model, "large", moving_shapes_clip(seconds=4, width=640, height=480), 6)
    some = [video_ask(model, f"clip {number}", clip, fps) for number, clip in enumerate(clips) for fps in (1, 4)]
    photos = [image_ask(model, f"photo {seed}", photo(320, 240, seed=seed)) for seed in range(3)]
    mixed = [*some, *photos, *some[:4], large] * 2
    random.Random(0).shuffle(mixed)
    return tuple(ask for ask in mixed for _ in range(3))  # so that some join what others have begun


@pytest.mark.parametrize("count", [150, pytest.param(3000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])])
async def test_nothing_stays_leased_that_the_cache_does_not_hold(
    model: Model, asks: tuple[Ask, ...], count: int
) -> None:
    async with serving(model, worker_count=2, memory_budget_bytes=BUDGET_BYTES, cache_share=0.25) as caller:
        pool = caller.server.pool
        endings: list[Ending] = []
        load = Load(
            asks,
            concurrency=8,
            count=count,
            check=Checksum,
            check_share=1,
            new_media_share=0.2,
            cancel_share=0.15,
            cancel_within_seconds=0.2,
            timeout_seconds=PATIENCE_SECONDS,
        )
        async with killing(pool, endings, every=10) as killed, naming_a_file(caller.server.address):
            await drive(caller.server.address, load, endings=endings)
        assert {end.outcome for end in endings} - {end.ask.right_outcome for end in endings} <= {LEFT, "WORKER_LOST"}
        assert len(endings) == count
        assert len(killed) > count / 40, "there was no storm"
        cache = pool.cache
        assert cache.hit_count > 0 < cache.joined_count
        assert cache.eviction_counts[Eviction.SHARE] > 0
        if count > 1000:  # whether work needs the cache's memory in a short storm depends on how fast rows are taken
            assert cache.eviction_counts[Eviction.WORK] > 0
        await eventually(lambda: not (pool.used_bytes or pool.flights or pool.pending_count or pool.running_count))
        assert pool.rows.leased_bytes == pool.rows.kept_bytes == cache.size_bytes
        assert pool.files.leased_bytes == pool.files.kept_bytes == pool.file_cache.size_bytes
        cache.clear()
        pool.file_cache.clear()
        assert (pool.rows.leased_bytes, pool.files.leased_bytes) == (0, 0)
        everything = pool.rows.lease(pool.rows.size_bytes)
        assert everything is not None, "memory is in pieces"
        everything.release()


@asynccontextmanager
async def killing(pool: WorkerPool, endings: list[Ending], *, every: int) -> AsyncIterator[list[int]]:
    """In the background, kill a worker in the middle of its task after every so many requests that have ended."""
    killed: list[int] = []

    async def kill() -> None:
        while True:
            await asyncio.sleep(random.uniform(0.0, 0.01))
            workers = [task._worker for task in pool._running if task._worker is not None]
            if workers and len(endings) >= every * (len(killed) + 1):
                random.choice(workers).kill()
                killed.append(len(endings))

    async with in_background(kill()):
        yield killed


@asynccontextmanager
async def naming_a_file(address: str) -> AsyncIterator[None]:
    """In the background, a client asks about one file again and again, which it names where the service has it."""
    prompt = chat_of([{"role": "user", "content": [video_of(NAMED, fps=4)]}])

    async def ask() -> None:
        async with AsyncClient(address, Credentials(insecure=True)) as client:
            while True:
                with contextlib.suppress(CallFailed):
                    await client.prepare(prompt, timeout_seconds=PATIENCE_SECONDS)

    async with in_background(ask()):
        yield


@asynccontextmanager
async def in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        assert not task.done(), task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
