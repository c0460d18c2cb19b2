"""Which task gets memory while there is not enough for all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from preprocessor.workers.arena import Arena
from preprocessor.workers.chunk_memory import SpareChunks
from preprocessor.workers.counters import PoolCounters
from preprocessor.workers.memory_admission import MAX_BYPASS_SECONDS, MemoryAdmission
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.ranges import Ranges
from preprocessor.workers.row_cache import RowCache
from preprocessor.workers.task import Task, TensorSlot
from tests.unit.workers.conftest import MIB, open_pool, outcome, submit
from tests.unit.workers.payloads import TellProcess
from tests.unit.workers.test_row_cache import keep, plan_of

SIZE_BYTES = 64 * MIB


@pytest.fixture
def rows() -> Iterator[Ranges]:
    arena = Arena.create(SIZE_BYTES)
    yield Ranges(arena, 0, SIZE_BYTES, 0)
    arena.close()


def task(tensor_mib: int, *, working_mib: int = 0, age_seconds: float = 0.0, timeout_seconds: float = 60.0) -> Task:
    now = time.monotonic()
    payload: Any = None
    return Task(
        payload,
        1.0,
        working_mib * MIB,
        now + timeout_seconds,
        lambda first_row, row_count: None,
        lambda size_bytes: None,
        tensor=TensorSlot(tensor_mib * MIB) if tensor_mib else None,
        queued_at_seconds=now - age_seconds,
    )


def admission_to(rows: Ranges, cache: RowCache | None = None) -> MemoryAdmission:
    return MemoryAdmission(rows, SpareChunks(1), PoolCounters(rows, rows), cache or RowCache(rows, 0))


def waited(tensor_mib: int, **more: int) -> Task:
    return task(tensor_mib, age_seconds=2 * MAX_BYPASS_SECONDS, **more)


async def test_a_task_that_fits_is_admitted_and_its_tensor_leased(rows: Ranges) -> None:
    one = task(40)
    assert admission_to(rows).try_admit(one)
    assert one.tensor is not None
    assert one.tensor.lease is not None


async def test_a_large_task_may_be_bypassed_for_a_while(rows: Ranges) -> None:
    admission, held = admission_to(rows), rows.lease(30 * MIB)
    assert held is not None
    assert not admission.try_admit(task(40))
    assert admission.try_admit(task(20)), "memory is not reserved for a task that has just arrived"


async def test_memory_is_reserved_for_a_large_task_that_has_waited(rows: Ranges) -> None:
    admission, held = admission_to(rows), rows.lease(30 * MIB)
    assert held is not None
    large = waited(40)
    assert not admission.try_admit(large)
    assert not admission.try_admit(task(20)), "it would fit, but the large task would wait on"
    held.release()
    assert not admission.try_admit(task(20)), "nor is it admitted when memory is released"
    assert admission.try_admit(large)
    assert admission.try_admit(task(20))


async def test_small_tasks_bypass_within_an_allowance(rows: Ranges) -> None:
    admission, held = admission_to(rows), rows.lease(30 * MIB)
    assert held is not None
    assert not admission.try_admit(waited(40))
    assert admission.try_admit(task(0, working_mib=2)), "a plan needs no tensor"
    photos = [task(2) for _ in range(3)]
    assert [admission.try_admit(photo) for photo in photos] == [True, True, True]
    assert not admission.try_admit(task(2)), "bypassing tasks hold at most an eighth of memory"
    assert photos[0].tensor is not None
    assert photos[0].tensor.lease is not None
    photos[0].finish("done")
    assert not admission.try_admit(task(2)), "its caller has not read it yet"
    photos[0].tensor.lease.release()
    assert admission.try_admit(task(2))


@pytest.mark.parametrize("large_mib", [40, 55, 60, 63])
async def test_endless_small_tasks_do_not_starve_a_large_one(rows: Ranges, large_mib: int) -> None:
    admission, held = admission_to(rows), rows.lease(30 * MIB)
    assert held is not None
    large = waited(large_mib)
    bypassing: list[Task] = []
    for turn in range(40):
        if admission.try_admit(large):
            break
        if turn == 20:
            held.release()
        fresh = task(1)
        if admission.try_admit(fresh):
            bypassing.append(fresh)
        if len(bypassing) > 4:
            oldest = bypassing.pop(0)
            oldest.finish("done")
            assert oldest.tensor is not None
            assert oldest.tensor.lease is not None
            oldest.tensor.lease.release()
    assert large.tensor is not None
    assert large.tensor.lease is not None
    assert turn < 39


async def test_nothing_bypasses_a_task_that_needs_all_memory(rows: Ranges) -> None:
    admission, held = admission_to(rows), rows.lease(2 * MIB)
    assert held is not None
    assert not admission.try_admit(waited(64))
    assert not admission.try_admit(task(1))


async def test_memory_is_not_reserved_for_a_task_that_is_done(rows: Ranges) -> None:
    admission, held = admission_to(rows), rows.lease(30 * MIB)
    assert held is not None
    large = waited(40)
    assert not admission.try_admit(large)
    large.finish(None)
    assert admission.try_admit(task(20))


async def test_a_task_past_its_deadline_leaves_its_queue(rows: Ranges) -> None:
    admission, held = admission_to(rows), rows.lease(60 * MIB)
    assert held is not None
    assert admission.try_admit(task(40, timeout_seconds=-1.0))


async def test_in_a_pool_small_tasks_bypass_one_that_waits_for_a_slow_reader() -> None:
    async with open_pool(memory_budget_bytes=256 * MIB) as pool:
        unread = pool.rows.lease(100 * MIB)
        assert unread is not None
        large = submit(pool, TellProcess(), tensor_bytes=120 * MIB)
        large.queued_at_seconds -= 2 * MAX_BYPASS_SECONDS
        assert await runs_small_task(pool)
        assert not large.done.done()
        medium = submit(pool, TellProcess(), tensor_bytes=60 * MIB)
        assert await runs_small_task(pool)
        assert not medium.done.done()
        unread.release()
        pool.released()
        assert await outcome(large) > 0
        assert await outcome(medium) > 0
        assert large.started_at_seconds < medium.started_at_seconds


async def runs_small_task(pool: WorkerPool) -> bool:
    """Whether a task of the size of a photo is run now."""
    return await outcome(submit(pool, TellProcess(), tensor_bytes=4 * MIB)) > 0


async def test_cached_rows_give_way_to_a_task_and_no_more_than_it_needs(rows: Ranges) -> None:
    cache = RowCache(rows, SIZE_BYTES)
    for name in ("first", "second", "third"):
        keep(cache, rows, plan_of((name, 20)), seconds=1)
    admission = admission_to(rows, cache)
    assert admission.free_bytes == SIZE_BYTES
    one = task(20, working_mib=10)
    assert admission.try_admit(one)
    assert (one.tensor is not None and one.tensor.lease is not None, len(cache)) == (True, 1)


async def test_rows_that_a_request_reads_do_not_give_way(rows: Ranges) -> None:
    cache = RowCache(rows, SIZE_BYTES)
    keep(cache, rows, plan_of(("read", 40)))
    reading = cache.find("", plan_of(("read", 40)))[0].share_lease()
    admission = admission_to(rows, cache)
    assert admission.free_bytes == 24 * MIB
    assert not admission.try_admit(task(30))
    reading.release()
    assert admission.try_admit(task(30))
