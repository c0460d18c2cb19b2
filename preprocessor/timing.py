"""How long each stage took: wall and CPU milliseconds, summed over the items of one request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class StageTime:
    """Milliseconds spent in one stage; `cpu_ms` counts the calling thread only."""

    wall_ms: float = 0.0
    cpu_ms: float = 0.0


@dataclass(slots=True)
class Timings:
    """Stage name → time, in the order in which stages first ran."""

    stages: dict[str, StageTime] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside the block to `name`, whether or not it raises."""
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.add(name, (time.perf_counter() - wall) * 1e3, (time.thread_time() - cpu) * 1e3)

    def laps(self) -> Laps:
        """A stopwatch for stages that follow one another, started now."""
        return Laps(self)

    def add(self, name: str, wall_ms: float, cpu_ms: float = 0.0) -> None:
        total = self.stages.setdefault(name, StageTime())
        total.wall_ms += wall_ms
        total.cpu_ms += cpu_ms

    def merge(self, other: Timings) -> None:
        for name, spent in other.stages.items():
            self.add(name, spent.wall_ms, spent.cpu_ms)


class Laps:
    """Adds the time since the last reading to a stage: half the clock readings of a `Timings.stage` for each, in a hot loop."""

    __slots__ = ("_cpu", "_timings", "_wall")

    def __init__(self, timings: Timings) -> None:
        self._timings = timings
        self.restart()

    def restart(self) -> None:
        """Leave out what was done since the last reading."""
        self._wall, self._cpu = time.perf_counter(), time.thread_time()

    def end(self, name: str) -> None:
        """The time since the last reading belongs to the stage `name`."""
        wall, cpu = self._wall, self._cpu
        self.restart()
        self._timings.add(name, (self._wall - wall) * 1e3, (self._cpu - cpu) * 1e3)
