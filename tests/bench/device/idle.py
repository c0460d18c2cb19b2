"""How long the GPU waits: preprocessing in the process that generates, beside preprocessing in the service."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import grpc.aio

from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from tests.bench.device.asking import ask, question
from tests.bench.device.clips import SEED, clip
from tests.bench.device.engines import DEFAULT, services, triton, worker_count
from tests.bench.device.gpu import BusyShares, watched
from tests.bench.device.in_process import Point, serve

START_SECONDS = 180.0

Run = Callable[[float, int, int, float, float], Point]
"""Of frames a second, tokens of an answer, callers, warm-up seconds, seconds."""


def idle(
    checkpoint: Path,
    *,
    fps: tuple[float, ...],
    callers: tuple[int, ...],
    max_tokens: int,
    warm_seconds: float,
    seconds: float,
) -> dict[str, Any]:
    """Callers who ask again and again; of the time that counts, how much the GPU was idle, and what was answered."""
    points: list[dict[str, Any]] = []
    with watched() as gpus:
        for name, system in (("one process", _one_process), ("service and Triton", _service)):
            with system(checkpoint) as run:
                for rate in fps:
                    run(rate, max_tokens, 1, warm_seconds, 1.0)  # kernels are chosen, memory is filled
                    for count in callers:
                        # All begin at once: the more there are, the longer until they are spread over the stages.
                        point = run(rate, max_tokens, count, warm_seconds * (1 + count / 32), seconds)
                        points.append(_figures(name, rate, count, point, gpus[0] if gpus else None))
                        print(points[-1], flush=True)
    return {"points": points, "max_tokens": max_tokens, "workers": worker_count()}


def _figures(name: str, fps: float, callers: int, point: Point, busy: BusyShares | None) -> dict[str, Any]:
    seconds = point.ended_at - point.began_at
    return {
        "system": name,
        "fps": fps,
        "callers": callers,
        "gpu_idle": None if busy is None else 1 - busy.mean(point.began_at, point.ended_at),
        "answers_a_second": point.answered_count / seconds,
        "first_token_p50_ms": statistics.median(point.first_token_seconds or [float("nan")]) * 1e3,
        "answered_count": point.answered_count,
    }


@contextmanager
def _one_process(checkpoint: Path) -> Iterator[Run]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(checkpoint, theirs))
    process.start()
    theirs.close()
    try:
        assert ours.poll(START_SECONDS), "the process does not start"
        ours.recv()

        def run(fps: float, max_tokens: int, callers: int, warm_seconds: float, seconds: float) -> Point:
            ours.send((clip(SEED), fps, max_tokens, callers, warm_seconds, seconds))
            point = ours.recv()
            assert isinstance(point, Point)
            return point

        yield run
        ours.send(None)
        process.join(START_SECONDS)
    finally:
        process.kill()
        process.join()


@contextmanager
def _service(checkpoint: Path) -> Iterator[Run]:
    options = ("--workers", str(worker_count()), "--memory-budget", "8GiB", "--max-queued", "1024")
    with (
        tempfile.TemporaryDirectory() as folder,
        triton([(DEFAULT.form, DEFAULT.takes_pieces)], checkpoint, Path(folder)) as engine,
        services([DEFAULT], engine.grpc_address, Path(folder), *options) as servers,
    ):

        def run(*what: Any) -> Point:
            return asyncio.run(_drive(servers[DEFAULT].address, *what))

        yield run


async def _drive(address: str, fps: float, max_tokens: int, callers: int, warm_seconds: float, seconds: float) -> Point:
    messages = question(fps, max_tokens)
    now = time.time()
    point = Point(now + warm_seconds, now + warm_seconds + seconds)
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub = pb_grpc.PreprocessorStub(channel)

        async def call() -> None:
            while True:
                answer = await ask(stub, messages)
                if point.began_at <= time.time() < point.ended_at:
                    point.answered_count += 1
                    point.first_token_seconds.append(answer.first_token_seconds)

        calls = [asyncio.create_task(call()) for _ in range(callers)]
        await asyncio.wait(calls, timeout=point.ended_at - time.time(), return_when=asyncio.FIRST_EXCEPTION)
        for one in calls:
            if one.done():
                one.result()  # they end by an error alone
            one.cancel()
        await asyncio.wait(calls)
    return point
