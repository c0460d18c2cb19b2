"""`preprocessor bench`, and the load generator behind it, against real servers."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import multiprocessing
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc.aio
import pytest

from preprocessor.client import Prompt
from preprocessor.client.routing import MEDIA_DIGEST
from preprocessor.models.family import Model
from preprocessor.traffic import callers
from preprocessor.traffic.callers import NobodyAnswers, drive
from preprocessor.traffic.load import ANSWERED, NOT_SENT, Ending, Load, ask_prepare
from preprocessor.traffic.processes import CallersLost, put_load
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import Caller, chat, image, serving, video
from tests.waiting import GROWING_SECONDS, PATIENCE_SECONDS, eventually

COMMAND = (sys.executable, "-m", "preprocessor", "bench")
TEXT = ask_prepare("text", Prompt(chat("Hi")))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "photo.jpg"
    path.write_bytes(photo(160, 120))
    return path


class Unhurried:
    """A server that answers every call after a delay, whatever the concurrency."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.open_count = self.most_open_count = 0

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        return grpc.stream_stream_rpc_method_handler(self._answer)

    async def _answer(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.open_count += 1
        self.most_open_count = max(self.most_open_count, self.open_count)
        try:
            await self.wait()
            yield b""
        finally:
            self.open_count -= 1

    async def wait(self) -> None:
        await asyncio.sleep(self.seconds)


class Stalling(Unhurried):
    """A server that answers nobody until some time after its first call, and then everybody at once.

    Attributes:
        answers_from_seconds: When that is, on the monotonic clock.
    """

    answers_from_seconds = 0.0

    async def wait(self) -> None:
        self.answers_from_seconds = self.answers_from_seconds or time.monotonic() + self.seconds
        await asyncio.sleep(max(0.0, self.answers_from_seconds - time.monotonic()) + 0.01)


class Proxy(Unhurried):
    """A server that notes which medium each call names, as a proxy in front of replicas would see it."""

    def __init__(self) -> None:
        super().__init__(0.0)
        self.named: list[str] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        self.named += [str(value) for key, value in details.invocation_metadata if key == MEDIA_DIGEST]
        return super().service(details)


@contextlib.asynccontextmanager
async def running(handler: Unhurried) -> AsyncIterator[str]:
    """The address of a server of its own."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([handler])  # type: ignore[list-item]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def unhurried(seconds: float) -> AsyncIterator[tuple[Unhurried, str]]:
    server = Unhurried(seconds)
    async with running(server) as address:
        yield server, address


def connect_to(address: str) -> functools.partial[grpc.aio.Channel]:
    return functools.partial(grpc.aio.insecure_channel, address)


async def run(*arguments: str | Path | float, status: int = 0) -> tuple[str, str]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *map(str, arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = (part.decode() for part in await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS))
    assert process.returncode == status, errors
    return output, errors


async def test_a_closed_loop_reports_answers(caller: Caller, picture: Path) -> None:
    output, _ = await run(
        "--address", caller.server.address, "--image", picture, "--text", "What is it?", "--concurrency", 3,
        "--seconds", 1, "--warm-up-seconds", 0.2, "--json",
    )  # fmt: skip
    figures = json.loads(output)
    expected = await caller.prepare(chat(image(data=photo(160, 120)), "What is it?"))
    assert (figures["loop"], figures["concurrency"], figures["failed"]) == ("closed", 3, [])
    assert figures["due_count"] == figures["answered_count"] > 0
    assert figures["row_count"] == figures["answered_count"] * len(expected.tensors["pixel_patches"])
    assert figures["received_bytes"] > figures["answered_count"] * expected.tensors["pixel_patches"].nbytes
    latency = figures["latency_ms"]
    assert 0 < latency["p50"] <= latency["p99"] <= latency["p100"]
    assert figures["first_message_ms"]["p50"] <= latency["p50"]


@pytest.mark.parametrize("repeats", [False, True])
async def test_media_are_new_to_the_service_unless_they_are_to_repeat(
    model: Model, picture: Path, repeats: bool
) -> None:
    async with serving(model) as caller:
        for method in ("prepare", "count-tokens"):
            for seconds in GROWING_SECONDS:
                output, _ = await run(
                    "--address", caller.server.address, "--method", method, "--image", picture, "--processes", 2,
                    "--concurrency", 2, "--seconds", seconds, "--warm-up-seconds", 0, "--json",
                    *(["--repeat-media"] if repeats else []),
                )  # fmt: skip
                figures = json.loads(output)
                if figures["answered_count"] > 2:
                    break
            assert figures["repeats_media"] is repeats
            assert figures["answered_count"] > 2
            if method == "prepare":
                assert figures["item_count"] == figures["answered_count"]
                assert (figures["cached_item_count"] > 0) is repeats
        samples = await caller.samples()
    found = samples["preprocessor_cache_items_total", "hit"] + samples["preprocessor_cache_items_total", "joined"]
    assert (found > 0) is repeats


async def test_a_proxy_is_told_of_one_medium_if_it_repeats_and_else_of_another_with_each_request() -> None:
    ask = ask_prepare("photo", Prompt(chat(image(data=photo(16, 16)), "What is it?")))
    ((_, own_name),) = ask.metadata
    for new_share, name_count in ((0.0, 1), (1.0, 5)):
        proxy = Proxy()
        async with running(proxy) as address:
            load = Load((ask,), 2, count=5, new_media_share=new_share, metadata=(("x-request-id", "1"),))
            await drive(connect_to(address), load, lambda _: None)
        assert len(proxy.named) == 5
        assert len(set(proxy.named)) == name_count
        assert (own_name in proxy.named) is (new_share == 0)


async def test_an_open_loop_asks_at_its_rate_from_several_processes(caller: Caller) -> None:
    output, _ = await run(
        "--address", caller.server.address, "--text", "Hi", "--rate", 20, "--seconds", 2, "--warm-up-seconds", 0.5,
        "--processes", 2, "--connections", 2, "--json",
    )  # fmt: skip
    figures = json.loads(output)
    assert (figures["loop"], figures["offered_per_second"], figures["due_count"]) == ("open", 20, 40)
    assert figures["answered_count"] == 40


async def test_tokens_can_be_counted_and_the_table_says_so(caller: Caller, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(moving_shapes_clip(1, width=96, height=64))
    output, _ = await run(
        "--address", caller.server.address, "--method", "count-tokens", "--video", clip, "--fps", 2,
        "--concurrency", 1, "--seconds", 0.5, "--warm-up-seconds", 0,
    )  # fmt: skip
    assert "CountTokens, clip.mp4; closed loop, 1 callers" in output
    assert "p99.9" in output
    assert " tokens, " in output


async def test_refusals_are_reported_and_without_any_answer_the_exit_status_is_1(caller: Caller) -> None:
    output, _ = await run(
        "--address", caller.server.address, "--text", "Hi", "--model", "another", "--concurrency", 1,
        "--seconds", 0.5, "--warm-up-seconds", 0, status=1,
    )  # fmt: skip
    assert "NOT_FOUND MODEL_NOT_FOUND" in output


async def test_a_closed_port_is_reported() -> None:
    with pytest.raises(NobodyAnswers):
        await drive(connect_to("127.0.0.1:1"), Load((TEXT,), 1), lambda _: None, connect_seconds=0.2)


@pytest.mark.parametrize(
    ("option", "value"), [("--rate", "0"), ("--concurrency", "-1"), ("--seconds", "inf"), ("--warm-up-seconds", "nan")]
)
async def test_an_impossible_load_is_refused(option: str, value: str) -> None:
    _, errors = await run(f"{option}={value}", status=2)
    assert option in errors


async def test_a_stall_shows_in_an_open_loop_s_latencies() -> None:
    """Two may be open, 20 become due within 0.5 s, and the server answers nobody in the first 0.6 s: 18 wait for it."""
    endings: list[Ending] = []
    server = Stalling(0.6)
    async with running(server) as address:
        await drive(connect_to(address), Load((TEXT,), 2, seconds=0.5, rate_per_second=40), endings.append)
    assert len(endings) == 20
    assert server.most_open_count == 2
    assert {ending.outcome for ending in endings} == {ANSWERED}
    waited = sorted(endings, key=lambda ending: ending.due_at_seconds)[2:]
    assert all(
        ending.due_at_seconds < server.answers_from_seconds <= ending.began_at_seconds <= ending.ended_at_seconds
        for ending in waited
    )
    assert all(ending.seconds >= server.answers_from_seconds - ending.due_at_seconds for ending in waited)


async def test_requests_past_their_deadline_are_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The callers' own machine stalls for 40 s, on a clock of the test's own, while 100 requests become due."""
    endings: list[Ending] = []
    stalled_seconds = 0.0
    monkeypatch.setattr(callers, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + stalled_seconds))

    def stall_once(ending: Ending) -> None:
        nonlocal stalled_seconds
        stalled_seconds = 40.0
        endings.append(ending)

    async with unhurried(0.01) as (_, address):
        load = Load((TEXT,), 100, seconds=40, rate_per_second=2.5, timeout_seconds=20)
        await drive(connect_to(address), load, stall_once)
    unsent = [ending for ending in endings if ending.outcome == NOT_SENT]
    assert len(endings) == 100
    assert len(unsent) >= 50
    assert all(ending.seconds > 20 and ending.received_bytes == 0 for ending in unsent)
    assert endings[-1].outcome == ANSWERED


