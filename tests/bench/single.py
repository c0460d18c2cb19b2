"""Single figures: a long prompt's text, a server's start and rest, and how near `preprocessor plan` comes to the truth."""

from __future__ import annotations

import statistics
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from preprocessor import pipeline
from preprocessor.cli.capacity import demand_of
from preprocessor.config import Limits
from preprocessor.media.checks import keep_going
from preprocessor.models.family import Model
from preprocessor.models.family.item import plan_item
from preprocessor.models.family.prompt import render_prompt
from preprocessor.text.placeholders import expand_text
from preprocessor.text.tokenizer import encode
from preprocessor.traffic.seed import TEXT
from preprocessor.types.plan import Plan
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PreparationRequest,
    Sampling,
    TextPart,
)
from tests.bench import goals
from tests.bench.options import Bench
from tests.bench.section import Section, Table
from tests.bench.service.watched import START_SECONDS, WatchedServer
from tests.media import moving_shapes_clip, photo

_PROMPT_TOKEN_COUNT = 13_000
_PROMPT_ROUNDS = 30
_ESTIMATE_CODECS: dict[str, dict[str, Any]] = {
    "H.264": {},
    "HEVC": {"codec": "libx265", "options": (("x265-params", "log-level=none"),)},
    "VP9": {"codec": "libvpx-vp9", "container": "webm", "options": (("cpu-used", "8"),)},
}
_POLL_SECONDS = 0.005


def prompt(bench: Bench) -> Section:
    """Template, token ids and positions of a prompt of 13,000 tokens."""
    request = long_request(bench.model, bench.clip)
    limits = Limits()
    item, layout = plan_item(bench.model, request, request.media[0], 0, limits, keep_going)
    text, _ = render_prompt(bench.model, request, limits)
    expanded = expand_text(bench.model.tokenizer, bench.model.placeholders, text.text, [layout.spans])
    steps: dict[str, Callable[[], object]] = {
        "template": lambda: render_prompt(bench.model, request, limits),
        "placeholders and token ids": lambda: expand_text(
            bench.model.tokenizer, bench.model.placeholders, text.text, [layout.spans]
        ),
        "positions": lambda: bench.model.family.prompt_tensors(expanded, [item], bench.model),
    }
    medians = {name: _median_ms(step) for name, step in steps.items()}
    section = Section(
        "A long prompt",
        f"{len(expanded.token_ids):,} tokens: the seed clip at 8 fps, and text; median of {_PROMPT_ROUNDS}.",
        [Table(("", "wall, ms"))],
    )
    for name, ms in medians.items():
        section.add([name, f"{ms:.2f}"], step=name, wall_ms=ms)
    whole = sum(medians.values())
    section.add(["together", f"{whole:.2f}"], step="together", wall_ms=whole)
    section.check(f"text of {len(expanded.token_ids):,} tokens", whole, "≤", goals.PROMPT_MS, "ms")
    return section


def long_request(model: Model, clip: bytes) -> PreparationRequest:
    """The seed clip at 8 fps and as much prose as makes the prompt 13,000 tokens long."""

    def request_of(text: str) -> PreparationRequest:
        message = Message("user", (MediaPart("clip"), TextPart(text)))
        return PreparationRequest(ChatPrompt((message,)), (Media("clip", Modality.VIDEO, clip, Sampling(fps=8)),))

    base_count = len(pipeline.plan(model, request_of(TEXT), Limits()).token_ids)
    missing = _PROMPT_TOKEN_COUNT - base_count
    sentence = " Tell what moves, from where to where, and when it turns."
    each = len(encode(model.tokenizer, sentence))
    return request_of(TEXT + sentence * max(0, round(missing / each)))


def _plan(model: Model, request: PreparationRequest) -> Plan:
    plan = pipeline.plan(model, request, Limits())
    assert isinstance(plan, Plan)
    return plan


