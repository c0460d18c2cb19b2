"""`preprocessor plan`: how many cores, bytes and pods a load of one kind of request needs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Callable

from preprocessor.cli.capacity import Demand, Needs, demand_of, needs_of
from preprocessor.cli.output import columns
from preprocessor.cli.prompts import build_prompt, read_whole
from preprocessor.config import Limits
from preprocessor.config.machine import SINGLE_THREADED, use_one_thread
from preprocessor.errors import InvalidRequest

_MEASURED_COUNT = 5


def run(options: argparse.Namespace) -> int:
    os.environ.update(SINGLE_THREADED)  # a worker has one core; libraries ask when they are loaded
    from preprocessor import pipeline
    from preprocessor.models.registry import load_model

    use_one_thread()
    prompt = build_prompt(options)
    request = read_whole(prompt)
    model = load_model(prompt.spec.model or "qwen3-vl")
    if not model.plans_from_headers(request):
        raise InvalidRequest(
            f"{model.name} takes the generic path for this prompt, whose cost only a run tells: use `preprocessor bench`",
            reason="UNSUPPORTED_MODEL",
        )
    planned = pipeline.plan(model, request, Limits())
    seconds = None
    if options.measure:
        pipeline.prepare(model, request)  # the first is slower
        seconds = statistics.median(
            _cpu_seconds(lambda: pipeline.prepare(model, request)) for _ in range(_MEASURED_COUNT)
        )
    demand = demand_of(planned, request.media, seconds)
    needs = needs_of(demand, options.rps, options.cores_per_pod, options.utilization)
    if options.json:
        print(json.dumps({"one_request": dataclasses.asdict(demand), "load": dataclasses.asdict(needs)}))
    else:
        print(_table(options, demand, needs))
    return 0


def _cpu_seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def _table(options: argparse.Namespace, demand: Demand, needs: Needs) -> str:
    how = "measured here" if options.measure else "estimated"
    one = [
        ("one request", ""),
        (f"core-seconds, {how}", f"{demand.core_seconds:.3f}"),
        ("received", f"{demand.received_bytes / 1e6:.2f} MB"),
        ("sent", f"{demand.sent_bytes / 1e6:.2f} MB"),
        ("held in memory", f"{demand.held_bytes / 2**20:.0f} MiB"),
    ]
    load = [
        (f"{options.rps:g} a second, {options.utilization:.0%} of the cores busy", ""),
        ("cores", f"{needs.cores:.1f}"),
        (f"pods of {options.cores_per_pod} cores", f"{needs.pod_count}"),
        ("requests at once, all pods", f"{needs.requests_at_once:.1f}"),
        ("--memory-budget of a pod", f"{needs.memory_budget_bytes >> 20}MiB"),
        ("its container's memory limit", f"{needs.container_bytes >> 20}MiB"),
        ("network in", f"{needs.received_bytes_a_second * 8 / 1e9:.3f} Gbit/s"),
        ("network out, unless the engine is on the same host", f"{needs.sent_bytes_a_second * 8 / 1e9:.2f} Gbit/s"),
    ]
    return "\n".join([*columns(one), "", *columns(load)])
