"""Callers of the service: each keeps one request open and asks again as soon as it is answered.

Bytes go out and come in as they are, so that the callers cost little beside the server under test. An answer is read only
where it is to be checked. Imports nothing heavy: a process of callers starts in half a second.
"""

from __future__ import annotations

import asyncio
import random
import resource
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import grpc.aio
import numpy as np
from google.rpc import error_details_pb2, status_pb2

from preprocessor.client import CHANNEL_OPTIONS
from tests.bench.service.checksum import Checksum

PREPARE = "/preprocessor.v1.Preprocessor/Prepare"

ANSWERED = "answered, not read"
LEFT = "the caller went away"
WRONG = "not the pipeline's answer"

_START_SECONDS = 0.3  # by then every process of callers has its channel
_MAX_BACK_OFF_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, ready for the wire.

    Attributes:
        messages: Serialized `PrepareRequest`s, the spec first.
        right_outcome: The `checksum.of_tensors` of the right answer, or the reason of the right refusal.
    """

    name: str
    messages: tuple[bytes, ...]
    right_outcome: str


@dataclass(frozen=True, slots=True)
class Load:
    """What callers are to do, and for how long: `seconds`, or `count` requests; all that was begun is then ended.

    Attributes:
        asks: Asked in turn by all callers together.
        beside: Each is asked again and again by a caller of its own, from before the first of `asks` until after the last.
        check_share: So many of the answers are read and compared, the first for one; 0 reads none.
        cancel_share: So many of the requests are cancelled at a random moment within `cancel_within_seconds`.
    """

    asks: tuple[Ask, ...]
    concurrency: int
    seconds: float = float("inf")
    count: float = float("inf")
    beside: tuple[Ask, ...] = ()
    check_share: float = 0.0
    cancel_share: float = 0.0
    cancel_within_seconds: float = 0.0
    timeout_seconds: float = 300.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """How one request ended. Times are on the machine's monotonic clock.

    Attributes:
        outcome: The right one, ANSWERED, LEFT, WRONG, or a refusal's reason (the status code's name where there
            is none).
    """

    ask: Ask
    began_at_seconds: float
    ended_at_seconds: float
    outcome: str

    @property
    def is_answered(self) -> bool:
        return self.outcome in (ANSWERED, self.ask.right_outcome)

    @property
    def seconds(self) -> float:
        return self.ended_at_seconds - self.began_at_seconds


@dataclass(frozen=True, slots=True)
class Traffic:
    """All that a load brought about, and the CPU that its callers took."""

    endings: list[Ending]
    client_cpu_seconds: float

    @property
    def answered(self) -> list[Ending]:
        return [ending for ending in self.endings if ending.is_answered]

    @property
    def wall_seconds(self) -> float:
        return max(end.ended_at_seconds for end in self.endings) - min(end.began_at_seconds for end in self.endings)

    @property
    def answers_a_second(self) -> float:
        return len(self.answered) / self.wall_seconds

    def outcomes(self) -> Counter[tuple[str, str]]:
        """How often each (ask's name, outcome) came; "right" stands for the right one."""
        return Counter(
            (end.ask.name, "right" if end.outcome == end.ask.right_outcome else end.outcome) for end in self.endings
        )

    def refusals(self) -> Counter[str]:
        return Counter(ending.outcome for ending in self.endings if not ending.is_answered)

    def latency_ms(self, *percents: float) -> list[float]:
        return [float(np.percentile([end.seconds * 1e3 for end in self.answered], percent)) for percent in percents]


class Clients:
    """Processes of callers."""

    def __init__(self, processes: ProcessPoolExecutor, process_count: int) -> None:
        self._processes = processes
        self._process_count = process_count

    def run(self, address: str, load: Load) -> Traffic:
        """Put a load on a server, divided over the processes."""
        of = min(self._process_count, load.concurrency)
        start_at = time.monotonic() + _START_SECONDS
        shares = [
            replace(
                load,
                asks=load.asks[share % len(load.asks) :] + load.asks[: share % len(load.asks)],
                concurrency=int(_share(load.concurrency, share, of)),
                count=_share(load.count, share, of),
                beside=load.beside[share::of],
                seed=load.seed + share,
            )
            for share in range(of)
        ]
        parts = [part.result() for part in [self._processes.submit(_drive, address, s, start_at) for s in shares]]
        return Traffic([end for part in parts for end in part.endings], sum(part.client_cpu_seconds for part in parts))


@contextmanager
def clients(process_count: int) -> Iterator[Clients]:
    """So many processes of callers, started."""
    with ProcessPoolExecutor(process_count, get_context("spawn")) as processes:
        started = [processes.submit(time.sleep, 0.2) for _ in range(process_count)]  # long enough to take one each
        for one in started:
            one.result()
        yield Clients(processes, process_count)


async def drive(address: str, load: Load, start_at_seconds: float = 0.0) -> Traffic:
    """Put a load on a server from this event loop."""
    cpu_seconds = _own_cpu_seconds()
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        await asyncio.wait_for(channel.channel_ready(), load.timeout_seconds)
        await asyncio.sleep(start_at_seconds - time.monotonic())
        callers = _Callers(channel, load)
        return Traffic(await callers.run(), _own_cpu_seconds() - cpu_seconds)


def _share(whole: float, share: int, of: int) -> float:
    return whole if whole == float("inf") else whole // of + (share < whole % of)


def _drive(address: str, load: Load, start_at_seconds: float) -> Traffic:
    return asyncio.run(drive(address, load, start_at_seconds))


class _Callers:
    def __init__(self, channel: grpc.aio.Channel, load: Load) -> None:
        self._channel = channel
        self._load = load
        self._random = random.Random(load.seed)
        self._begun_count = 0
        self._endings: list[Ending] = []

    async def run(self) -> list[Ending]:
        load, begun = self._load, asyncio.Event()
        async with asyncio.TaskGroup() as others:
            beside = [others.create_task(self._ask_on(ask, begun)) for ask in load.beside]
            if beside:
                await begun.wait()
            stop_at = time.monotonic() + load.seconds
            async with asyncio.TaskGroup() as callers:
                for _ in range(load.concurrency):
                    callers.create_task(self._call(stop_at))
            for task in beside:
                task.cancel()
        return self._endings

    async def _call(self, stop_at_seconds: float) -> None:
        """One caller's requests, one after another."""
        load = self._load
        while self._begun_count < load.count and time.monotonic() < stop_at_seconds:
            ask = load.asks[self._begun_count % len(load.asks)]
            is_read = load.check_share > 0 and (not self._begun_count or self._random.random() < load.check_share)
            self._begun_count += 1
            leaves = self._random.random() < load.cancel_share
            patience_seconds = self._random.uniform(0, load.cancel_within_seconds) if leaves else None
            began, back_off_seconds = time.monotonic(), 0.0
            try:
                async with asyncio.timeout(patience_seconds):
                    outcome, back_off_seconds = await _ask(self._channel, ask, load.timeout_seconds, is_read)
            except TimeoutError:
                outcome = LEFT
            self._endings.append(Ending(ask, began, time.monotonic(), outcome))
            await asyncio.sleep(min(back_off_seconds, _MAX_BACK_OFF_SECONDS))

    async def _ask_on(self, ask: Ask, begun: asyncio.Event) -> None:
        while True:
            outcome, _ = await _ask(self._channel, ask, self._load.timeout_seconds, False, begun)
            if outcome != ANSWERED:
                raise RuntimeError(f"{ask.name}, asked beside the load, was refused: {outcome}")


async def _ask(
    channel: grpc.aio.Channel, ask: Ask, timeout_seconds: float, is_read: bool, begun: asyncio.Event | None = None
) -> tuple[str, float]:
    """The outcome, and how long to wait before asking again. Leaving it cancels the call."""
    call: Any = channel.stream_stream(PREPARE)(iter(ask.messages), timeout=timeout_seconds)  # type: ignore[arg-type]
    checksum = Checksum()
    try:
        async for message in call:
            if is_read:
                checksum.add(message)
            if begun is not None:
                begun.set()
    except grpc.aio.AioRpcError as error:
        return _refusal(error)
    finally:
        call.cancel()
    if not is_read:
        return ANSWERED, 0.0
    return ask.right_outcome if checksum.result() == ask.right_outcome else WRONG, 0.0


def _refusal(error: grpc.aio.AioRpcError) -> tuple[str, float]:
    """`ErrorInfo.reason`, and the delay that the service asks for."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata()).get("grpc-status-details-bin", b""))
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(retry)
    return info.reason or error.code().name, retry.retry_delay.ToTimedelta().total_seconds()


def _own_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
