"""A worker that has been taken over uses nothing for long that no task needs: the kernel is asked, not the worker."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from preprocessor.service.health import Health
from preprocessor.service.state_metrics import StateMetrics
from preprocessor.workers.claims import Violation
from preprocessor.workers.usage import MOST_WORKER_THREADS, Usage, UsageCheck, read_usage
from tests.escape.attempts import ForgeLog, HoldMemory, TakenOver, WorkOn
from tests.unit.workers.conftest import WatchedPool, open_pool, outcome, submit
from tests.unit.workers.payloads import TellProcess, UseMemory
from tests.waiting import eventually

MIB = 1 << 20
_PR_SET_NAME = 15  # linux/prctl.h


@pytest_asyncio.fixture(scope="module")
async def shared() -> AsyncIterator[WatchedPool]:
    async with open_pool(model=TakenOver()) as pool:
        yield pool


def counted(pool: WatchedPool, kind: str) -> float:
    """Violations of that kind, as `/metrics` has them."""
    registry = CollectorRegistry()
    registry.register(StateMetrics(pool, Health(None, pool)))
    value = registry.get_sample_value("preprocessor_worker_violations_total", {"kind": kind})
    assert value is not None
    return value


@pytest.mark.parametrize(
    ("attempt", "kind"),
    [(WorkOn(1, is_busy=True), "cpu_time"), (WorkOn(MOST_WORKER_THREADS + 20, is_busy=False), "threads")],
)
async def test_work_that_outlives_its_task_ends_the_worker(shared: WatchedPool, attempt: WorkOn, kind: str) -> None:
    before = counted(shared, kind)
    process_id = await outcome(submit(shared, attempt))
    await eventually(lambda: not psutil.pid_exists(process_id))
    assert counted(shared, kind) == before + 1
    await eventually(lambda: shared.worker_set.is_whole)
    assert await outcome(submit(shared, TellProcess())) != process_id
    assert shared.ends[-1] == "violation"


async def test_a_worker_that_keeps_memory_is_replaced(shared: WatchedPool) -> None:
    process_id = await outcome(submit(shared, HoldMemory(600 * MIB)))
    await eventually(lambda: not psutil.pid_exists(process_id))
    await eventually(lambda: shared.worker_set.is_whole)
    assert shared.ends[-1] == "recycled"


async def test_memory_that_a_task_gave_back_replaces_no_worker(shared: WatchedPool) -> None:
    process_id = await outcome(submit(shared, TellProcess()))
    await outcome(submit(shared, UseMemory(600 * MIB)))
    for worker in {worker for workers in shared.worker_set._workers.values() for worker in workers}:
        worker.examine()
        assert worker.grown_bytes < 100 * MIB
    assert await outcome(submit(shared, TellProcess())) == process_id


async def test_the_log_can_be_appended_to_and_neither_changed_nor_read(tmp_path: Path) -> None:
    log, own = tmp_path / "log", os.dup(2)
    log.write_text("first line\n")
    with log.open("r+") as file:
        os.dup2(file.fileno(), 2)
    try:
        async with open_pool(model=TakenOver(), has_own_fork_server=True) as pool:
            error = await outcome(submit(pool, ForgeLog()))
    finally:
        os.dup2(own, 2)
        os.close(own)
    assert "Bad file descriptor" in str(error)
    assert log.read_text().startswith("first line\n")
    assert "forged" in log.read_text()


@pytest.mark.parametrize("name", [b"\xff", b"a) R 1", b"a\nRssAnon:"])
def test_a_process_is_read_whatever_it_calls_itself(name: bytes) -> None:
    code = f"import ctypes, sys; ctypes.CDLL(None).prctl({_PR_SET_NAME}, {name!r}); print('named', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        usage = read_usage(process.pid)
    assert usage is not None
    assert usage.thread_count == 1
    assert usage.anonymous_bytes > 0


def reading(cpu_seconds: float, thread_count: int = 1) -> Usage:
    return Usage(thread_count, cpu_seconds, 0, 0)


def test_cpu_counts_from_the_first_reading_of_a_task() -> None:
    check = UsageCheck()
    check.check(reading(100), 0, 60)
    check.check(reading(169), 0, 60)
    check.check(reading(169.1), 1, None)
    check.check(reading(169.5), 1, None)
    check.check(reading(200), 1, 60)  # the next task
    check.check(reading(260), 1, 60)
    with pytest.raises(Violation, match=r"70\.1 seconds of CPU on a task"):
        check.check(reading(270.1), 1, 60)


def test_an_idle_worker_may_use_next_to_nothing() -> None:
    check = UsageCheck()
    check.check(reading(10), 3, None)
    check.check(reading(10.9), 3, None)
    with pytest.raises(Violation, match=r"1\.1 seconds of CPU without a task"):
        check.check(reading(11.1), 3, None)


def test_a_task_may_have_as_many_threads_as_decoders_need() -> None:
    check = UsageCheck()
    check.check(reading(0, MOST_WORKER_THREADS), 0, 60)
    with pytest.raises(Violation, match=f"{MOST_WORKER_THREADS + 1} threads"):
        check.check(reading(0, MOST_WORKER_THREADS + 1), 0, 60)
