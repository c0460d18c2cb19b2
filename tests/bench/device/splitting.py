"""One clip at a time on an idle service: it is cut at keyframes for several workers, and made by several threads of each."""

from __future__ import annotations

import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from preprocessor.v1 import preprocessor_pb2 as pb
from tests.bench.device.asking import question
from tests.bench.device.clips import HD, LONG, SEED
from tests.bench.service.one_call import one_call
from tests.bench.service.watched import WatchedServer

WORKER_COUNTS = (1, 2, 4, 8, 16)


def splitting(*, rounds: int, is_quick: bool = False) -> dict[str, Any]:
    """By clip and by workers, milliseconds as `OneCall`'s: of the whole call, and to the first rows."""
    asks = {f"{SEED}, {fps} fps": _prepare_messages(SEED, fps) for fps in (8, 1)}
    if not is_quick:
        asks |= {f"{LONG}, 1 fps": _prepare_messages(LONG, 1), f"{HD}, 2 fps": _prepare_messages(HD, 2)}
    counts = [count for count in WORKER_COUNTS if count <= len(os.sched_getaffinity(0))]
    samples: dict[str, dict[int, list[float]]] = {name: {count: [] for count in counts} for name in asks}
    first_rows: dict[str, dict[int, list[float]]] = {name: {count: [] for count in counts} for name in asks}
    with ExitStack() as stack, ThreadPoolExecutor(len(counts)) as starting:
        servers = [
            WatchedServer("--workers", str(count), "--memory-budget", "2GiB", "--cache-share", "0") for count in counts
        ]
        started = list(starting.map(stack.enter_context, servers))
        for name, messages in asks.items():
            for number in range(-1, rounds):
                for count, server in zip(counts, started, strict=True):
                    call = one_call(server.address, messages)
                    if number >= 0:
                        samples[name][count].append(call.wall_ms)
                        first_rows[name][count].append(call.first_rows_ms)
    return {
        "wall_ms": samples,
        "median_ms": _medians(samples),
        "first_rows_median_ms": _medians(first_rows),
        "rounds": rounds,
    }


def _medians(samples: dict[str, dict[int, list[float]]]) -> dict[str, dict[int, float]]:
    return {name: {count: statistics.median(times) for count, times in by.items()} for name, by in samples.items()}


def _prepare_messages(name: str, fps: float) -> list[bytes]:
    first, *chunks = question(fps, max_tokens=1, name=name)
    messages = [pb.PrepareRequest(spec=first.spec.prompt), *(pb.PrepareRequest(chunk=each.chunk) for each in chunks)]
    return [message.SerializeToString() for message in messages]
