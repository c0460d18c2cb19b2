"""What every section of the benchmark uses: options, the table it makes, the requests it sends.

Things that are compared run in turn, A B A B, in one run: on a shared machine only their ratios count.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from preprocessor.models.family import Model
from preprocessor.traffic.load import WRONG, Ask, Load
from tests.bench.service.alone import Spent
from tests.bench.service.asks import video_ask
from tests.bench.service.checksum import Checksum
from tests.bench.service.load import Clients, Traffic
from tests.bench.service.watched import WatchedServer

GIB = 1 << 30


class WrongAnswer(Exception):
    """An answer is not what the pipeline makes: nothing that was timed counts."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure.

    Attributes:
        worker_count: Of the server under load.
        seconds_each: How long a load lasts; what was begun by then is ended.
        rounds: Of things that run in turn.
        scaling_worker_counts: Ascending.
        client_process_count: Processes of callers.
    """

    fps: tuple[float, ...]
    concurrencies: tuple[int, ...]
    worker_count: int
    seconds_each: float
    rounds: int
    scaling_worker_counts: tuple[int, ...]
    client_process_count: int
    image_count: int = 100


@dataclass(frozen=True, slots=True)
class Section:
    """One table; `figures` are its unrounded rows, `missed` a line for each requirement that is not met."""

    title: str
    notes: str
    head: tuple[str, ...]
    rows: list[list[str]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def add(self, cells: list[str], **figures: Any) -> None:
        self.rows.append(cells)
        self.figures.append(figures)

    def require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.missed.append(f"{self.title}: {otherwise}")


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What the sections share.

    Attributes:
        clip: The 30 s clip of the workload.
    """

    model: Model
    clip: bytes
    clients: Clients
    options: Options

    def ask(self, fps: float) -> Ask:
        return video_ask(self.model, f"{fps:g} fps", self.clip, fps)

    def run(self, server: WatchedServer, *asks: Ask, **load: Any) -> Traffic:
        """Put a load on a server.

        Raises:
            WrongAnswer: An answer that was read is not the pipeline's.
        """
        traffic = self.clients.run(server.address, Load(asks, check=Checksum, **load))
        if wrong := [end.ask.name for end in traffic.endings if end.outcome == WRONG]:
            raise WrongAnswer(f"{len(wrong)} answers to {wrong[0]} are not what the pipeline makes")
        return traffic

    def warm_up(self, server: WatchedServer, *asks: Ask) -> None:
        """A few requests, all of whose answers are checked."""
        count = len(asks) * (2 + int(server.metrics()["preprocessor_workers"]))
        traffic = self.run(server, *asks, concurrency=2, count=count, check_share=1)
        if refusals := traffic.refusals():
            raise WrongAnswer(f"refused on an idle server: {dict(refusals)}")


def sized(workers: int, budget_bytes: int) -> tuple[str, ...]:
    """A server's options for so many workers and so much memory; it queues whatever comes."""
    return ("--workers", str(workers), "--memory-budget", str(budget_bytes), "--max-queued", "1024")


def one_core_rate(spent: list[Spent]) -> float:
    """Requests a second that one core can do, by the CPU that they take."""
    return 1e3 / statistics.median(one.cpu_ms_each for one in spent)
