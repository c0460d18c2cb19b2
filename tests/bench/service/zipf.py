"""What the cache is worth where some clips are asked for more than others, and what it costs where none is asked for twice:

    python -m tests.bench.service.zipf
    python -m tests.bench.service.zipf --clips 40 --requests 150 --cache 64 --round-requests 10 --rounds 2   # to see that it runs

The clip of rank k is asked for 1 / k**s times as often as the first. Clips are of four kinds, and those of one kind differ in
their digest alone. The same sequence goes to a service with a cache and to one without. Hits stand beside those of a cache that
knew the sequence, and the bound that no cache exceeds (`bounds`). Then both services get media that are new each time, in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from preprocessor import pipeline
from preprocessor.client import Prompt
from preprocessor.models.family import Model
from preprocessor.models.registry import load_model
from preprocessor.traffic.load import Ask, Load, ask_prepare
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.bench.service.asks import request_of, video_ask
from tests.bench.service.bounds import Entry, most_saved, saved_by_belady
from tests.bench.service.checksum import Checksum
from tests.bench.service.load import Traffic, drive
from tests.bench.service.watched import WatchedServer
from tests.media import moving_shapes_clip

_MIB, _PAGE_BYTES = 1 << 20, 4096
_BESIDE_BUDGET_BYTES = 1 << 30  # deploy/OPERATIONS.md, "Memory"
_KINDS = ((4, 320, 240, 2.0), (8, 320, 240, 2.0), (8, 480, 360, 2.0), (16, 320, 240, 1.0))
"""Seconds, width and height in px, frames a second chosen: 2, 4, 8 and 4 MB of pixels with Qwen3-VL."""
_ZIPF_SHARE, _NEW_SHARE = 0.5, 0.25
_LEAST_RATIO = 0.99


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Print, and return, one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.service.zipf", description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--requests", type=int, default=5000, help="of the Zipf workload (default: %(default)s)")
    parser.add_argument("--exponent", type=float, default=1.0, help="s (default: %(default)s)")
    parser.add_argument("--cache", type=int, default=2048, help="for pixels, MiB (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="(default: %(default)s)")
    parser.add_argument("--callers", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=10, help="without repeats, of each service (default: %(default)s)"
    )
    parser.add_argument("--round-requests", type=int, default=200, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    clips = make_clips(load_model("qwen3-vl"), options.clips)  # type: ignore[arg-type]
    result = {
        "options": vars(options),
        "zipf": zipf(options, clips),
        "without_repeats": without_repeats(options, clips),
    }
    print(json.dumps(result, indent=2))
    return result


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip that can be asked for.

    Attributes:
        pixel_bytes: Memory that its pixels take.
    """

    ask: Ask
    pixel_bytes: int