def estimates(bench: Bench) -> Section:
    """What `preprocessor plan` expects a request to cost, beside what it costs."""
    section = Section(
        "Estimates",
        f"Core-seconds of `pipeline.prepare`, as `workload.estimate` expects them from headers, and as measured: the least of "
        f"{bench.options.rounds}.",
        [Table(("", "estimated, ms", "measured, ms", "off by"))],
    )
    for name, medium in _estimated_media():
        request = PreparationRequest(ChatPrompt((Message("user", (MediaPart(medium.key),)),)), (medium,))
        planned = _plan(bench.model, request)
        expected = demand_of(planned, request.media).core_seconds - demand_of(planned, request.media, 0.0).core_seconds
        took = min(_cpu_seconds(lambda: pipeline.prepare(bench.model, request)) for _ in range(bench.options.rounds))  # noqa: B023
        factor = max(expected / took, took / expected)
        cells = [name, f"{expected * 1e3:.1f}", f"{took * 1e3:.1f}", f"{factor:.2f}"]
        section.add(cells, name=name, expected_seconds=expected, cpu_seconds=took)
        section.check(f"estimate of {name}, off by a factor of", factor, "≤", goals.ESTIMATE_FACTOR)
    return section


def _estimated_media() -> Iterator[tuple[str, Media]]:
    for codec, settings in _ESTIMATE_CODECS.items():
        clip = moving_shapes_clip(seconds=6, width=640, height=360, **settings)
        for fps in (1.0, 8.0):
            yield f"6 s of 640x360 {codec} at {fps:g} fps", Media("clip", Modality.VIDEO, clip, Sampling(fps=fps))
    yield "a photo of 2000x1500", Media("photo", Modality.IMAGE, photo(2000, 1500))


def start(bench: Bench) -> Section:
    """A server's start, a worker's, and what an idle server holds."""
    ready, workers, idle, used = [], [], [], []
    for _ in range(bench.options.start_count):
        began = time.perf_counter()
        with WatchedServer("--workers", "2", "--memory-budget", "2GiB", "--cache-share", "0") as server:
            _until(lambda server=server: _is_ready(server))  # type: ignore[misc]
            ready.append(time.perf_counter() - began)
            _until(server.is_at_rest)
            idle.append(server.pss_bytes())
            workers.append(worker_seconds(server))
            _until(server.is_at_rest)
            bench.warm_up(server, bench.ask(1))
            _until(server.is_at_rest)
            used.append(server.pss_bytes())
    section = Section(
        "Start and rest",
        f"`preprocessor serve --workers 2`, {bench.options.start_count} times, medians. Ready: from the command to the first 200 "
        "of /readyz. A worker: from the death of one to the next in its place. Memory: PSS of the whole tree, four worker "
        "processes among them (two for each core).",
        [Table(("", "measured"))],
    )
    medians = [statistics.median(values) for values in (ready, workers, idle, used)]
    section.add(["ready", f"{medians[0]:.2f} s"], figure="ready_seconds", samples=ready)
    section.add(["a worker", f"{medians[1] * 1e3:.0f} ms"], figure="worker_seconds", samples=workers)
    section.add(["idle", f"{medians[2] / 1e6:.0f} MB"], figure="idle_bytes", samples=idle)
    section.add(["at rest after a few clips", f"{medians[3] / 1e6:.0f} MB"], figure="used_bytes", samples=used)
    section.check("`serve` is ready", medians[0], "≤", goals.READY_SECONDS, "s")
    section.check("a worker is ready", medians[1], "≤", goals.WORKER_SECONDS, "s")
    section.check("idle memory, two workers", medians[2] / 1e6, "≤", goals.IDLE_MB, "MB")
    return section


def worker_seconds(server: WatchedServer) -> float:
    """From the death of a worker until another is in its place, its connection to the service made."""
    before = server.metrics()
    victim = server.workers()[0]
    began = time.perf_counter()
    victim.kill()
    ends = "preprocessor_worker_ends_total"

    def is_replaced() -> bool:
        now = server.metrics()
        is_noticed = now.get(ends, 0.0) > before.get(ends, 0.0)
        return is_noticed and now["preprocessor_worker_processes"] == before["preprocessor_worker_processes"]

    _until(is_replaced)
    return time.perf_counter() - began


def _median_ms(step: Callable[[], object]) -> float:
    def samples() -> Iterator[float]:
        for _ in range(_PROMPT_ROUNDS):
            began = time.perf_counter()
            step()
            yield (time.perf_counter() - began) * 1e3

    return statistics.median(samples())


def _cpu_seconds(step: Callable[[], object]) -> float:
    began = time.thread_time()
    step()
    return time.thread_time() - began


def _is_ready(server: WatchedServer) -> bool:
    try:
        with urllib.request.urlopen(f"http://{server.http_address}/readyz", timeout=10) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return False


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {START_SECONDS:g} s")
        time.sleep(_POLL_SECONDS)