async def test_a_closed_loop_keeps_its_concurrency() -> None:
    endings: list[Ending] = []
    async with unhurried(0.01) as (server, address):
        await drive(connect_to(address), Load((TEXT,), 5, count=50), endings.append)
    assert len(endings) == 50
    assert server.most_open_count == 5


async def test_a_full_queue_is_counted_with_its_reason(model: Model) -> None:
    ask = ask_prepare("clip", Prompt(chat(video(sampling=pb.Sampling(fps=8))), {"clip": moving_shapes_clip()}))
    async with serving(model, worker_count=1, max_queued_count=1) as caller:
        load = Load((ask,), 12, seconds=1.5)
        tally = await asyncio.to_thread(put_load, connect_to(caller.server.address), load)
    assert tally.answered_count > 0
    assert tally.endings["RESOURCE_EXHAUSTED", "QUEUE_FULL"] > 0
    assert tally.due_count == tally.answered_count + tally.endings.total()


async def test_progress_is_reported_while_it_runs(caller: Caller) -> None:
    seen: list[int] = []
    load = Load((TEXT,), 2, seconds=1.5)
    tally = await asyncio.to_thread(
        put_load, connect_to(caller.server.address), load, progress=lambda so_far: seen.append(so_far.answered_count)
    )
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[-1] == tally.answered_count


async def test_an_interrupt_ends_the_load_and_reports_what_there_was(caller: Caller) -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "--address", caller.server.address, "--text", "Hi", "--seconds", "600", "--json",
        "--warm-up-seconds", "0", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    before = requests_served(caller)
    await eventually(lambda: requests_served(caller) >= before + 20)
    process.send_signal(signal.SIGINT)
    output, errors = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
    assert process.returncode == 0, errors.decode()
    figures = json.loads(output)
    assert figures["answered_count"] > 0
    assert figures["seconds"] < 600


async def test_killed_caller_processes_are_reported(caller: Caller) -> None:
    def kill_all(_: object) -> None:
        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(CallersLost):
        await asyncio.to_thread(
            put_load, connect_to(caller.server.address), Load((TEXT,), 2, seconds=60), progress=kill_all
        )


def requests_served(caller: Caller) -> float:
    """Of the server that this process runs."""
    return sum(
        sample.value
        for family in caller.server.metrics.registry.collect()
        for sample in family.samples
        if sample.name == "preprocessor_requests_total"
    )
