"""What the pool does when workers die, hang, run out of memory or send malformed messages. The workers are real processes."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import signal
from typing import Any

import numpy as np
import psutil
import pytest

from preprocessor.errors import Cancelled, DeadlineExceeded, LimitExceeded, Overloaded, WorkerLost
from preprocessor.workers import region_copy
from preprocessor.workers.arena import Arena
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.process import ProcessWorker
from preprocessor.workers.ranges import Lease
from preprocessor.workers.task import SHORT_SECONDS, Lane, Task, Worker
from preprocessor.workers.thread import ThreadWorker
from tests.unit.workers.conftest import MIB, WatchedPool, begun, let_go, open_pool, outcome, resident_bytes, submit
from tests.unit.workers.payloads import (
    HELD,
    Babble,
    Die,
    Fail,
    MakeArray,
    ReadNothing,
    Spin,
    TakeMemory,
    TellLimits,
    TellProcess,
    Unsendable,
    UseMemory,
    WaitForSignal,
    WaitWhileHeld,
)
from tests.waiting import GROWING_SECONDS, eventually, has_ended

LONG = SHORT_SECONDS * 2


async def process_of(pool: WorkerPool, **options: Any) -> int:
    answer: int = await outcome(submit(pool, TellProcess(), **options))
    return answer


# -- death -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [-signal.SIGKILL, -signal.SIGSEGV, -signal.SIGABRT, 3, 0])
async def test_a_task_that_kills_two_workers_is_not_tried_again(pool: WatchedPool, code: int) -> None:
    task = submit(pool, Die(code))
    error = await outcome(task)
    assert isinstance(error, WorkerLost)
    assert error.reason == "WORKER_LOST"
    assert len(set(task.told)) == len(task.told) == 2
    await eventually(lambda: pool.worker_set.is_whole)
    assert await process_of(pool) > 0
    assert pool.ends == ["lost", "lost"]


async def test_a_task_whose_worker_died_once_is_run_by_another(pool: WorkerPool) -> None:
    task = submit(pool, Die(-signal.SIGKILL), then=TellProcess())
    assert await outcome(task) not in (task.told[0], None)
    assert task.start_count == 2


async def test_a_crash_in_native_code_fails_only_its_own_request() -> None:
    async with open_pool(worker_count=2) as pool:
        bystander = submit(pool, WaitForSignal())
        await begun(bystander)
        assert isinstance(await outcome(submit(pool, ReadNothing())), WorkerLost)
        await let_go(bystander)
        assert bystander.start_count == 1


async def test_an_idle_worker_that_dies_is_replaced(pool: WatchedPool) -> None:
    before = await process_of(pool)
    os.kill(before, signal.SIGKILL)
    await eventually(lambda: pool.ends == ["lost"] and pool.worker_set.is_whole)
    assert await process_of(pool) != before


async def test_a_pool_replaces_its_fork_server(pool: WorkerPool) -> None:
    task = submit(pool, WaitForSignal())
    worker = psutil.Process(await begun(task))
    worker.parent().kill()
    await eventually(lambda: has_ended(worker))
    await eventually(lambda: len(task.told) == 2)
    await let_go(task)
    await eventually(lambda: pool.worker_set.is_whole)


async def test_a_worker_that_sends_a_malformed_message_is_killed(pool: WorkerPool) -> None:
    for garbage in (b"\xff" * 64, b"\x04\x00\x00\x00abcd", b"\x03\x00\x00\x00N.."):
        assert isinstance(await outcome(submit(pool, Babble(garbage))), WorkerLost)
    assert await process_of(pool) > 0


async def test_a_worker_that_dies_while_it_is_renewed_is_replaced_once(
    pool: WatchedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker_set, before = pool.worker_set, await process_without_spares(pool, scope="before")
    fork, forked_count = worker_set._new_worker, 0

    async def fork_after_its_death(lane: Lane) -> Worker:
        nonlocal forked_count
        forked_count += 1
        if forked_count == 1:
            os.kill(before, signal.SIGKILL)
            await eventually(lambda: "lost" in pool.ends and worker_set.is_whole)
        return await fork(lane)

    monkeypatch.setattr(worker_set, "_new_worker", fork_after_its_death)
    assert await process_of(pool, scope="after") != before
    assert worker_set.is_whole
    assert worker_set.idle_count(Lane.SHORT) == 1


async def test_a_worker_that_dies_while_no_other_can_be_forked_is_replaced_later(
    pool: WatchedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await process_without_spares(pool, scope="before")

    async def refuse(lane: Lane) -> Worker:
        os.kill(before, signal.SIGKILL)
        await eventually(lambda: "lost" in pool.ends)
        raise OSError(errno.EMFILE, "no descriptors")

    with monkeypatch.context() as patch:
        patch.setattr(pool.worker_set, "_new_worker", refuse)
        error = await outcome(submit(pool, TellProcess(), scope="after"))
    assert isinstance(error, Overloaded)
    assert error.reason == "SYSTEM_RESOURCES_EXHAUSTED"
    assert await process_of(pool, scope="after") != before


async def process_without_spares(pool: WatchedPool, scope: str) -> int:
    """A worker that has run a task of that scope, where the next change of callers must fork another; returns its process id."""
    spares = pool.worker_set._spares
    await process_of(pool, scope=f"before {scope}")
    process_id = await process_of(pool, scope=scope)
    await eventually(lambda: bool(spares))
    for spare in list(spares.values()):
        spare.kill()
    await eventually(lambda: not spares)
    pool.ends.clear()
    return process_id


@pytest.mark.parametrize("given_count", [0, 1])
async def test_a_lack_of_descriptors_refuses_a_task_and_its_worker_stays(
    pool: WatchedPool, monkeypatch: pytest.MonkeyPatch, given_count: int
) -> None:
    before = await process_of(pool)
    give, tries = pool.arena.chunks.give, itertools.count()
    leases: list[Lease] = []

    def lack(*arguments: Any) -> Any:
        if next(tries) < given_count:
            return give(*arguments)
        raise OSError(errno.EMFILE, "no descriptors")

    def lease_result(size_bytes: int) -> int:
        lease = pool.rows.lease(size_bytes)
        assert lease is not None
        leases.append(lease)
        return lease.offset

    with monkeypatch.context() as patch:
        patch.setattr(pool.arena.chunks, "give", lack)
        task = submit(pool, MakeArray(8 * MIB), lease_result=lease_result)
        error = await outcome(task)
    assert isinstance(error, Overloaded)
    assert error.reason == "SYSTEM_RESOURCES_EXHAUSTED"
    assert task.start_count == 1
    assert len(leases) == given_count
    for lease in leases:
        lease.release()
    assert await process_of(pool) == before


@pytest.mark.parametrize("failing", ["copy", "on_rows_written", "allocate", "lease_result"])
async def test_an_error_of_the_service_is_no_violation_of_the_worker(
    pool: WatchedPool, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before, violations = await process_of(pool), dict(pool.counters.violation_counts)

    def fail(*_: object) -> Any:
        raise OSError(errno.EIO, "the disk is broken")

    async def fail_later(arena: Arena, span: range) -> None:
        if span or failing == "copy":
            fail()

    if failing in ("copy", "allocate"):
        monkeypatch.setattr(region_copy, failing, fail_later)
    tells = failing == "on_rows_written"
    task = submit(
        pool,
        Spin() if tells else MakeArray(8 * MIB),
        lease_result=fail if failing == "lease_result" else lambda size_bytes: pool.arena.rows_start,
    )
    if tells:
        task.on_rows_written = fail
    error = await outcome(task)
    assert isinstance(error, OSError)
    assert error.errno == errno.EIO
    await eventually(lambda: "killed" in pool.ends and not psutil.pid_exists(before))
    assert dict(pool.counters.violation_counts) == violations
    monkeypatch.undo()
    assert await process_of(pool) != before


async def test_a_task_that_cannot_be_sent_leaves_its_worker_idle(pool: WatchedPool) -> None:
    before = await process_of(pool)
    error = await outcome(submit(pool, Unsendable()))
    assert isinstance(error, TypeError)
    workers = [worker for workers in pool.worker_set._workers.values() for worker in workers]
    assert not any(isinstance(worker, ProcessWorker) and worker._given.is_running for worker in workers)
    assert await process_of(pool) == before


async def test_an_unexpected_error_does_not_end_its_worker(pool: WorkerPool) -> None:
    before = await process_of(pool)
    error = await outcome(submit(pool, Fail()))
    assert isinstance(error, RuntimeError)
    assert "ZeroDivisionError" in str(error)
    assert await process_of(pool) == before


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_a_task_that_needs_too_much_memory_is_refused_and_its_worker_stays() -> None:
    async with open_pool(worker_memory_bytes=256 * MIB) as pool:
        before = await process_of(pool)
        error = await outcome(submit(pool, TakeMemory(512 * MIB)))
        assert isinstance(error, LimitExceeded)
        assert error.reason == "WORKER_MEMORY_EXCEEDED"
        assert await outcome(submit(pool, TakeMemory(64 * MIB))) == 64 * MIB
        assert await process_of(pool) == before


@pytest.mark.parametrize("ignores_stop", [False, True], ids=["at a checkpoint", "by the kernel"])
async def test_cpu_seconds_are_limited(ignores_stop: bool) -> None:
    async with open_pool(max_cpu_seconds=0.2) as pool:
        error = await outcome(submit(pool, Spin(ignores_stop)))
        assert isinstance(error, LimitExceeded)
        assert error.reason == "CPU_SECONDS_EXCEEDED"
        assert await process_of(pool) > 0


async def test_a_worker_dumps_no_core_and_opens_few_files_and_one_of_the_long_lane_gives_way(pool: WorkerPool) -> None:
    for seconds, is_nice in ((0.01, False), (LONG, True)):
        task = submit(pool, TellLimits(), seconds=seconds)
        assert await outcome(task) == {"core": 0, "files": 80}
        assert (os.getpriority(os.PRIO_PROCESS, await begun(task)) > os.nice(0)) is is_nice


async def test_workers_are_replaced_after_their_number_of_tasks() -> None:
    async with open_pool(max_jobs_a_worker=2) as pool:
        processes = [await process_of(pool) for _ in range(6)]
        assert len(set(processes)) == 3
        await eventually(lambda: pool.ends == ["recycled"] * 3)


@pytest.mark.parametrize(("budget_mib", "is_kept"), [(1024, True), (256, False)])
async def test_a_worker_keeps_freed_memory_up_to_its_share_of_the_budget(budget_mib: int, is_kept: bool) -> None:
    """An eighth of the budget is for two workers here, 64 MiB or 16 MiB each."""
    async with open_pool(memory_budget_bytes=budget_mib * MIB) as pool:
        first, second = [await outcome(submit(pool, UseMemory(48 * MIB), working_bytes=48 * MIB)) for _ in range(2)]
        assert first > 40 * MIB  # glibc itself gives such a block back at once
        assert (second < 8 * MIB) == is_kept


# -- cancelling --------------------------------------------------------------------------------------------------------


async def test_an_abandoned_task_stops_and_its_worker_stays(pool: WorkerPool) -> None:
    task = submit(pool, Spin())
    worker = await begun(task)
    pool.abandon(task)
    assert isinstance(await outcome(task), Cancelled)
    assert await process_of(pool) == worker


async def test_the_worker_of_an_abandoned_task_that_does_not_stop_is_killed(pool: WatchedPool) -> None:
    task = submit(pool, Spin(ignores_stop=True), tensor_bytes=MIB)
    worker = psutil.Process(await begun(task))
    pool.abandon(task)
    assert isinstance(await outcome(task), Cancelled)
    assert has_ended(worker)
    await eventually(lambda: pool.ends == ["killed"] and pool.worker_set.is_whole)


async def test_a_thread_goes_on_after_an_abandoned_task_that_did_not_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[ThreadWorker] = []
    monkeypatch.setattr(ThreadWorker, "kill", lambda worker: killed.append(worker))
    async with open_pool(is_in_process=True) as pool:
        task = submit(pool, WaitWhileHeld())
        await begun(task)
        pool.abandon(task)
        await eventually(lambda: bool(killed))
        HELD.set()
        await outcome(task)
        assert await process_of(pool) == os.getpid()


async def test_an_abandoned_queued_task_never_starts(pool: WorkerPool) -> None:
    first = submit(pool, WaitForSignal())
    second = submit(pool, Spin())
    pool.abandon(second)
    assert isinstance(await outcome(second), Cancelled)
    assert pool.queued_count == 0
    await let_go(first)
    assert not second.told


async def test_a_deadline_ends_running_tasks_and_keeps_queued_ones_from_starting(
    pool: WorkerPool,
) -> None:
    for seconds in GROWING_SECONDS:
        running = submit(pool, Spin(), timeout_seconds=seconds)
        waiting = submit(pool, Spin(), timeout_seconds=seconds / 2)
        assert isinstance(await outcome(running), DeadlineExceeded)
        assert isinstance(await outcome(waiting), DeadlineExceeded)
        if running.told:
            break
    assert running.told
    assert not waiting.told


async def test_closing_ends_everything() -> None:
    async with open_pool(has_own_fork_server=True) as pool:
        tasks = [submit(pool, Spin(ignores_stop=n == 0)) for n in range(3)]
        worker = psutil.Process(await begun(tasks[0]))
        family = [worker, worker.parent()]
    for task in tasks:
        assert isinstance(await outcome(task), Cancelled)
    await eventually(lambda: all(map(has_ended, family)))


# -- admission ---------------------------------------------------------------------------------------------------------


async def test_a_task_larger_than_the_budget_is_refused_at_once() -> None:
    async with open_pool(memory_budget_bytes=256 * MIB) as pool:
        with pytest.raises(LimitExceeded) as caught:
            submit(pool, TellProcess(), tensor_bytes=128 * MIB, working_bytes=128 * MIB)
        assert caught.value.reason == "MEMORY_BUDGET_EXCEEDED"


async def test_a_task_waits_until_its_memory_is_free() -> None:
    async with open_pool(worker_count=2, memory_budget_bytes=256 * MIB) as pool:
        holder = submit(pool, WaitForSignal(), working_bytes=150 * MIB)
        large = submit(pool, TellProcess(), working_bytes=100 * MIB)
        assert await process_of(pool, working_bytes=10 * MIB) > 0  # what fits bypasses it
        assert not large.done.done()
        await let_go(holder)
        assert await outcome(large) > 0


async def test_a_task_that_would_wait_past_its_deadline_is_refused_with_a_time_to_retry(
    pool: WorkerPool,
) -> None:
    running = submit(pool, WaitForSignal())
    waiting = [submit(pool, TellProcess(), seconds=0.2) for _ in range(20)]
    with pytest.raises(Overloaded) as caught:
        submit(pool, TellProcess(), seconds=0.24, timeout_seconds=2.0)
    assert caught.value.reason == "WAIT_EXCEEDS_DEADLINE"
    assert 3.5 < caught.value.retry_after_seconds < 4.5
    await let_go(running)
    for task in waiting:
        await outcome(task)


async def test_short_tasks_do_not_wait_for_long_ones(pool: WorkerPool) -> None:
    long = [submit(pool, WaitForSignal(), seconds=LONG) for _ in range(3)]
    await begun(long[0])
    assert await process_of(pool) > 0
    await let_go(*long)


async def test_a_large_result_comes_through_shared_memory(pool: WorkerPool) -> None:
    leases: list[Lease] = []

    def lease_result(size_bytes: int) -> int:
        lease = pool.rows.lease(size_bytes)
        assert lease is not None
        leases.append(lease)
        return lease.offset

    result = await outcome(submit(pool, MakeArray(8 * MIB), lease_result=lease_result))
    assert np.array_equal(result, np.arange(8 * MIB, dtype=np.uint8))
    assert [lease.size_bytes for lease in leases] == [8 * MIB]
    assert len(await outcome(submit(pool, MakeArray(1000), lease_result=lease_result))) == 1000
    assert len(leases) == 1
    leases[0].release()


async def test_a_result_for_which_there_is_no_memory_is_refused(pool: WorkerPool) -> None:
    before = await process_of(pool)
    error = await outcome(submit(pool, MakeArray(8 * MIB)))
    assert isinstance(error, LimitExceeded)
    assert await process_of(pool) == before


async def test_the_memory_of_an_idle_pool_returns_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocessor.workers.idle_trim._IDLE_SECONDS", 0.01)
    async with open_pool(memory_budget_bytes=512 * MIB) as pool:
        lease = pool.rows.lease(200 * MIB)
        assert lease is not None
        pool.arena.view(lease.offset, lease.size_bytes)[:] = b"x" * lease.size_bytes
        assert resident_bytes(pool.arena) >= 200 * MIB
        lease.release()
        pool.released()
        await eventually(lambda: resident_bytes(pool.arena) < MIB)


async def test_memory_stays_mapped_while_requests_come_one_after_another() -> None:
    """A caller that asks every few seconds would else pay for its pages again and again."""
    async with open_pool(memory_budget_bytes=512 * MIB) as pool:
        lease = pool.rows.lease(100 * MIB)
        assert lease is not None
        pool.arena.view(lease.offset, lease.size_bytes)[:] = b"x" * lease.size_bytes
        lease.release()
        pool.released()
        pool._idle_trim._trim()  # as a timer does that was set by an earlier release
        assert resident_bytes(pool.arena) >= 100 * MIB


async def test_many_small_tasks_are_all_run() -> None:
    async with open_pool(worker_count=2) as pool:
        tasks: list[Task] = [submit(pool, TellProcess(), seconds=n % 7 / 20) for n in range(300)]
        answers = await asyncio.gather(*(outcome(task) for task in tasks))
        assert len(set(answers)) == 4
        assert (pool.queued_count, pool.running_count, pool.used_bytes) == (0, 0, 0)
