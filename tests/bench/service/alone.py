"""The pipeline, and the worker pool, without a service around them: each in a process of its own, to compare with."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from typing import Self

import psutil

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.config.machine import use_one_thread
from preprocessor.models.family import Model
from preprocessor.models.registry import load_model
from preprocessor.traffic.load import WRONG, Ask
from preprocessor.types.request import FileData, PreparationRequest
from preprocessor.types.timing import Timings
from preprocessor.workers.pool import PoolSettings, WorkerPool
from preprocessor.workers.resources import RequestResources
from preprocessor.workers.upload_buffer import UploadBuffer
from tests.bench.service import checksum
from tests.bench.service.asks import request_of
from tests.bench.service.watched import tree_cpu_seconds

_DEADLINE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Spent:
    """What so many requests took together."""

    count: int
    wall_seconds: float
    cpu_seconds: float

    @property
    def cpu_ms_each(self) -> float:
        return self.cpu_seconds / self.count * 1e3

    @property
    def requests_a_second(self) -> float:
        return self.count / self.wall_seconds


class PipelineAlone:
    """`pipeline.prepare`, one request after another on one thread."""

    def __enter__(self) -> Self:
        self._process = ProcessPoolExecutor(1, get_context("spawn"))
        return self

    def __exit__(self, *_: object) -> None:
        self._process.shutdown()

    def run(self, ask: Ask, count: int) -> Spent:
        return self._process.submit(_prepare_all, ask, count).result()


class PoolAlone:
    """`WorkerPool` and `RequestResources` as the service uses them, with nobody to send the rows to."""

    def __init__(self, worker_count: int, memory_budget_bytes: int) -> None:
        self._settings = PoolSettings(
            worker_count=worker_count,
            max_queued_count=1024,
            memory_budget_bytes=memory_budget_bytes,
            worker_memory_bytes=memory_budget_bytes,
            max_cpu_seconds=_DEADLINE_SECONDS,
            max_jobs_a_worker=10_000,
            is_in_process=False,
        )

    def __enter__(self) -> Self:
        self._process = ProcessPoolExecutor(1, get_context("spawn"))
        self._process.submit(_start_pool, self._settings).result()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.submit(_stop_pool).result()
        self._process.shutdown()

    def run(
        self, ask: Ask, *, count: float = float("inf"), seconds: float = float("inf"), concurrency: int = 1
    ) -> Spent:
        """So many requests, or as many as begin within that time; the CPU is that of the process and its workers."""
        return self._process.submit(_claim_all, ask, count, seconds, concurrency).result()


@cache
def _model() -> Model:
    use_one_thread()
    model = load_model("qwen3-vl")
    assert isinstance(model, Model)
    return model


def _prepare_all(ask: Ask, count: int) -> Spent:
    model, request = _model(), request_of(ask)
    pipeline.prepare(model, request)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        pipeline.prepare(model, request)
    return Spent(count, time.perf_counter() - wall, time.process_time() - cpu)


_loop: asyncio.AbstractEventLoop
_pool: WorkerPool


def _start_pool(settings: PoolSettings) -> None:
    global _loop, _pool
    _loop = asyncio.new_event_loop()

    async def start() -> WorkerPool:
        pool = WorkerPool(_model(), settings)
        await pool.start()
        return pool

    _pool = _loop.run_until_complete(start())


def _stop_pool() -> None:
    _loop.run_until_complete(_pool.close())


def _claim_all(ask: Ask, count: float, seconds: float, concurrency: int) -> Spent:
    return _loop.run_until_complete(_claims(ask, count, seconds, concurrency))


async def _claims(ask: Ask, count: float, seconds: float, concurrency: int) -> Spent:
    request = request_of(ask)
    if await _prepare_with_pool(request, is_checked=True) != ask.right_outcome:
        raise RuntimeError(f"{ask.name}: {WRONG}")
    begun_count = 0
    wall, cpu = time.perf_counter(), tree_cpu_seconds(psutil.Process())

    async def call() -> None:
        nonlocal begun_count
        while begun_count < count and time.perf_counter() < wall + seconds:
            begun_count += 1
            await _prepare_with_pool(request)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(call())
    return Spent(begun_count, time.perf_counter() - wall, tree_cpu_seconds(psutil.Process()) - cpu)


async def _stored(data: FileData, resources: RequestResources) -> memoryview:
    file = UploadBuffer(resources)
    await file.write(data)
    return await file.finish()


async def _prepare_with_pool(request: PreparationRequest, *, is_checked: bool = False) -> str:
    """What the service does of one request between its messages; the answer's checksum where that is asked for."""
    async with RequestResources(_pool, time.monotonic() + _DEADLINE_SECONDS, Timings()) as resources:
        media = [replace(medium, data=await _stored(medium.data, resources)) for medium in request.media]
        request = replace(request, media=tuple(media))
        planned = await resources.plan(request, Limits())
        assert planned.pixels is not None
        run = resources.pixels(request.media, planned.pixels)
        async for _ in run.finished_rows():
            pass
        await run.report()
        return checksum.of_tensors({**planned.tensors, planned.pixels.name: await run.begun()}) if is_checked else ""
