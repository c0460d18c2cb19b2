"""How long each stage took: wall and CPU milliseconds, summed over the items of one request; and when, for traces.

Times of day are of `time.monotonic`: all processes of a machine share its clock, and it never jumps.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class StageTime:
    """Milliseconds spent in one stage; `cpu_ms` counts the calling thread only.

    Attributes:
        started_seconds, ended_seconds: When it first began and last ended. A stage that alternates with others, a frame at a
            time, took less than the time between.
    """

    wall_ms: float = 0.0
    cpu_ms: float = 0.0
    started_seconds: float = math.inf
    ended_seconds: float = -math.inf


@dataclass(slots=True)
class Timings:
    """Stage name → time, in the order in which stages first ran.

    Attributes:
        process_id: Where it was measured.
        parts: The timings that were merged into this one: each worker's, and each wait.
    """

    stages: dict[str, StageTime] = field(default_factory=dict)
    process_id: int = field(default_factory=os.getpid)
    parts: list[Timings] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside the block to `name`, whether or not it raises."""
        wall, cpu = time.monotonic(), time.thread_time()
        try:
            yield
        finally:
            now = time.monotonic()
            self.add(name, (now - wall) * 1e3, (time.thread_time() - cpu) * 1e3, now)

    def stopwatch(self) -> Stopwatch:
        """A stopwatch for stages that follow one another, started now."""
        return Stopwatch(self)

    def add(self, name: str, wall_ms: float, cpu_ms: float = 0.0, ended_seconds: float | None = None) -> None:
        """Count time that ended at `ended_seconds`, or just now."""
        ended = time.monotonic() if ended_seconds is None else ended_seconds
        self._add(name, wall_ms, cpu_ms, ended - wall_ms / 1e3, ended)

    def merge(self, other: Timings) -> None:
        """Add all of another's time; the other is also kept in `parts`."""
        for name, spent in other.stages.items():
            self._add(name, spent.wall_ms, spent.cpu_ms, spent.started_seconds, spent.ended_seconds)
        self.parts.append(other)

    def shares(self) -> Iterator[tuple[int, str, StageTime]]:
        """(process, stage, time) of each part as measured, then of the stages that were measured here."""
        elsewhere: set[str] = set()
        for part in self.parts:
            elsewhere |= part.stages.keys()
            yield from part.shares()
        for name, spent in self.stages.items():
            if name not in elsewhere:
                yield self.process_id, name, spent

    def _add(self, name: str, wall_ms: float, cpu_ms: float, started_seconds: float, ended_seconds: float) -> None:
        total = self.stages.get(name)
        if total is None:
            total = self.stages[name] = StageTime()
        total.wall_ms += wall_ms
        total.cpu_ms += cpu_ms
        if started_seconds < total.started_seconds:
            total.started_seconds = started_seconds
        if ended_seconds > total.ended_seconds:
            total.ended_seconds = ended_seconds


class Stopwatch:
    """Adds the time since the last reading to a stage: half the clock readings of a `Timings.stage` for each, in a hot loop."""

    __slots__ = ("_cpu", "_timings", "_wall")

    def __init__(self, timings: Timings) -> None:
        self._timings = timings
        self.restart()

    def restart(self) -> None:
        """Discard the time since the last reading."""
        self._wall, self._cpu = time.monotonic(), time.thread_time()

    def end(self, name: str) -> None:
        """The time since the last reading belongs to the stage `name`."""
        wall, cpu = self._wall, self._cpu
        self.restart()
        self._timings.add(name, (self._wall - wall) * 1e3, (self._cpu - cpu) * 1e3, self._wall)
