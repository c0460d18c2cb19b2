"""More workers: processes behind one event loop or fronts, threads, and the pool alone, whose rows nobody sends."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from preprocessor.config.machine import default_front_count
from preprocessor.traffic.load import Ask
from tests.bench.options import Bench
from tests.bench.section import Section, Table
from tests.bench.service.alone import PipelineAlone, PoolAlone
from tests.bench.service.sizes import GIB, one_core_rate, sized
from tests.bench.service.watched import WatchedServer, process_cpu_seconds

BUDGET_BYTES = 4 * GIB
_HEAD = (
    "workers are", "workers", "requests/s", "speed-up", "efficiency", "CPU, ms a request", "service, cores", "fronts, cores",
    "clients, cores",
)  # fmt: skip


def scaling(bench: Bench) -> Section:
    """More workers: processes behind one event loop or fronts, threads, and the pool alone, whose rows nobody sends."""
    options = bench.options
    fps = options.load_fps[0]
    section = Section(
        f"Scaling at {fps:g} fps",
        f"Four callers a worker, {options.seconds_each:g} s each, {options.client_process_count} processes of callers on the "
        f"same {os.cpu_count()} cores. Efficiency: requests/s ÷ (workers × 1 ÷ CPU seconds of `pipeline.prepare`).",
        [Table(_HEAD)],
    )
    ask = bench.ask(fps)
    with PipelineAlone() as pipeline:
        core_rate = one_core_rate([pipeline.run(ask, 10), pipeline.run(ask, 10)])
    first: dict[str, Any] = {}
    for workers in options.scaling_worker_counts:
        for kind, measure in _KINDS.items():
            figures = measure(bench, ask, workers)
            rate = figures["requests_a_second"]
            first.setdefault(kind, rate)
            efficiency = rate / (workers * core_rate)
            section.add(
                [
                    kind,
                    str(workers),
                    *(f"{value:.2f}" for value in (rate, rate / first[kind], efficiency)),
                    f"{figures['cpu_ms']:.0f}",
                    *(_cores(figures[name]) for name in ("service_cores", "front_cores", "client_cores")),
                ],
                kind=kind,
                workers=workers,
                efficiency=efficiency,
                one_core_rate=core_rate,
                **figures,
            )
    return section


def _scale_service(bench: Bench, ask: Ask, workers: int, *options: str) -> dict[str, Any]:
    with WatchedServer(*sized(workers, BUDGET_BYTES), *options) as server:
        bench.warm_up(server, ask)
        tree, own = server.cpu_seconds(), process_cpu_seconds(server.process)
        fronts = _front_cpu_seconds(server)
        traffic = bench.run(server, ask, concurrency=4 * workers, seconds=bench.options.seconds_each)
        return {
            "requests_a_second": traffic.answers_a_second,
            "cpu_ms": (server.cpu_seconds() - tree) / len(traffic.answered) * 1e3,
            "service_cores": (process_cpu_seconds(server.process) - own) / traffic.wall_seconds,
            "front_cores": (_front_cpu_seconds(server) - fronts) / traffic.wall_seconds,
            "client_cores": traffic.client_cpu_seconds / traffic.wall_seconds,
        }


def _scale_pool(bench: Bench, ask: Ask, workers: int) -> dict[str, Any]:
    with PoolAlone(workers, BUDGET_BYTES) as pool:
        pool.run(ask, count=2 * workers, concurrency=2 * workers)
        spent = pool.run(ask, seconds=bench.options.seconds_each, concurrency=4 * workers)
        rate = spent.requests_a_second
        alone = dict.fromkeys(("service_cores", "front_cores", "client_cores"))
        return {"requests_a_second": rate, "cpu_ms": spent.cpu_ms_each, **alone}


def _front_cpu_seconds(server: WatchedServer) -> float:
    return sum(map(process_cpu_seconds, server.fronts()))


_KINDS: dict[str, Callable[[Bench, Ask, int], dict[str, Any]]] = {
    "processes": lambda bench, ask, workers: _scale_service(bench, ask, workers, "--fronts", "1"),
    "processes, fronts": lambda bench, ask, workers: _scale_service(
        bench, ask, workers, "--fronts", str(max(2, default_front_count()))
    ),
    "threads": lambda bench, ask, workers: _scale_service(bench, ask, workers, "--fronts", "1", "--in-process"),
    "processes, pool alone": _scale_pool,
}


def _cores(used: float | None) -> str:
    return "" if used is None else f"{used:.2f}"
