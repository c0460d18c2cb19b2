"""Many callers: throughput, latency and memory as they are added, and small requests beside large ones."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from preprocessor.traffic.load import Ask
from tests.bench import goals
from tests.bench.options import Bench
from tests.bench.section import Section, Table
from tests.bench.service.alone import PipelineAlone
from tests.bench.service.asks import image_ask, video_ask
from tests.bench.service.load import Traffic
from tests.bench.service.sizes import GIB, one_core_rate, sized
from tests.bench.service.watched import WatchedServer
from tests.media import photo, repeated_clip

BUDGET_BYTES, BESIDE_BUDGET_BYTES = 4 * GIB, 1 * GIB
IMAGE_SLOWDOWN = 3.0
_ALONE_COUNT = 10
_FEWEST_CALLERS = 8  # from here on the cores are to be busy
QUANTUM_MS = 4.0  # a tick at CONFIG_HZ=250, at which the kernel lets a process of higher weight in

_LOAD_HEAD = (
    "", "callers", "requests/s", "of the cores' rate", "p50, ms", "p99, ms", "server CPU, ms", "client CPU, ms",
    "server, cores", "peak memory, MiB", "refused", "compared",
)  # fmt: skip


def load(bench: Bench) -> Section:
    """Throughput, latency and memory as callers are added."""
    options = bench.options
    section = Section(
        f"Load: {options.worker_count} worker(s), --memory-budget 4GiB{', by shared memory' * options.is_by_shared_memory}",
        f"Closed loop, at least {options.seconds_each:g} s each, every request ended; one answer in 16 compared. One core's "
        "rate: 1 ÷ CPU seconds of `pipeline.prepare`, right before and right after each. The whole series "
        f"{options.load_rounds} times; figures are of the time with the median share. Memory: the most PSS of the whole tree.",
        [Table(_LOAD_HEAD)],
        plots={
            "throughput.svg": "Requests a second, p50 and p99 by callers",
            "memory.svg": "Peak memory by callers",
        },
    )
    allowed = ("--caller-shared-memory",) if options.is_by_shared_memory else ()
    with PipelineAlone() as pipeline, WatchedServer(*sized(options.worker_count, BUDGET_BYTES), *allowed) as server:
        for fps in options.load_fps:
            ask = bench.ask(fps)
            bench.warm_up(server, ask)
            points: dict[int, list[tuple[Traffic, dict[str, Any]]]] = {callers: [] for callers in options.concurrencies}
            alone = [pipeline.run(ask, _ALONE_COUNT)]
            for _ in range(options.load_rounds):
                for callers, samples in points.items():
                    traffic, figures = _load_point(bench, server, ask, callers)
                    alone.append(pipeline.run(ask, _ALONE_COUNT))
                    figures["cores_rate"] = options.worker_count * one_core_rate(alone[-2:])
                    figures["share_of_cores"] = figures["requests_a_second"] / figures["cores_rate"]
                    samples.append((traffic, figures))
            shares = {
                callers: [figures["share_of_cores"] for _, figures in samples] for callers, samples in points.items()
            }
            for callers, samples in points.items():
                by_share = sorted(samples, key=lambda sample: sample[1]["share_of_cores"])
                traffic, figures = by_share[(len(by_share) - 1) // 2]
                share, peak_bytes = figures["share_of_cores"], max(each["peak_pss_bytes"] for _, each in samples)
                section.add(
                    [ask.name, str(callers), f"{figures['requests_a_second']:.2f}", f"{share:.2f}"]
                    + [f"{figures[name]:.0f}" for name in ("p50_ms", "p99_ms", "server_cpu_ms", "client_cpu_ms")]
                    + [
                        f"{figures['server_cores']:.2f}",
                        f"{peak_bytes >> 20}",
                        _counts(traffic),
                        str(figures["compared_count"]),
                    ],
                    fps=fps,
                    shares=shares[callers],
                    **figures,
                )
                at = f"{callers} callers, {ask.name}"
                if callers >= _FEWEST_CALLERS:
                    section.check(f"share of the cores' rate, {at}", share, "≥", goals.SHARE_OF_CORES)
                most_bytes = BUDGET_BYTES + BESIDE_BUDGET_BYTES
                section.check(f"peak memory, {at}", peak_bytes / 1e6, "≤", most_bytes / 1e6, "MB")
                refusals = {reason for each, _ in samples for reason in each.refusals()}
                others = refusals - {"QUEUE_FULL", "MEMORY_BUDGET_FULL", "WAIT_EXCEEDS_DEADLINE"}
                section.check(f"refused for another reason than lack of room, {at}", len(others), "≤", 0)
            busy = {callers: several for callers, several in shares.items() if callers >= _FEWEST_CALLERS}
            if len(busy) > 1:
                figure = f"what is left of the share from {min(busy)} to {max(busy)} callers, {ask.name}"
                section.check(figure, left_by_trend(busy), "≥", goals.LEFT_OF_SHARE)
    return section


def left_by_trend(shares: Mapping[int, Sequence[float]]) -> float:
    """What remains of the first point's share at the last one, by the straight line through all samples over the logarithm of
    callers. A fall as callers are added is a slope; a neighbour's noise moves single points by a tenth either way.

    Args:
        shares: By callers, two points or more.
    """
    samples = [(math.log2(callers), share) for callers, several in shares.items() for share in several]
    slope, start = statistics.linear_regression(*zip(*samples, strict=True))
    first, last = (start + slope * math.log2(callers) for callers in (min(shares), max(shares)))
    return last / first


def _load_point(bench: Bench, server: WatchedServer, ask: Ask, callers: int) -> tuple[Traffic, dict[str, Any]]:
    before = server.cpu_seconds()
    with server.watched_pss() as samples:
        traffic = bench.run(
            server,
            ask,
            concurrency=callers,
            seconds=bench.options.seconds_each,
            check_share=1 / 16,
            is_by_shared_memory=bench.options.is_by_shared_memory,
        )
    server_cpu_seconds, count = server.cpu_seconds() - before, len(traffic.answered)
    p50, p99 = traffic.latency_ms(50, 99)
    return traffic, {
        "callers": callers,
        "requests_a_second": traffic.answers_a_second,
        "p50_ms": p50,
        "p99_ms": p99,
        "server_cpu_ms": server_cpu_seconds / count * 1e3,
        "server_cores": server_cpu_seconds / traffic.wall_seconds,  # fewer than it could use: others use them
        "client_cpu_ms": traffic.client_cpu_seconds / count * 1e3,
        "peak_pss_bytes": max(samples),
        "answered_count": count,
        "compared_count": sum(end.outcome == ask.right_outcome for end in traffic.endings),
        "refused": dict(traffic.refusals()),
    }


def fairness(bench: Bench) -> Section:
    """Small images while ten-minute videos are worked on."""
    options = bench.options
    section = Section(
        "Fairness: small images beside ten-minute videos",
        f"{options.image_count} images (160x120) one after another, alone and while 4 callers ask for a ten-minute video "
        f"(374x374, 1 fps) again and again; {options.rounds} rounds in turn, medians. Workers: one a core.",
        [Table(("", "p50, ms", "p95, ms", "most, ms"))],
    )
    small = image_ask(bench.model, "image", photo(160, 120))
    long = video_ask(bench.model, "ten minutes", repeated_clip(bench.clip, 20), 1)
    samples: dict[str, list[list[float]]] = {"alone": [], "beside videos": []}
    with WatchedServer(*sized(os.cpu_count() or 1, BUDGET_BYTES)) as server:
        bench.warm_up(server, small, long)
        for _ in range(options.rounds):
            for name, beside in (("alone", ()), ("beside videos", (long,) * 4)):
                traffic = bench.run(server, small, concurrency=1, count=options.image_count, beside=beside)
                samples[name].append(traffic.latency_ms(50, 95, 100))
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in samples.items()
    }
    for name, values in medians.items():
        section.add([name, *(f"{value:.1f}" for value in values)], case=name, p50_p95_max_ms=samples[name])
    idle, busy = medians["alone"][1], medians["beside videos"][1]
    section.check("p95 of images beside videos", busy, "≤", IMAGE_SLOWDOWN * idle + QUANTUM_MS, "ms")
    return section


def _counts(traffic: Traffic) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in traffic.refusals().items()) or "none"
