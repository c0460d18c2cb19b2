"""How long one request takes on an idle server, by the cores that it may use."""

from __future__ import annotations

import statistics

from preprocessor.config.machine import available_cpu_count
from tests.bench import goals
from tests.bench.options import Bench
from tests.bench.section import Section, Table
from tests.bench.service.asks import video_ask
from tests.bench.service.one_call import OneCall, one_call
from tests.bench.service.sizes import GIB, sized
from tests.bench.service.watched import WatchedServer
from tests.media import moving_shapes_clip, repeated_clip

_CALLS_A_ROUND = 5


def latency(bench: Bench) -> Section:
    """One request at a time: a clip is cut over idle workers, and made by several threads of each."""
    options, many = bench.options, max(2, available_cpu_count())
    section = Section(
        "Latency of one request on an idle server",
        f"{options.rounds} rounds of {_CALLS_A_ROUND} requests in turn; medians, from the first byte sent to the last received; "
        "of the first rows, from the last byte sent, with all workers.",
        [Table(("", "1 worker, ms", f"{many} workers, ms", "ratio", "first rows, ms"))],
    )
    hd_clip = repeated_clip(moving_shapes_clip(seconds=10, width=1280, height=720), 6)
    asks = [
        bench.ask(8),
        bench.ask(1),
        video_ask(bench.model, "2 minutes at 1 fps", repeated_clip(bench.clip, 4), 1),
        video_ask(bench.model, "1 minute of 720p at 2 fps", hd_clip, 2),
    ]
    reached = goals.ONE_REQUEST.get(many, goals.ONE_REQUEST[16] if many > 16 else {})
    with WatchedServer(*sized(1, 2 * GIB)) as one, WatchedServer(*sized(many, 2 * GIB)) as all_cores:
        for ask in asks:
            calls: dict[int, list[OneCall]] = {1: [], many: []}
            for server in (one, all_cores):
                bench.warm_up(server, ask)
            for _ in range(options.rounds):
                for workers, server in ((1, one), (many, all_cores)):
                    calls[workers] += [one_call(server.address, ask.messages) for _ in range(_CALLS_A_ROUND)]
            wall_ms = {workers: [call.wall_ms for call in those] for workers, those in calls.items()}
            single, several = (statistics.median(values) for values in wall_ms.values())
            first_rows_ms = statistics.median(call.first_rows_ms for call in calls[many])
            cells = [ask.name, f"{single:.0f}", f"{several:.0f}", f"{several / single:.2f}", f"{first_rows_ms:.0f}"]
            section.add(cells, clip=ask.name, wall_ms=wall_ms, ratio=several / single, first_rows_ms=first_rows_ms)
            section.check(
                f"{many} workers ÷ 1, one request, {ask.name}", several / single, "≤", reached.get(ask.name, 1.0)
            )
            section.check(f"first rows, {ask.name}", first_rows_ms, "≤", goals.FIRST_ROWS_MS, "ms")
    return section
