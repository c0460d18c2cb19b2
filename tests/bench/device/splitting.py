"""One clip at a time on an idle service: a long one is cut at keyframes and decoded by several workers."""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc

from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.bench.device.asking import question
from tests.bench.device.clips import HD, LONG, SEED
from tests.bench.service.watched import WatchedServer

PREPARE = "/preprocessor.v1.Preprocessor/Prepare"
WORKER_COUNTS = (1, 2, 4, 8, 16)


def splitting(*, rounds: int, is_quick: bool = False) -> dict[str, Any]:
    """By clip and by workers, milliseconds from the first byte sent to the last received."""
    asks = {f"{SEED}, 8 fps": _prepare_messages(SEED, 8)}
    if not is_quick:
        asks |= {f"{LONG}, 1 fps": _prepare_messages(LONG, 1), f"{HD}, 2 fps": _prepare_messages(HD, 2)}
    counts = [count for count in WORKER_COUNTS if count <= len(os.sched_getaffinity(0))]
    samples: dict[str, dict[int, list[float]]] = {name: {count: [] for count in counts} for name in asks}
    with ExitStack() as stack, ThreadPoolExecutor(len(counts)) as starting:
        servers = [
            WatchedServer("--workers", str(count), "--memory-budget", "2GiB", "--cache-share", "0") for count in counts
        ]
        started = list(starting.map(stack.enter_context, servers))
        for name, messages in asks.items():
            for number in range(-1, rounds):
                for count, server in zip(counts, started, strict=True):
                    wall_ms = _wall_ms(server.address, messages)
                    if number >= 0:
                        samples[name][count].append(wall_ms)
    medians = {name: {count: statistics.median(times) for count, times in by.items()} for name, by in samples.items()}
    return {"wall_ms": samples, "median_ms": medians, "rounds": rounds}


def _prepare_messages(name: str, fps: float) -> list[bytes]:
    first, *chunks = question(fps, max_tokens=1, name=name)
    messages = [pb.PrepareRequest(spec=first.spec.prompt), *(pb.PrepareRequest(chunk=each.chunk) for each in chunks)]
    return [message.SerializeToString() for message in messages]


def _wall_ms(address: str, messages: list[bytes]) -> float:
    """Answers are counted and not read."""
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(PREPARE, None, None)
        began = time.perf_counter()
        received = sum(len(message) for message in call(iter(messages), timeout=120))
        wall_ms = (time.perf_counter() - began) * 1e3
    assert received, "an answer holds something"
    return wall_ms
