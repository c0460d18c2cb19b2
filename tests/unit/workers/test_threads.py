"""Threads in worker processes: used where cores are idle, within the sandbox and the budget, and gone with their task."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator

import numpy as np
import psutil
import pytest
import pytest_asyncio

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.errors import Cancelled
from preprocessor.models.family import Model
from preprocessor.pipeline.division import IdleCores
from preprocessor.types.plan import PixelPlan
from preprocessor.types.request import ChatPrompt, Media, MediaPart, Message, Modality, PreparationRequest, Sampling
from preprocessor.types.timing import Timings
from preprocessor.workers.pixel_run import FlightRun
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.resources import RequestResources
from preprocessor.workers.task import SHORT_SECONDS, Task
from preprocessor.workers.upload_buffer import UploadBuffer
from tests.fork_servers import fork_server_of
from tests.media import moving_shapes_clip
from tests.unit.workers.conftest import MIB, begun, let_go, open_pool, outcome, submit
from tests.unit.workers.payloads import TellProcess, WaitForSignal
from tests.waiting import PATIENCE_SECONDS, eventually


def descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


@pytest_asyncio.fixture(scope="module")
async def pool_of_two(model: Model) -> AsyncIterator[tuple[WorkerPool, set[psutil.Process]]]:
    """With its worker processes."""
    await fork_server_of(model)
    before = descendants()
    async with open_pool(model=model, worker_count=2, memory_budget_bytes=512 * MIB) as pool:
        await eventually(lambda: len(descendants() - before) == 4)
        yield pool, descendants() - before


@pytest.fixture(scope="module")
def request_of_one_group(model: Model) -> PreparationRequest:
    """A clip that cannot be cut, of 18 MB of rows."""
    data = moving_shapes_clip(seconds=6, width=320, height=240, options=(("g", "1000"),))
    medium = Media("clip", Modality.VIDEO, data, sampling=Sampling(fps=15))
    return PreparationRequest(ChatPrompt((Message("user", (MediaPart("clip"),)),)), (medium,))


async def planned(resources: RequestResources, request: PreparationRequest) -> tuple[tuple[Media, ...], PixelPlan]:
    file = UploadBuffer(resources)
    await file.write(request.media[0].data)
    media = (dataclasses.replace(request.media[0], data=await file.finish()),)
    plan = (await resources.plan(dataclasses.replace(request, media=media), Limits())).pixels
    assert plan is not None
    return media, plan


async def core_count_of(pool: WorkerPool, request: PreparationRequest, expected: np.ndarray) -> int:
    """Threads that made the rows, which are compared."""
    async with RequestResources(pool, time.monotonic() + PATIENCE_SECONDS, Timings()) as resources:
        media, plan = await planned(resources, request)
        run = resources.pixels(media, plan)
        assert isinstance(run, FlightRun)
        array = await run.begun()
        async for _ in run.finished_rows():
            pass
        await run.report()
        np.testing.assert_array_equal(array, expected)
        assert len(run.tasks) == 1
        return run.tasks[0].core_count


async def test_a_clip_that_cannot_be_cut_is_made_by_two_threads_which_end_with_it(
    model: Model, pool_of_two: tuple[WorkerPool, set[psutil.Process]], request_of_one_group: PreparationRequest
) -> None:
    pool, workers = pool_of_two
    expected = pipeline.prepare(model, request_of_one_group).tensors["pixel_patches"]
    for _ in range(2):
        assert await core_count_of(pool, request_of_one_group, expected) == 2
        await eventually(lambda: [worker.num_threads() for worker in workers] == [1] * 4)


async def test_a_request_that_leaves_half_way_leaves_no_thread_and_its_worker_goes_on(
    model: Model,
    pool_of_two: tuple[WorkerPool, set[psutil.Process]],
    request_of_one_group: PreparationRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("preprocessor.workers.pool.CANCEL_GRACE_SECONDS", PATIENCE_SECONDS)
    pool, workers = pool_of_two
    expected = pipeline.prepare(model, request_of_one_group).tensors["pixel_patches"]
    async with RequestResources(pool, time.monotonic() + PATIENCE_SECONDS, Timings()) as resources:
        run = resources.pixels(*await planned(resources, request_of_one_group))
        assert isinstance(run, FlightRun)
        await run.begun()
        async for _, row_count in run.finished_rows():
            assert row_count < len(expected)
            break
        assert run.tasks[0].core_count == 2
    await asyncio.wait([run.tasks[0].done])
    assert isinstance(run.tasks[0].done.exception(), Cancelled)
    await eventually(lambda: [worker.num_threads() for worker in workers] == [1] * 4)
    assert await core_count_of(pool, request_of_one_group, expected) == 2
    assert pool.ends == []  # type: ignore[attr-defined]


async def test_threads_are_not_used_where_their_memory_is_not_free(
    model: Model, request_of_one_group: PreparationRequest
) -> None:
    expected = pipeline.prepare(model, request_of_one_group).tensors["pixel_patches"]
    async with open_pool(model=model, worker_count=2, memory_budget_bytes=64 * MIB) as pool:
        assert await core_count_of(pool, request_of_one_group, expected) == 1


async def test_cores_of_other_tasks_threads_are_not_idle() -> None:
    async with open_pool(worker_count=4) as pool:
        others = [submit(pool, WaitForSignal()) for _ in range(2)]
        for other in others:
            await begun(other)
        seen: list[IdleCores] = []

        def cut(idle: IdleCores) -> list[Task]:
            seen.append(idle)
            return []

        await outcome(submit(pool, TellProcess(), cut=cut))
        others[0].core_count = 2  # as if it had been divided among threads
        await outcome(submit(pool, TellProcess(), cut=cut))
        assert [idle.core_count for idle in seen] == [2]  # the second time one was idle, which is nothing to divide
        await let_go(*others)


@pytest.mark.parametrize(("seconds", "is_divided"), [(SHORT_SECONDS / 2, False), (SHORT_SECONDS, True)])
async def test_a_short_task_is_divided_only_while_half_of_the_cores_are_idle(seconds: float, is_divided: bool) -> None:
    async with open_pool(worker_count=5) as pool:
        others = [submit(pool, WaitForSignal()) for _ in range(3)]
        for other in others:
            await begun(other)
        seen: list[IdleCores] = []

        def cut(idle: IdleCores) -> list[Task]:
            seen.append(idle)
            return []

        await outcome(submit(pool, TellProcess(), cut=cut, seconds=seconds))
        assert bool(seen) == is_divided
        await let_go(*others)
