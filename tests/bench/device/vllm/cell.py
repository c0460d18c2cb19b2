"""One cell: callers who ask one system again and again, for a short time that is measured after a shorter one that is not."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc.aio

from engine_client.errors import EngineError
from tests.bench.device.gpu import BusyShares
from tests.bench.device.vllm.plan import Cell
from tests.bench.device.vllm.systems import Ask, Reply, System, unique_clip

CALL_ERRORS = (grpc.aio.AioRpcError, aiohttp.ClientError, EngineError, TimeoutError)
"""What a question may end with instead of an answer."""
_MIN_ANSWERED = 3  # the measured time is stretched for fewer
_MAX_STRETCH = 2.5
_MAX_ERRORS = 20  # then nothing worth measuring is left
_QUIET_SECONDS, _QUIET_CORES, _SETTLE_SECONDS = 0.3, 0.5, 10.0


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one cell.

    Attributes:
        warm: At least so long nothing counts.
        warm_limit: Nothing counts until each caller has been answered once on average, or so long.
        measured: So long it does.
    """

    warm: float
    warm_limit: float
    measured: float


@dataclass(slots=True)
class _Progress:
    replies: list[Reply] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class CellFailed(RuntimeError):
    """Too many questions ended with an error."""


async def measure(system: System, cell: Cell, times: Times, busy: BusyShares | None) -> dict[str, Any]:
    """Measure it.

    Raises:
        CellFailed: see there.
    """
    progress = _Progress()
    async with system.connected(cell.workload) as ask:
        calls = [asyncio.create_task(_call(ask, progress)) for _ in range(cell.callers)]
        try:
            warmed = await _warm_up(progress, calls, cell.callers, times)
            skipped, error_count = len(progress.replies), len(progress.errors)
            began_at, began, cpu = time.time(), time.monotonic(), system.cpu_seconds()
            while True:
                await _wait(calls, 0.05)
                seconds = time.monotonic() - began
                enough = len(progress.replies) - skipped >= _MIN_ANSWERED or seconds >= times.measured * _MAX_STRETCH
                if seconds >= times.measured and enough:
                    break
            cpu = system.cpu_seconds() - cpu
            ended_at = time.time()
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
    return {
        "system": cell.system,
        "fps": cell.workload.fps,
        "callers": cell.callers,
        "max_tokens": cell.workload.max_tokens,
        "warm_seconds": warmed,
        **_figures(progress.replies[skipped:], seconds, cpu),
        "gpu_busy": _busy_share(busy, began_at, ended_at),
        "errors": progress.errors[error_count:][:5],
    }


async def settle(system: System) -> None:
    """Wait until nothing of what was asked before is still being worked on, or for some seconds."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < deadline:
        used = system.cpu_seconds()
        await asyncio.sleep(_QUIET_SECONDS)
        if system.cpu_seconds() - used < _QUIET_SECONDS * _QUIET_CORES:
            return


async def _call(ask: Ask, progress: _Progress) -> None:
    while True:
        try:
            progress.replies.append(await ask(unique_clip(), 1))
        except CALL_ERRORS as error:
            progress.errors.append(f"{type(error).__name__}: {error}"[:500])
            if len(progress.errors) >= _MAX_ERRORS:
                raise CellFailed("\n".join(progress.errors[:5])) from error


async def _warm_up(progress: _Progress, calls: list[asyncio.Task[None]], callers: int, times: Times) -> float:
    began = time.monotonic()
    while True:
        await _wait(calls, 0.05)
        seconds = time.monotonic() - began
        if seconds >= times.warm_limit or (seconds >= times.warm and len(progress.replies) >= callers):
            return seconds


async def _wait(calls: list[asyncio.Task[None]], seconds: float) -> None:
    """Wait; callers end by an error alone, and it is raised here."""
    done, _ = await asyncio.wait(calls, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for call in done:
        call.result()


def _figures(replies: list[Reply], seconds: float, cpu_seconds: float) -> dict[str, Any]:
    first = sorted(reply.first_token_seconds for reply in replies)
    return {
        "seconds": seconds,
        "answered": len(replies),
        "requests_a_second": len(replies) / seconds,
        "first_token_median_seconds": statistics.median(first) if first else None,
        "first_token_p95_seconds": first[min(len(first) - 1, round(0.95 * len(first)))] if first else None,
        "first_token_seconds": [round(each, 4) for each in first],
        "core_seconds": cpu_seconds,
        "core_seconds_a_request": cpu_seconds / len(replies) if replies else None,
        "cores": cpu_seconds / seconds,
        "prompt_tokens": max((reply.prompt_token_count for reply in replies), default=0),
        "tokens_an_answer": statistics.mean(reply.token_count for reply in replies) if replies else None,
    }


def _busy_share(busy: BusyShares | None, began_at: float, ended_at: float) -> float | None:
    if busy is None:
        return None
    try:
        return busy.mean(began_at, ended_at)
    except ValueError as error:  # no sample: the counter is missing, not the cell
        print(f"GPU: {error}")
        return None
