"""What the cores of a machine can do at once: `python -m tests.bench.service.all_cores --processes 1 2 4`.

`pipeline.prepare` alone in so many processes, with nothing between them. Where cores share caches, memory channels or, as
hardware threads, their arithmetic units, many do less than so many times what one does on an idle machine. A service with as many
workers cannot do more.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from preprocessor.models.family import Model
from preprocessor.models.registry import load_model
from preprocessor.traffic.load import Ask
from preprocessor.traffic.seed import seed_clip
from tests.bench.cpus import on_server_cpus
from tests.bench.service.alone import PipelineAlone
from tests.bench.service.asks import video_ask


def together(pipelines: Sequence[PipelineAlone], ask: Ask, count: int) -> tuple[float, float]:
    """Requests a second of all of them, `count` each, and milliseconds of CPU of one request."""
    with ThreadPoolExecutor(len(pipelines)) as threads:
        spent = list(threads.map(lambda one: one.run(ask, count), pipelines))
    rate = sum(one.requests_a_second for one in spent)
    return rate, sum(one.cpu_ms_each for one in spent) / len(spent)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.service.all_cores", description=__doc__)
    parser.add_argument("--fps", type=float, nargs="+", default=[1.0, 8.0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, len(os.sched_getaffinity(0))])
    parser.add_argument("--count", type=int, default=20, help="requests of each process (default: %(default)s)")
    options = parser.parse_args(arguments)
    model = load_model("qwen3-vl")
    assert isinstance(model, Model)
    with ExitStack() as stack:
        with on_server_cpus():
            pipelines = [stack.enter_context(PipelineAlone()) for _ in range(max(options.processes))]
            ask = video_ask(model, "warm-up", seed_clip(), 1.0)
            together(pipelines, ask, 1)
        for fps in options.fps:
            ask = video_ask(model, f"{fps:g} fps", seed_clip(), fps)
            for count in options.processes:
                rate, cpu_ms = together(pipelines[:count], ask, options.count)
                print(
                    f"{fps:g} fps, {count:2} processes: {rate:6.2f} requests/s, {cpu_ms:.0f} ms of CPU each", flush=True
                )


if __name__ == "__main__":
    main()
