"""The service believes nothing that a worker says, and one caller's worker never gets another caller's task."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from preprocessor.config import Limits
from preprocessor.errors import WorkerLost
from preprocessor.types.plan import PixelPlan
from preprocessor.types.request import ChatPrompt, PixelForm, PreparationRequest
from preprocessor.workers.payloads import EarlyPlanPayload, PlanPayload, most_result_bytes
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.task import Lane
from tests.escape.attempts import MESSAGES, Remember, Say, TakenOver, WantMemory
from tests.unit.workers.conftest import open_pool, outcome, submit
from tests.unit.workers.payloads import TellProcess
from tests.waiting import eventually


@pytest_asyncio.fixture(scope="module")
async def shared() -> AsyncIterator[WorkerPool]:
    async with open_pool(model=TakenOver()) as pool:
        yield pool


@pytest.mark.parametrize("name", MESSAGES)
async def test_a_false_message_ends_its_worker_and_nothing_else(shared: WorkerPool, name: str) -> None:
    before = dict(shared.counters.violation_counts)
    leased_bytes = shared.rows.leased_bytes
    task = submit(shared, Say(name))
    error = await outcome(task)
    assert isinstance(error, WorkerLost), error
    assert error.reason == "WORKER_VIOLATION"
    assert task.start_count == 1
    assert sum(shared.counters.violation_counts.values()) == sum(before.values()) + 1
    assert shared.rows.leased_bytes == leased_bytes
    await eventually(lambda: shared.worker_set.is_whole)
    assert await outcome(submit(shared, TellProcess())) > 0


async def test_no_memory_is_leased_for_a_result_that_cannot_be(shared: WorkerPool) -> None:
    leased: list[int] = []
    payload = WantMemory((), PixelPlan((), 0, 1, PixelForm.UINT8, 0, "pyav"), 0, range(0))
    error = await outcome(submit(shared, payload, lease_result=leased.append))
    assert isinstance(error, WorkerLost), error
    assert error.reason == "WORKER_VIOLATION"
    assert leased == []


def test_a_result_is_no_larger_than_what_it_is_made_in() -> None:
    request = PreparationRequest(ChatPrompt(()), ())
    planning = PlanPayload(request, Limits(max_header_bytes=1234))
    from_headers: Any = SimpleNamespace(plans_from_headers=lambda asked: asked is request)
    generic: Any = SimpleNamespace(plans_from_headers=lambda asked: False)
    assert most_result_bytes(planning, from_headers) == 1234
    assert most_result_bytes(EarlyPlanPayload(planning, {}), from_headers) == 1234
    assert most_result_bytes(planning, generic) is None


async def test_a_worker_runs_the_tasks_of_one_caller(shared: WorkerPool) -> None:
    told = [await outcome(submit(shared, Remember(f"of {scope}"), scope=scope)) for scope in ("a", "a", "b", "b", "a")]
    assert told == ["", "of a", "", "of b", ""]


async def test_a_worker_is_ready_for_the_next_change_of_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_pool(model=TakenOver()) as pool:
        spares = pool.worker_set._spares
        for scope in ("a", "b"):
            assert await outcome(submit(pool, Remember(f"of {scope}"), scope=scope)) == ""
        await eventually(lambda: len(spares) == 1)

        async def refuse(_: object) -> None:
            raise OSError("no process can be made")

        with monkeypatch.context() as patch:
            patch.setattr(pool.worker_set, "_new_worker", refuse)
            assert await outcome(submit(pool, Remember("of c"), scope="c")) == ""
        assert not spares
        assert await outcome(submit(pool, Remember("of d"), scope="d")) == ""
        await eventually(lambda: len(spares) == 1)
        spares[Lane.SHORT].kill()
        await eventually(lambda: not spares)
        assert await outcome(submit(pool, Remember("of e"), scope="e")) == ""


async def test_workers_of_several_callers_are_kept_as_long_as_they_suffice() -> None:
    async with open_pool(model=TakenOver(), worker_count=2) as pool:
        told = [await outcome(submit(pool, Remember(f"of {scope}"), scope=scope)) for scope in ("a", "b", "a", "b")]
        assert told == ["", "", "of a", "of b"]
        assert pool.ends == []
        assert await outcome(submit(pool, Remember("of c"), scope="c")) == ""
        await eventually(lambda: pool.ends == ["caller_changed"])
        assert await outcome(submit(pool, Remember("of b"), scope="b")) == "of b"
