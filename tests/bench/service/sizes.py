"""How a server is sized, and what one core can do."""

from __future__ import annotations

import statistics

from tests.bench.service.alone import Spent

GIB = 1 << 30


def sized(workers: int, budget_bytes: int) -> tuple[str, ...]:
    """A server's options for so many workers and so much memory. It queues whatever comes, and makes the same media anew."""
    return (
        "--workers",
        str(workers),
        "--memory-budget",
        str(budget_bytes),
        "--max-queued",
        "1024",
        "--cache-share",
        "0",
    )


def one_core_rate(spent: list[Spent]) -> float:
    """Requests a second that one core can do, by the CPU that they take."""
    return 1e3 / statistics.median(one.cpu_ms_each for one in spent)
