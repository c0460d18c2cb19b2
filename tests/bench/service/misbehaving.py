"""What well-behaved callers get beside misbehaving ones, and what memory that takes:

    python -m tests.bench.service.misbehaving --seconds 600

The service runs in a cgroup of its budget and 1 GiB, where one can be made. Well-behaved callers ask for a photo in a loop,
alone at first, then beside callers of every kind in `tests.service.pressure`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Barrier, Event

from preprocessor.client import CallFailed, Client, Prompt
from preprocessor.client.retry import with_jitter
from tests.bench.cpus import leave_to_servers
from tests.bench.service.watched import WatchedServer
from tests.media import photo
from tests.service.cgroup import memory_group
from tests.service.conftest import chat, image
from tests.service.pressure import WAYS, Way, pressure

_MIB = 1 << 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.service.misbehaving", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="beside misbehaving callers (default: %(default)s)")
    parser.add_argument("--alone-seconds", type=float, default=15.0, help="before that (default: %(default)s)")
    parser.add_argument("--each", type=int, default=5, help="misbehaving callers of each kind (default: %(default)s)")
    parser.add_argument("--callers", type=int, default=4, help="well-behaved callers (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="of the service (default: %(default)s)")
    parser.add_argument("--budget", type=int, default=256, help="of the service, MiB (default: %(default)s)")
    options = parser.parse_args(arguments)
    leave_to_servers()
    serve = ("--workers", str(options.workers), "--memory-budget", f"{options.budget}MiB", "--max-media-bytes", "30MiB")
    with (
        memory_group((options.budget + 1024) * _MIB) as group,
        WatchedServer(*serve, under=() if group is None else group.under) as server,
    ):
        ask_for(server.address, options.callers, 5.0)
        alone, _ = ask_for(server.address, options.callers, options.alone_seconds)
        with misbehaving(server.address, options.each) as calls, server.watched_pss() as memory_bytes:
            beside, refusals = ask_for(server.address, options.callers, options.seconds)
        result = {
            "misbehaving_callers": len(WAYS) * options.each,
            "requests_per_second_alone": round(alone, 2),
            "requests_per_second_beside": round(beside, 2),
            "ratio": round(beside / alone, 3),
            "refusals_beside": dict(refusals),
            "misbehaving_calls": calls.value,
            "most_memory_mib": max(memory_bytes) // _MIB,
            "limit_mib": None if group is None else options.budget + 1024,
            "kills": None if group is None else group.kill_count,
            "is_running": server.process.is_running(),
        }
    print(json.dumps(result))


def ask_for(address: str, caller_count: int, seconds: float) -> tuple[float, Counter[str]]:
    """Requests per second of that many callers in a loop, and the reasons of refusals; each waits as these tell it to."""
    picture = photo(1024, 768)
    counts = [0] * caller_count
    refusals: Counter[str] = Counter()
    end = time.monotonic() + seconds

    def go_on(number: int) -> None:
        with Client(address, retry_seconds=0) as client:
            while time.monotonic() < end:
                try:
                    client.prepare(Prompt(chat(image("photo", picture))), timeout_seconds=120)
                    counts[number] += 1
                except CallFailed as failure:
                    if failure.retry_after_seconds is None:
                        raise
                    refusals[failure.reason] += 1
                    time.sleep(with_jitter(failure.retry_after_seconds))

    threads = [threading.Thread(target=go_on, args=(number,)) for number in range(caller_count)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - began), refusals


@contextmanager
def misbehaving(address: str, each: int) -> Iterator[Synchronized[int]]:
    """Misbehaving callers in processes of their own, one for each way; yields how many calls they have made in the end."""
    context = multiprocessing.get_context("spawn")
    count, stop = context.Value("i", 0), context.Event()
    begun = context.Barrier(len(WAYS) + 1)
    processes = [context.Process(target=_misbehave, args=(address, way, each, count, begun, stop)) for way in WAYS]
    for process in processes:
        process.start()
    begun.wait()
    try:
        yield count
    finally:
        stop.set()
        for process in processes:
            process.join()


def _misbehave(address: str, way: Way, each: int, count: Synchronized[int], begun: Barrier, stop: Event) -> None:
    os.nice(
        10
    )  # the callers' own cores, where they are few, go to the well-behaved first: what is measured is the service
    begun.wait()
    with pressure(address, (way,), each=each) as endings:
        stop.wait()
    with count.get_lock():
        count.value += sum(endings.values())


if __name__ == "__main__":
    main()
