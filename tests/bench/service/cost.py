"""What one request costs at a time: CPU beside the pipeline alone, and wall time on one worker and on two."""

from __future__ import annotations

import math
import statistics

from tests.bench import goals
from tests.bench.options import Bench
from tests.bench.section import Section, Table
from tests.bench.service.alone import PipelineAlone, PoolAlone
from tests.bench.service.asks import video_ask
from tests.bench.service.sizes import GIB, sized
from tests.bench.service.watched import WatchedServer
from tests.media import repeated_clip

# A machine that is shared drifts within seconds: a ratio of neighbours in time is worth more than a longer look at each.
_SHORT_ROUNDS = 8


def cost(bench: Bench) -> Section:
    """CPU of one request: the pipeline, the pool around it, the service around that."""
    rounds = _SHORT_ROUNDS * bench.options.rounds
    section = Section(
        "Cost: CPU of a request",
        f"One worker, one request at a time, {rounds} short rounds in turn; medians, and medians of each round's ratio. The "
        "faster quarter: the first quartile of each, where the machine's other tenants weigh least. The whole tree of "
        "processes is counted.",
        [Table(("", "pipeline, ms", "pool, ms", "service, ms", "pool ÷ pipeline", "service ÷ pipeline", "client, ms"))],
    )
    with PipelineAlone() as pipeline, PoolAlone(1, 2 * GIB) as pool, WatchedServer(*sized(1, 2 * GIB)) as server:
        for fps in bench.options.load_fps:
            ask = bench.ask(fps)
            bench.warm_up(server, ask)
            count = math.ceil(bench.options.seconds_each / 8 / (pipeline.run(ask, 3).cpu_ms_each / 1e3))
            spent: dict[str, list[float]] = {"pipeline": [], "pool": [], "service": [], "client": []}
            for _ in range(rounds):
                spent["pipeline"].append(pipeline.run(ask, count).cpu_ms_each)
                spent["pool"].append(pool.run(ask, count=count).cpu_ms_each)
                before = server.cpu_seconds()
                traffic = bench.run(server, ask, concurrency=1, count=count)
                spent["service"].append((server.cpu_seconds() - before) / count * 1e3)
                spent["client"].append(traffic.client_cpu_seconds / count * 1e3)
            pooled, served = (
                statistics.median(a / b for a, b in zip(spent[name], spent["pipeline"], strict=True))
                for name in ("pool", "service")
            )
            middle = {name: statistics.median(values) for name, values in spent.items()}
            fastest = {name: statistics.quantiles(values, n=4)[0] for name, values in spent.items()}
            section.add(
                _cost_cells(ask.name, middle, pooled, served),
                fps=fps,
                requests_a_round=count,
                ratios={"pool": pooled, "service": served},
                cpu_ms=spent,
            )
            alone = fastest["pipeline"]
            section.add(
                _cost_cells(
                    f"{ask.name}, the faster quarter", fastest, fastest["pool"] / alone, fastest["service"] / alone
                ),
                fps=fps,
                fastest_cpu_ms=fastest,
            )
            section.check(f"pool ÷ pipeline, CPU, {ask.name}", pooled, "≤", goals.POOL_TO_PIPELINE)
            section.check(f"service ÷ pipeline, CPU, {ask.name}", served, "≤", goals.SERVICE_TO_PIPELINE)
    return section


def _cost_cells(name: str, cpu_ms: dict[str, float], pooled: float, served: float) -> list[str]:
    times = [f"{cpu_ms[part]:.1f}" for part in ("pipeline", "pool", "service")]
    return [name, *times, f"{pooled:.2f}", f"{served:.2f}", f"{cpu_ms['client']:.1f}"]


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
