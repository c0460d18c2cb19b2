"""Cores for the servers of a bench that its callers do not use: `BENCH_SERVER_CPUS=0-15`, as for taskset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "BENCH_SERVER_CPUS"
_ALL = os.sched_getaffinity(0)


def parse_cpus(ranges: str) -> set[int]:
    """`0,2-4` → {0, 2, 3, 4}."""
    found: set[int] = set()
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def leave_to_servers() -> None:
    """Keep this thread, and all that it starts, off the servers' cores, if some are set apart.

    Raises:
        ValueError: no core would be left for the callers.
    """
    if ranges := os.environ.get(VARIABLE):
        mine = _ALL - parse_cpus(ranges)
        if not mine:
            raise ValueError(f"{VARIABLE}={ranges} leaves no core for the callers")
        os.sched_setaffinity(0, mine)


@contextmanager
def on_server_cpus() -> Iterator[None]:
    """What this thread starts meanwhile runs on the servers' cores, if some are set apart. The thread returns to its own."""
    ranges = os.environ.get(VARIABLE)
    if not ranges:
        yield
        return
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, parse_cpus(ranges))
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)
