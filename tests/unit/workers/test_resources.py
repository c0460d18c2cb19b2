"""What a request holds of the pool, and when it is released."""

from __future__ import annotations

import time

import pytest

from preprocessor.config import Limits
from preprocessor.errors import LimitExceeded, Overloaded
from preprocessor.models.family import Model
from preprocessor.types.request import ChatPrompt, Media, Modality, PreparationRequest
from preprocessor.types.timing import Timings
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.resources import RequestResources
from preprocessor.workers.upload_buffer import UploadBuffer
from tests.unit.workers.conftest import MIB, begun, open_pool, outcome, submit
from tests.unit.workers.payloads import Spin, WaitForSignal
from tests.waiting import PATIENCE_SECONDS


def resources_of(pool: WorkerPool) -> RequestResources:
    return RequestResources(pool, time.monotonic() + PATIENCE_SECONDS, Timings())


async def test_a_refused_request_is_not_counted_as_abandoned(model: Model) -> None:
    async with open_pool(model=model, memory_budget_bytes=64 * MIB) as pool:
        too_large = PreparationRequest(ChatPrompt(()), (Media("a", Modality.VIDEO, bytes(48 * MIB)),))
        with pytest.raises(LimitExceeded, match="64 MiB of memory"):
            async with resources_of(pool) as resources:
                await resources.plan(too_large, Limits())
        assert pool.counters.abandoned_counts == {"queued": 0, "running": 0}
        assert pool.pending_count == 0


async def test_abandoned_tasks_are_counted_by_the_state_they_were_in() -> None:
    async with open_pool() as pool:
        running, queued = submit(pool, Spin()), submit(pool, WaitForSignal())
        await begun(running)
        for _ in range(2):  # the second time, both are cancelled already
            pool.abandon(running)
            pool.abandon(queued)
        await outcome(running)
        pool.abandon(running)
        assert pool.counters.abandoned_counts == {"queued": 1, "running": 1}


async def test_bytes_of_an_upload_count_as_used_until_the_context_is_left(pool: WorkerPool) -> None:
    async with resources_of(pool) as resources:
        unfinished, finished = UploadBuffer(resources), UploadBuffer(resources)
        await unfinished.write(bytes(MIB))
        await finished.write(bytes(2 * MIB))
        assert pool.used_bytes == 3 * MIB
        await finished.finish()
        assert pool.used_bytes == 3 * MIB
        assert pool.files.leased_bytes == 2 * MIB
    assert pool.used_bytes == 0


async def test_a_declared_size_leases_memory_once_a_quarter_has_arrived(pool: WorkerPool) -> None:
    async with resources_of(pool) as resources:
        file = UploadBuffer(resources)
        file.announce(8 * MIB)
        await file.write(bytes(MIB))
        assert (pool.files.leased_bytes, pool.used_bytes) == (0, MIB)
        await file.write(bytes(MIB))
        assert (pool.files.leased_bytes, pool.used_bytes) == (8 * MIB, 8 * MIB)


async def test_files_larger_than_the_memory_for_files_are_refused(pool: WorkerPool) -> None:
    async with resources_of(pool) as resources:
        resources.check_memory(pool.files.size_bytes)
        with pytest.raises(Overloaded) as caught:
            resources.check_memory(pool.files.size_bytes + 1)
    assert caught.value.reason == "MEMORY_BUDGET_FULL"


async def test_retained_memory_is_released_by_its_reader(pool: WorkerPool) -> None:
    async with resources_of(pool) as resources:
        await UploadBuffer(resources).finish()
        release = resources.retain()
    assert pool.used_bytes > 0
    release()
    assert pool.used_bytes == 0
