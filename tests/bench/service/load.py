"""Loads on a server under test, with all that came of them: every ending is kept, and answers can be compared.

Imports nothing heavy: a process of callers starts in half a second.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import grpc.aio
import numpy as np

from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.traffic import callers
from preprocessor.traffic.load import Ending, Load, shares

_START_SECONDS = 0.3  # by then every process of callers has its channel


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

    def __init__(self, processes: ProcessPoolExecutor, process_count: int, connection_count: int) -> None:
        self._processes = processes
        self._process_count = process_count
        self._connection_count = connection_count

    def run(self, address: str, load: Load) -> Traffic:
        """Put a load on a server, divided over the processes."""
        start_at = time.monotonic() + _START_SECONDS
        parts = [
            self._processes.submit(_drive, address, share, start_at, self._connection_count)
            for share in shares(load, self._process_count)
        ]
        results = [part.result() for part in parts]
        return Traffic(
            [end for part in results for end in part.endings], sum(part.client_cpu_seconds for part in results)
        )


@contextmanager
def clients(process_count: int, connection_count: int = 1) -> Iterator[Clients]:
    """So many processes of callers, started, with so many connections each."""
    with ProcessPoolExecutor(process_count, get_context("spawn")) as processes:
        started = [processes.submit(time.sleep, 0.2) for _ in range(process_count)]  # long enough to take one each
        for one in started:
            one.result()
        yield Clients(processes, process_count, connection_count)


async def drive(
    address: str,
    load: Load,
    start_at_seconds: float = 0.0,
    *,
    endings: list[Ending] | None = None,
    connection_count: int = 1,
) -> Traffic:
    """Put a load on a server from this event loop. `endings` gets each request's ending as it comes."""
    endings = [] if endings is None else endings
    cpu_seconds = time.process_time()
    options = (*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1))  # a connection for each channel
    connect = functools.partial(grpc.aio.insecure_channel, address, options=options)

    async def when_to_start() -> float:
        return start_at_seconds

    await callers.drive(connect, load, endings.append, when_to_start=when_to_start, connection_count=connection_count)
    return Traffic(endings, time.process_time() - cpu_seconds)


def _drive(address: str, load: Load, start_at_seconds: float, connection_count: int) -> Traffic:
    return asyncio.run(drive(address, load, start_at_seconds, connection_count=connection_count))
