"""Paths that do the same work, timed in turn, A B C A B C: on a shared machine only their ratios count."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from preprocessor.types.timing import Timings


class CannotDo(Exception):
    """A path cannot do this workload at all; says why."""


class Disagreement(Exception):
    """Paths that should make the same do not: nothing is timed."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One request. `stages_ms` is CPU, where the path tells its stages apart."""

    wall_ms: float
    cpu_ms: float
    stages_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Timed:
    """One path's samples, a round each."""

    samples: list[Sample] = field(default_factory=list)

    @property
    def wall_ms(self) -> float:
        return statistics.median(sample.wall_ms for sample in self.samples)

    @property
    def cpu_ms(self) -> float:
        return statistics.median(sample.cpu_ms for sample in self.samples)

    @property
    def stages_ms(self) -> dict[str, float]:
        """Medians; what no stage took is `other`."""
        names = dict.fromkeys(name for sample in self.samples for name in sample.stages_ms)
        stages = {name: statistics.median(s.stages_ms.get(name, 0.0) for s in self.samples) for name in names}
        return stages | {"other": max(0.0, self.cpu_ms - sum(stages.values()))}


Runner = Callable[[], Sample]
"""Does the work once."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a path made.

    Attributes:
        pixels: Rows [P, F]; of `bound`, as many bytes.
        grid_thw: Where the path makes one, else None.
        frame_count: Frames or images that were decoded.
        timings: Where it spent its time.
    """

    pixels: npt.NDArray[Any]
    grid_thw: list[list[int]] | None
    frame_count: int
    timings: Timings


@contextmanager
def stage(timings: Timings, name: str) -> Iterator[None]:
    """As `Timings.stage`, but counts every thread of the process: other people's decoders start their own."""
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        timings.add(name, (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3)


def timed_here(path: Callable[[], Result]) -> Runner:
    """Times a path in this process. Results are freed, and garbage collected, outside the timed part."""

    def run() -> Sample:
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        result = path()
        wall_ms, cpu_ms = (time.perf_counter() - wall) * 1e3, (time.process_time() - cpu) * 1e3
        return Sample(wall_ms, cpu_ms, {name: stage.cpu_ms for name, stage in result.timings.stages.items()})

    return run


def run_in_turn(runners: Mapping[str, Runner], rounds: int) -> dict[str, Timed]:
    """Each once a round, in turn."""
    timed = {name: Timed() for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            timed[name].samples.append(run())
    return timed


def ratio(timed: Mapping[str, Timed], over: str, under: str) -> tuple[float, float] | None:
    """Of the median wall times and of the median CPU times; None where one of the two could not take part."""
    if over not in timed or under not in timed:
        return None
    return timed[over].wall_ms / timed[under].wall_ms, timed[over].cpu_ms / timed[under].cpu_ms
