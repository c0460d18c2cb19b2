"""A pool of real worker processes, and helpers that run payloads in it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest_asyncio

from preprocessor.pipeline.division import IdleCores
from preprocessor.workers.arena import Arena
from preprocessor.workers.pool import PoolSettings, WorkerPool
from preprocessor.workers.task import Task, TensorSlot
from tests.fork_servers import fork_server_of
from tests.unit.workers.payloads import GO, NO_MODEL
from tests.waiting import PATIENCE_SECONDS, eventually

MIB = 1 << 20


class WatchedPool(WorkerPool):
    """A pool that tests look into.

    Attributes:
        ends: Why its workers ended.
    """

    ends: list[str]


@asynccontextmanager
async def open_pool(
    *, has_own_fork_server: bool = False, model: Any = NO_MODEL, arena: Arena | None = None, **settings: Any
) -> AsyncIterator[WatchedPool]:
    """A pool whose payloads need no model, unless one is given.

    Args:
        arena: Of the pool, in place of one without a name.
    """
    given: dict[str, Any] = {
        "is_in_process": False,
        "worker_count": 1,
        "max_queued_count": 100,
        "memory_budget_bytes": 256 * MIB if arena is None else arena.size_bytes,
        "worker_memory_bytes": 1024 * MIB,
        "max_cpu_seconds": 60.0,
        "max_jobs_a_worker": 1000,
    }
    ends: list[str] = []
    pool = WatchedPool(
        model,
        PoolSettings(**{**given, **settings}),
        ends.append,
        None if has_own_fork_server else await fork_server_of(model),
        arena,
    )
    pool.ends = ends
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


@pytest_asyncio.fixture(scope="session")
async def shared_pool() -> AsyncIterator[WatchedPool]:
    async with open_pool() as pool:
        yield pool


@pytest_asyncio.fixture
async def pool(shared_pool: WatchedPool) -> AsyncIterator[WatchedPool]:
    """One worker a lane; every test leaves it with all workers and without tasks."""
    shared_pool.ends.clear()
    yield shared_pool
    await eventually(lambda: shared_pool.worker_set.is_whole)
    assert (shared_pool.queued_count, shared_pool.running_count, shared_pool.used_bytes) == (0, 0, 0)


@dataclass(slots=True, eq=False)
class ToldTask(Task):
    """A task that collects what its payload tells."""

    told: list[int] = field(default_factory=list)


def submit(
    pool: WorkerPool,
    payload: Any,
    *,
    then: Any = None,
    scope: str = "",
    seconds: float = 0.01,
    working_bytes: int = MIB,
    timeout_seconds: float = PATIENCE_SECONDS,
    tensor_bytes: int = 0,
    lease_result: Callable[[int], int | None] = lambda size_bytes: None,
    cut: Callable[[IdleCores], list[Task]] | None = None,
) -> ToldTask:
    """Submit a task whose expected cost is `seconds` of CPU.

    Args:
        then: What it does when it is tried again, if not the same.
    """

    def tell(_: int, number: int) -> None:
        task.told.append(number)
        task.payload = then or payload

    task = ToldTask(
        payload=payload,
        cpu_seconds=seconds,
        working_bytes=working_bytes,
        deadline_seconds=time.monotonic() + timeout_seconds,
        on_rows_written=tell,
        lease_result=lease_result,
        cut=cut,
        tensor=TensorSlot(tensor_bytes) if tensor_bytes else None,
        scope=scope,
    )

    def release(_: object) -> None:
        if task.tensor is not None and task.tensor.lease is not None:
            task.tensor.lease.release()

    task.done.add_done_callback(release)
    pool.submit(task)
    return task


async def begun(task: ToldTask) -> int:
    """Wait for a payload that tells its process id; returns the id."""
    await eventually(lambda: bool(task.told))
    return task.told[-1]


async def let_go(*tasks: ToldTask) -> None:
    """End tasks that wait for a signal, one after the other."""
    for task in tasks:
        os.kill(await begun(task), GO)
        assert await outcome(task) == "seen"


async def outcome(task: Task) -> Any:
    """The task's result; an error is returned, not raised."""
    await asyncio.wait_for(asyncio.wait([task.done]), PATIENCE_SECONDS)
    return task.done.exception() or task.done.result()


def resident_bytes(arena: Arena) -> int:
    """Memory that the arena takes now, in all processes together."""
    return os.fstat(arena.descriptor).st_blocks * 512
