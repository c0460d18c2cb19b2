"""A worker sees the memory of its own task: not that of other tasks, other workers or other callers, now or later."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from engine_client import OwnedRegion
from preprocessor.errors import WorkerLost
from preprocessor.service.engine import arena_in
from preprocessor.workers.arena import Arena
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.ranges import Lease
from tests.escape.memory_attempts import Fill, Keep, MemoryTaken, Read, ReadKept, SetFlag, Write
from tests.unit.workers.conftest import MIB, let_go, open_pool, outcome, submit
from tests.unit.workers.payloads import WaitForSignal
from tests.waiting import eventually

SECRET = 7
BUDGET_BYTES = 64 * MIB


@pytest_asyncio.fixture(scope="module", params=["alone", "with an engine that reads"])
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[WorkerPool]:
    with contextlib.ExitStack() as stack:
        arena = None
        if request.param != "alone":
            region = stack.enter_context(OwnedRegion.create(Arena.file_bytes(BUDGET_BYTES)))
            arena = arena_in(region, BUDGET_BYTES)
        async with open_pool(model=MemoryTaken(), worker_count=2, arena=arena) as pool:
            yield pool


@pytest.fixture
async def pool(shared: WorkerPool) -> AsyncIterator[WorkerPool]:
    yield shared
    await eventually(lambda: shared.worker_set.is_whole)
    assert shared.rows.leased_bytes == 0


def lease_of(pool: WorkerPool, size_bytes: int = MIB) -> Lease:
    lease = pool.rows.lease(size_bytes)
    assert lease is not None
    return lease


def span(lease: Lease) -> tuple[int, int]:
    return lease.offset, lease.offset + lease.size_bytes


async def filled(pool: WorkerPool, lease: Lease, scope: str = "", value: int = SECRET) -> int:
    """Have a task fill a range; returns the worker's process id."""
    process = await outcome(submit(pool, Fill(*span(lease), value), scope=scope))
    assert isinstance(process, int), process
    assert (np.frombuffer(pool.arena.view(lease.offset, lease.size_bytes), np.uint8) == value).all()
    return process


@pytest.mark.parametrize("attempt", [Read, Write])
@pytest.mark.parametrize("scope", ["", "another"])
async def test_memory_of_another_task_cannot_be_reached(pool: WorkerPool, attempt: type[Read], scope: str) -> None:
    theirs, own = lease_of(pool), lease_of(pool)
    await filled(pool, theirs)
    error = await outcome(submit(pool, attempt(*span(own), theirs.offset), scope=scope))
    assert isinstance(error, WorkerLost), error
    assert set(pool.arena.view(theirs.offset, theirs.size_bytes)) == {SECRET}
    theirs.release()
    own.release()


async def test_files_of_requests_cannot_be_reached(pool: WorkerPool) -> None:
    file, own = pool.files.lease(MIB), lease_of(pool)
    assert file is not None
    pool.arena.write(file.offset, b"secret")
    assert isinstance(await outcome(submit(pool, Read(*span(own), file.offset))), WorkerLost)
    file.release()
    own.release()


async def test_a_worker_has_not_the_memory_of_the_task_that_it_ran_before(pool: WorkerPool) -> None:
    before, own = lease_of(pool), lease_of(pool)
    await filled(pool, before, scope="one")
    lost = await outcome(submit(pool, Read(0, 0, before.offset), scope="one"))
    assert isinstance(lost, WorkerLost), "it is somebody's still"
    before.release()
    found = await outcome(submit(pool, Read(*span(own), own.offset), scope="one"))
    assert found == 0 or (pool.arena.is_named and found == SECRET), "no more than its own caller has left"
    own.release()


async def test_memory_that_a_worker_has_is_not_given_to_another_one_while_it_runs(pool: WorkerPool) -> None:
    lease = lease_of(pool)
    process = await filled(pool, lease)
    lease.release()
    holder = submit(pool, WaitForSignal())  # has kept that memory, which is free
    await eventually(lambda: bool(holder.told))
    assert holder.told == [process]
    again = lease_of(pool)
    assert again.offset == lease.offset
    found = await outcome(submit(pool, Read(*span(again), again.offset)))
    assert found == 0 or (pool.arena.is_named and found == SECRET), "it is new memory, or its own caller's, unmapped"
    await let_go(holder)
    again.release()


async def test_another_caller_finds_nothing_of_what_was_there(pool: WorkerPool) -> None:
    lease = lease_of(pool)
    await filled(pool, lease, scope="a")
    lease.release()
    again = lease_of(pool)
    assert again.offset == lease.offset
    assert await outcome(submit(pool, Read(*span(again), again.offset), scope="b")) == 0
    again.release()


async def test_what_a_worker_has_kept_is_gone_when_another_caller_gets_the_memory(pool: WorkerPool) -> None:
    lease = lease_of(pool)
    assert await outcome(submit(pool, Keep(*span(lease)), scope="a")) == 1
    lease.release()
    again = lease_of(pool)
    assert again.offset == lease.offset
    await filled(pool, again, scope="b")
    task = submit(pool, ReadKept(), scope="a")
    found = await outcome(task)
    if pool.arena.is_named:
        assert found == 1, "it has its own caller's memory still, which the other one did not get"
    else:
        assert isinstance(found, Exception), "the process has no memory there"
    assert task.told
    again.release()


async def test_a_worker_cannot_set_a_stop_flag(pool: WorkerPool) -> None:
    assert await outcome(submit(pool, SetFlag())) == "Permission denied"


async def test_parts_of_one_tensor_may_share_a_chunk(pool: WorkerPool) -> None:
    lease = lease_of(pool)
    middle = lease.offset + lease.size_bytes // 4
    assert isinstance(await outcome(submit(pool, Fill(lease.offset, middle, 1))), int)
    assert isinstance(await outcome(submit(pool, Fill(middle, lease.offset + lease.size_bytes, 2))), int)
    array = np.frombuffer(pool.arena.view(lease.offset, lease.size_bytes), np.uint8)
    assert (array[: lease.size_bytes // 4] == 1).all() and (array[lease.size_bytes // 4 :] == 2).all()
    lease.release()
