"""A pool of real worker processes, and helpers that run payloads in it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest_asyncio

from preprocessor.workers.arena import Arena
from preprocessor.workers.pool import PoolSettings, WorkerPool
from preprocessor.workers.task import Task, TensorSlot
from tests.fork_servers import fork_server_of
from tests.waiting import PATIENCE_SECONDS, eventually

MIB = 1 << 20


@asynccontextmanager
async def open_pool(
    *, has_own_fork_server: bool = False, model: Any = None, **settings: Any
) -> AsyncIterator[WorkerPool]:
    """A pool whose payloads need no model: `model` is the service's own alone. `pool.ends` lists why its workers ended."""
    given: dict[str, Any] = {
        "is_in_process": False,
        "worker_count": 1,
        "max_queued_count": 100,
        "memory_budget_bytes": 256 * MIB,
        "worker_memory_bytes": 1024 * MIB,
        "max_cpu_seconds": 60.0,
        "max_jobs_a_worker": 1000,
    }
    ends: list[str] = []
    pool = WorkerPool(
        model,
        PoolSettings(**{**given, **settings}),
        ends.append,
        None if has_own_fork_server else await fork_server_of(model),
    )
    pool.ends = ends  # type: ignore[attr-defined]
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


@pytest_asyncio.fixture(scope="session")
async def shared_pool() -> AsyncIterator[WorkerPool]:
    async with open_pool() as pool:
        yield pool


@pytest_asyncio.fixture
async def pool(shared_pool: WorkerPool) -> AsyncIterator[WorkerPool]:
    """One worker a lane; every test leaves it with all workers and without tasks."""
    shared_pool.ends.clear()  # type: ignore[attr-defined]
    yield shared_pool
    await eventually(lambda: shared_pool.worker_set.is_whole)
    assert (shared_pool.queued_count, shared_pool.running_count, shared_pool.used_bytes) == (0, 0, 0)


def submit(
    pool: WorkerPool,
    payload: Any,
    *,
    seconds: float = 0.01,
    working_bytes: int = MIB,
    timeout_seconds: float = PATIENCE_SECONDS,
    tensor_bytes: int = 0,
    lease_result: Callable[[int], int | None] = lambda size_bytes: None,
) -> Task:
    """Submit a task whose expected cost is `seconds` of CPU."""
    task = Task(
        payload=payload,
        cpu_seconds=seconds,
        working_bytes=working_bytes,
        deadline_seconds=time.monotonic() + timeout_seconds,
        on_rows_written=lambda first_row, row_count: None,
        lease_result=lease_result,
        tensor=TensorSlot(tensor_bytes) if tensor_bytes else None,
    )

    def release(_: object) -> None:
        if task.tensor is not None and task.tensor.lease is not None:
            task.tensor.lease.release()

    task.done.add_done_callback(release)
    pool.submit(task)
    return task


async def outcome(task: Task) -> Any:
    """The task's result; an error is returned, not raised."""
    await asyncio.wait_for(asyncio.wait([task.done]), PATIENCE_SECONDS)
    return task.done.exception() or task.done.result()


def resident_bytes(arena: Arena) -> int:
    """Memory that the arena takes now, in all processes together."""
    return os.fstat(arena.descriptor).st_blocks * 512
