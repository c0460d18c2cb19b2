"""What one request costs at a time: CPU beside the pipeline alone, and wall time on one worker and on two."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

from preprocessor.traffic.load import Ask
from tests.bench import goals
from tests.bench.options import Bench
from tests.bench.section import Section, Table
from tests.bench.service.alone import PipelineAlone, PoolAlone
from tests.bench.service.asks import video_ask
from tests.bench.service.sender import SenderAlone, record
from tests.bench.service.sizes import GIB, sized
from tests.bench.service.watched import WatchedServer
from tests.media import repeated_clip

# A machine that is shared drifts within seconds: a ratio of neighbours in time is worth more than a longer look at each.
_SHORT_ROUNDS = 8
_SHARED = "service by shared memory"
_PARTS = ("pipeline", "pool", "service", "gRPC alone", "client", _SHARED)
_RATIOS = ("pool", "service", "the least", _SHARED)


def cost(bench: Bench) -> Section:
    """CPU of one request: the pipeline, the pool around it, the service around that."""
    rounds = _SHORT_ROUNDS * bench.options.rounds
    section = Section(
        "Cost: CPU of a request",
        f"One worker, one request at a time, {rounds} short rounds in turn; medians, and medians of each round's ratio. The "
        "faster quarter: the first quartile of each, where the machine's other tenants weigh least. The whole tree of "
        "processes is counted. gRPC alone: a server that only sends the same answer, out of memory that another process has "
        "just written, whose CPU does not count. The least: the pipeline and gRPC alone, beside the pipeline. By shared memory: "
        "rows go to memory of the caller's, which it uses again; the caller's own CPU is not in it.",
        [Table(("", *(f"{part}, ms" for part in _PARTS), *(f"{part} ÷ pipeline" for part in _RATIOS)))],
    )
    with PipelineAlone() as pipeline, PoolAlone(1, 2 * GIB) as pool, _allowing_server() as server:
        for fps in bench.options.load_fps:
            ask = bench.ask(fps)
            bench.warm_up(server, ask)
            bench.run(server, ask, concurrency=1, count=3, check_share=1, is_by_shared_memory=True)
            seconds_each = pipeline.run(ask, 3).cpu_ms_each / 1e3
            count = math.ceil(bench.options.seconds_each / 8 / seconds_each)
            spent: dict[str, list[float]] = {part: [] for part in _PARTS}
            with SenderAlone(record(server.address, ask), seconds_each) as sender:
                bench.run(sender, ask, concurrency=1, count=3, check_share=1)
                for _ in range(rounds):
                    spent["pipeline"].append(pipeline.run(ask, count).cpu_ms_each)
                    spent["pool"].append(pool.run(ask, count=count).cpu_ms_each)
                    server_ms, client_ms = _served(bench, server, ask, count)
                    spent["service"].append(server_ms)
                    spent["client"].append(client_ms)
                    spent[_SHARED].append(_served(bench, server, ask, count, is_by_shared_memory=True)[0])
                    spent["gRPC alone"].append(_served(bench, sender, ask, count)[0])
            ratios = _ratios({part: _median_ratio(values, spent["pipeline"]) for part, values in spent.items()})
            middle = {part: statistics.median(values) for part, values in spent.items()}
            section.add(
                _cost_cells(ask.name, middle, ratios), fps=fps, requests_a_round=count, ratios=ratios, cpu_ms=spent
            )
            fastest = {part: statistics.quantiles(values, n=4)[0] for part, values in spent.items()}
            fastest_ratios = _ratios({part: ms / fastest["pipeline"] for part, ms in fastest.items()})
            section.add(
                _cost_cells(f"{ask.name}, the faster quarter", fastest, fastest_ratios), fps=fps, fastest_cpu_ms=fastest
            )
            section.check(f"pool ÷ pipeline, CPU, {ask.name}", ratios["pool"], "≤", goals.POOL_TO_PIPELINE)
            section.check(f"service ÷ pipeline, CPU, {ask.name}", ratios["service"], "≤", goals.SERVICE_TO_PIPELINE)
            section.check(f"{_SHARED} ÷ pipeline, CPU, {ask.name}", ratios[_SHARED], "≤", goals.SERVICE_TO_PIPELINE)
    return section


def _allowing_server() -> WatchedServer:
    return WatchedServer(*sized(1, 2 * GIB), "--caller-shared-memory")


def _served(
    bench: Bench, server: WatchedServer | SenderAlone, ask: Ask, count: int, *, is_by_shared_memory: bool = False
) -> tuple[float, float]:
    """CPU of a request, in milliseconds: the server's, and its caller's."""
    before = server.cpu_seconds()
    traffic = bench.run(server, ask, concurrency=1, count=count, is_by_shared_memory=is_by_shared_memory)
    return (server.cpu_seconds() - before) / count * 1e3, traffic.client_cpu_seconds / count * 1e3


def _median_ratio(values: Sequence[float], to: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(values, to, strict=True))


def _ratios(to_pipeline: Mapping[str, float]) -> dict[str, float]:
    """The columns of _RATIOS, from each part beside the pipeline."""
    least = 1 + to_pipeline["gRPC alone"]
    return {"the least": least} | {part: to_pipeline[part] for part in ("pool", "service", _SHARED)}


def _cost_cells(name: str, cpu_ms: Mapping[str, float], ratios: Mapping[str, float]) -> list[str]:
    return [name, *(f"{cpu_ms[part]:.1f}" for part in _PARTS), *(f"{ratios[part]:.2f}" for part in _RATIOS)]


def latency(bench: Bench) -> Section:
    """One request at a time: a long clip is split over idle workers."""
    options = bench.options
    section = Section(
        "Latency of one request on an idle server",
        f"{options.rounds} rounds of 5 requests in turn; medians, from the first byte sent to the last received.",
        [Table(("", "1 worker, ms", "2 workers, ms", "ratio"))],
    )
    asks = [bench.ask(8), video_ask(bench.model, "2 minutes at 1 fps", repeated_clip(bench.clip, 4), 1)]
    with WatchedServer(*sized(1, 2 * GIB)) as one, WatchedServer(*sized(2, 2 * GIB)) as two:
        for ask in asks:
            samples: dict[int, list[float]] = {1: [], 2: []}
            for server in (one, two):
                bench.warm_up(server, ask)
            for _ in range(options.rounds):
                for workers, server in ((1, one), (2, two)):
                    samples[workers] += bench.run(server, ask, concurrency=1, count=5).latency_ms(50)
            single, double = (statistics.median(values) for values in samples.values())
            cells = [ask.name, f"{single:.0f}", f"{double:.0f}", f"{double / single:.2f}"]
            section.add(cells, clip=ask.name, wall_ms=samples, ratio=double / single)
    return section