def make_clips(model: Model, count: int) -> list[Clip]:
    """So many clips, no two with the same digest."""
    kinds = []
    for seconds, width, height, fps in _KINDS:
        data = moving_shapes_clip(seconds=seconds, width=width, height=height)
        ask = video_ask(model, f"{seconds} s, {width}x{height}", data, fps)
        pages = -(-pipeline.prepare(model, request_of(ask)).plan.pixel_bytes // _PAGE_BYTES)
        kinds.append((data, Clip(ask, pages * _PAGE_BYTES)))
    clips = []
    for number in range(count):
        data, like = kinds[number % len(kinds)]
        spec = pb.PrepareRequest.FromString(like.ask.messages[0]).spec
        (medium,) = spec.media
        medium.ClearField("size_bytes")
        ask = ask_prepare(like.ask.name, Prompt(spec, {medium.key: _with_number(data, number)}))
        clips.append(Clip(replace(ask, right_outcome=like.ask.right_outcome), like.pixel_bytes))
    return clips


def zipf(options: argparse.Namespace, clips: Sequence[Clip]) -> dict[str, Any]:
    """The same sequence with a cache of that size, and without."""
    chance = random.Random(0)
    by_rank = chance.sample(range(len(clips)), len(clips))
    weights = [rank**-options.exponent for rank in range(1, len(clips) + 1)]
    sequence = chance.choices(by_rank, weights, k=options.requests)
    entries = {number: Entry(clip.pixel_bytes) for number, clip in enumerate(clips)}
    capacity_bytes = options.cache * _MIB
    budget_bytes = round(capacity_bytes / _ZIPF_SHARE)
    load = _load(options, [clips[number].ask for number in sequence], options.requests)
    measured = {}
    for name, share in (("without", 0.0), ("with", _ZIPF_SHARE)):
        with WatchedServer(*_serve(options, budget_bytes, share)) as server:
            _warm_up(server, clips)
            with watched(server) as most:
                cpu_seconds = server.cpu_seconds()
                traffic = asyncio.run(drive(server.address, load))
                cpu_seconds = server.cpu_seconds() - cpu_seconds
            _check(traffic, options.requests)
            measured[name] = {
                **_figures(traffic, cpu_seconds),
                "items": server.metric_by("result", "preprocessor_cache_items_total"),
                "evictions": server.metric_by("reason", "preprocessor_cache_evictions_total"),
                "saved_cpu_seconds": server.metrics()["preprocessor_cache_saved_seconds_total"],
                "most": most,
                "is_memory_within_budget": most["pss_bytes"] <= budget_bytes + _BESIDE_BUDGET_BYTES
                and most["budget_used_bytes"] <= budget_bytes
                and most["cache_bytes"] <= share * budget_bytes,
            }
    items = measured["with"]["items"]
    return {
        "working_set_bytes": sum(clips[number].pixel_bytes for number in set(sequence)),
        "cache_bytes": capacity_bytes,
        "budget_bytes": budget_bytes,
        "hit_rate": (items["hit"] + items["joined"]) / options.requests,
        "hit_rate_knowing_the_future": saved_by_belady(sequence, entries, capacity_bytes) / options.requests,
        "hit_rate_bound": most_saved(sequence, entries, capacity_bytes) / options.requests,
        "throughput_ratio": measured["with"]["requests_per_second"] / measured["without"]["requests_per_second"],
        **measured,
    }


def without_repeats(options: argparse.Namespace, clips: Sequence[Clip]) -> dict[str, Any]:
    """Media that are new each time: a full cache that is never of use, beside none, in turn."""
    budget_bytes = round(options.cache * _MIB / _NEW_SHARE)
    load = _load(options, [clip.ask for clip in clips], options.round_requests, new_media_share=1.0)
    rounds: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    with (
        WatchedServer(*_serve(options, budget_bytes, 0.0)) as without,
        WatchedServer(*_serve(options, budget_bytes, _NEW_SHARE)) as with_cache,
    ):
        servers = {"without": without, "with": with_cache}
        for server in servers.values():
            _warm_up(server, clips)
        while sum(with_cache.metric_by("reason", "preprocessor_cache_evictions_total").values()) == 0:
            _check(asyncio.run(drive(with_cache.address, load)), options.round_requests)
        for number in range(options.rounds):
            for name in ("without", "with") if number % 2 else ("with", "without"):
                cpu_seconds = servers[name].cpu_seconds()
                traffic = asyncio.run(drive(servers[name].address, load))
                rounds[name].append(_figures(traffic, servers[name].cpu_seconds() - cpu_seconds))
                _check(traffic, options.round_requests)
        assert with_cache.metric_by("result", "preprocessor_cache_items_total")["hit"] == 0

    def ratio(figure: str) -> float:
        pairs = zip(rounds["with"], rounds["without"], strict=True)
        return statistics.median(with_it[figure] / without_it[figure] for with_it, without_it in pairs)

    return {
        "throughput_ratio": ratio("requests_per_second"),
        "cpu_ratio": ratio("cpu_ms"),
        "goal": _LEAST_RATIO,
        "rounds": rounds,
    }


@contextmanager
def watched(server: WatchedServer, every_seconds: float = 0.5) -> Iterator[dict[str, float]]:
    """The most of each figure meanwhile, looked at twice a second."""
    most: dict[str, float] = {}
    is_over = threading.Event()

    def look() -> None:
        metrics = server.metrics()
        now = {
            name: metrics[f"preprocessor_{name}"] for name in ("budget_used_bytes", "cache_bytes", "file_cache_bytes")
        }
        for name, value in (now | {"pss_bytes": server.pss_bytes()}).items():
            most[name] = max(most.get(name, 0.0), value)

    def watch() -> None:
        while not is_over.wait(every_seconds):
            look()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield most
    finally:
        is_over.set()
        watcher.join()
        look()


def _load(options: argparse.Namespace, asks: Sequence[Ask], count: int, new_media_share: float = 0.0) -> Load:
    return Load(
        tuple(asks),
        options.callers,
        count=count,
        check=Checksum,
        check_share=1 / 16,
        new_media_share=new_media_share,
        timeout_seconds=600,
    )


def _serve(options: argparse.Namespace, budget_bytes: int, share: float) -> tuple[str, ...]:
    sizes = ("--memory-budget", str(budget_bytes), "--cache-share", str(share))
    return ("--workers", str(options.workers), "--max-queued", "1024", *sizes)


def _warm_up(server: WatchedServer, clips: Sequence[Clip]) -> None:
    """Each worker has decoded something; nothing of it is asked for again."""
    asks = tuple(clip.ask for clip in clips[: len(_KINDS)])
    asyncio.run(drive(server.address, Load(asks, 8, count=4 * len(asks), new_media_share=1.0)))


def _check(traffic: Traffic, count: int) -> None:
    strange = {outcome for (_, outcome) in traffic.outcomes()} - {"right", "answered, not read"}
    assert not strange, strange
    assert len(traffic.endings) == count


def _figures(traffic: Traffic, cpu_seconds: float) -> dict[str, float]:
    p50, p99 = traffic.latency_ms(50, 99)
    return {
        "requests_per_second": traffic.answers_a_second,
        "cpu_ms": cpu_seconds / len(traffic.endings) * 1e3,
        "p50_ms": p50,
        "p99_ms": p99,
    }


def _with_number(mp4: bytes, number: int) -> bytes:
    """The file with a box that players skip."""
    return mp4 + (12).to_bytes(4, "big") + b"free" + number.to_bytes(4, "big")


if __name__ == "__main__":
    main()
