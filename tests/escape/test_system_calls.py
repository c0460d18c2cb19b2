"""A worker that has been taken over can reach nothing: each attempt ends it, is counted, and costs nobody else anything."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from preprocessor.errors import WorkerLost
from preprocessor.workers.pool import WorkerPool
from tests.escape.attempts import SYSTEM_CALLS, Attempt, RaiseLimit, TakeDescriptors, TakenOver
from tests.unit.workers.conftest import let_go, open_pool, outcome, submit
from tests.unit.workers.payloads import TakeMemory, TellProcess, WaitForSignal
from tests.waiting import eventually

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="some attempts name system calls by number")


@pytest_asyncio.fixture(scope="module")
async def shared() -> AsyncIterator[WorkerPool]:
    async with open_pool(model=TakenOver(), worker_count=2) as pool:
        yield pool


@pytest.fixture
def secret(tmp_path: Path) -> Iterator[str]:
    """A file such as a key or a list of tokens, which this user may read."""
    path = tmp_path / "tls.key"
    path.write_text("secret")
    yield str(path)
    assert path.read_text() == "secret"


@pytest.mark.parametrize("name", SYSTEM_CALLS)
async def test_an_attempt_ends_its_worker_and_nothing_else(shared: WorkerPool, secret: str, name: str) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        target = str(os.getpid()) if "process" in name or "descriptor" in name or "memory by" in name else secret
        if name == "connect":
            target = str(listener.getsockname()[1])
        bystander = submit(shared, WaitForSignal())
        before = shared.counters.violation_counts["system_call"]
        task = submit(shared, Attempt(name, target))
        error = await outcome(task)
        assert isinstance(error, WorkerLost), error
        assert error.reason == "WORKER_VIOLATION"
        assert task.start_count == 1, "it is not tried again"
        await eventually(lambda: shared.counters.violation_counts["system_call"] == before + 1)
        await eventually(lambda: not psutil.pid_exists(task.told[0]))
        await let_go(bystander)
        assert bystander.start_count == 1
    await eventually(lambda: shared.worker_set.is_whole)


async def test_a_sibling_cannot_be_killed(shared: WorkerPool) -> None:
    sibling = submit(shared, WaitForSignal())
    await eventually(lambda: bool(sibling.told))
    error = await outcome(submit(shared, Attempt("kill another process", str(sibling.told[0]))))
    assert getattr(error, "reason", "") == "WORKER_VIOLATION"
    await let_go(sibling)
    assert sibling.start_count == 1


async def test_limits_cannot_be_raised(shared: WorkerPool) -> None:
    assert "not allowed to raise maximum limit" in str(await outcome(submit(shared, RaiseLimit())))
    async with open_pool(worker_memory_bytes=256 << 20) as pool:
        error = await outcome(submit(pool, TakeMemory(psutil.virtual_memory().available)))
        assert getattr(error, "reason", "") == "WORKER_MEMORY_EXCEEDED"


async def test_a_worker_has_few_descriptors(shared: WorkerPool) -> None:
    error = await outcome(submit(shared, TakeDescriptors()))
    assert isinstance(error, Exception)
    assert await outcome(submit(shared, TellProcess())) > 0
