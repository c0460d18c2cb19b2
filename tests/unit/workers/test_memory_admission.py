"""Who gets memory while there is not enough for all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from preprocessor.workers.arena import Arena, Ranges
from preprocessor.workers.memory_admission import PASSED_OVER_SECONDS, MemoryAdmission
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.task import Task, TensorSlot
from tests.unit.workers.conftest import MIB, open_pool, outcome, submit
from tests.unit.workers.payloads import TellProcess

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


def waited(tensor_mib: int, **more: int) -> Task:
    return task(tensor_mib, age_seconds=2 * PASSED_OVER_SECONDS, **more)


async def test_what_fits_starts_and_has_its_place(rows: Ranges) -> None:
    one = task(40)
    assert MemoryAdmission(rows).may_start(one)
    assert one.tensor is not None
    assert one.tensor.lease is not None


async def test_large_work_lets_others_by_for_a_while(rows: Ranges) -> None:
    admission, held = MemoryAdmission(rows), rows.lease(30 * MIB)
    assert held is not None
    assert not admission.may_start(task(40))
    assert admission.may_start(task(20)), "memory is not kept for work that has just come"


async def test_memory_is_kept_for_large_work_that_has_waited(rows: Ranges) -> None:
    admission, held = MemoryAdmission(rows), rows.lease(30 * MIB)
    assert held is not None
    large = waited(40)
    assert not admission.may_start(large)
    assert not admission.may_start(task(20)), "it would fit, and the large work would wait on"
    held.release()
    assert not admission.may_start(task(20)), "nor does it slip in when memory comes free"
    assert admission.may_start(large)
    assert admission.may_start(task(20))


async def test_small_work_passes_within_an_allowance(rows: Ranges) -> None:
    admission, held = MemoryAdmission(rows), rows.lease(30 * MIB)
    assert held is not None
    assert not admission.may_start(waited(40))
    assert admission.may_start(task(0, working_mib=2)), "a plan needs no tensor"
    photos = [task(2) for _ in range(3)]
    assert [admission.may_start(photo) for photo in photos] == [True, True, True]
    assert not admission.may_start(task(2)), "an eighth of memory is all that may pass"
    assert photos[0].tensor is not None
    assert photos[0].tensor.lease is not None
    photos[0].settle("done")
    assert not admission.may_start(task(2)), "its caller has not read it yet"
    photos[0].tensor.lease.release()
    assert admission.may_start(task(2))


@pytest.mark.parametrize("large_mib", [40, 55, 60, 63])
async def test_an_endless_row_of_small_work_does_not_starve_the_large(rows: Ranges, large_mib: int) -> None:
    admission, held = MemoryAdmission(rows), rows.lease(30 * MIB)
    assert held is not None
    large = waited(large_mib)
    passing: list[Task] = []
    for turn in range(40):
        if admission.may_start(large):
            break
        if turn == 20:
            held.release()
        fresh = task(1)
        if admission.may_start(fresh):
            passing.append(fresh)
        if len(passing) > 4:
            oldest = passing.pop(0)
            oldest.settle("done")
            assert oldest.tensor is not None
            assert oldest.tensor.lease is not None
            oldest.tensor.lease.release()
    assert large.tensor is not None
    assert large.tensor.lease is not None
    assert turn < 39


async def test_nothing_passes_work_that_needs_all_there_is(rows: Ranges) -> None:
    admission, held = MemoryAdmission(rows), rows.lease(2 * MIB)
    assert held is not None
    assert not admission.may_start(waited(64))
    assert not admission.may_start(task(1))


async def test_memory_is_not_kept_for_work_that_nobody_waits_for_any_more(rows: Ranges) -> None:
    admission, held = MemoryAdmission(rows), rows.lease(30 * MIB)
    assert held is not None
    large = waited(40)
    assert not admission.may_start(large)
    large.settle(None)
    assert admission.may_start(task(20))


async def test_work_whose_time_is_over_is_taken_out_of_its_queue(rows: Ranges) -> None:
    admission, held = MemoryAdmission(rows), rows.lease(60 * MIB)
    assert held is not None
    assert admission.may_start(task(40, timeout_seconds=-1.0))


async def test_in_a_pool_small_work_passes_what_waits_for_a_slow_reader() -> None:
    async with open_pool(memory_budget_bytes=256 * MIB) as pool:
        unread = pool.rows.lease(100 * MIB)
        assert unread is not None
        large = submit(pool, TellProcess(), tensor_bytes=120 * MIB)
        large.queued_at_seconds -= 2 * PASSED_OVER_SECONDS
        assert await passes(pool)
        assert not large.done.done()
        medium = submit(pool, TellProcess(), tensor_bytes=60 * MIB)
        assert await passes(pool)
        assert not medium.done.done()
        unread.release()
        pool.released()
        assert await outcome(large) > 0
        assert await outcome(medium) > 0
        assert large.started_at_seconds < medium.started_at_seconds


async def passes(pool: WorkerPool) -> bool:
    """Whether a photo's worth of work is done now."""
    return await outcome(submit(pool, TellProcess(), tensor_bytes=4 * MIB)) > 0
