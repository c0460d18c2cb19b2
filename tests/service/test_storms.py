"""Endurance: killed processes, cancelled calls, hours of load. The server is a separate process, observed from outside.

Every request must end, with the right answer or with a status that says why there is none, and afterwards the server must hold
nothing that it did not hold before. Most requests have media that are new to the server; the others may be answered from its
cache, or with the pixels that a worker writes for another request at that time.

The long forms are marked `slow`; `make soak` runs for SOAK_SECONDS.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import psutil
import pytest

from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.models.family import Model
from preprocessor.traffic.load import LEFT, PREPARE, STATUS_LOST, Ask, Ending, Load, with_salt
from tests.bench.service.asks import image_ask, text_ask, video_ask
from tests.bench.service.checksum import Checksum
from tests.bench.service.load import Traffic, drive
from tests.bench.service.watched import WatchedServer, seconds_until_idle
from tests.media import moving_shapes_clip, photo, repeated_clip, truncated_clip
from tests.service.pressure import (
    bad_spec,
    data_url,
    leaves,
    many_inline,
    pressure,
    slow_sender,
    told_too_large,
    too_large,
    unknown_key,
)
from tests.waiting import eventually, has_ended

DEADLINE_SECONDS = 200.0
MEMORY_SLACK_BYTES = 200 << 20
"""Pages of the arena that are retained for the next requests, and what heaps keep after the first request of each kind."""
LARGE = "1 minute clip at 8 fps"
"""A task of the long lane, with 75 MB of pixels."""
WORKER_PROCESS_COUNT = 4
NEW_MEDIA_SHARE = 0.7
REFUSED = (too_large, told_too_large, unknown_key, bad_spec, many_inline, data_url, leaves, slow_sender)
CROWDED = ("MEMORY_BUDGET_FULL", "UPLOAD_TOO_SLOW", "ANSWER_IDLE")
OPTIONS = ("--workers", "2", "--memory-budget", "1GiB", "--max-queued", "600")


@pytest.fixture(scope="module")
def server() -> Iterator[WatchedServer]:
    """A server that every test leaves with all workers and without requests."""
    with WatchedServer(*OPTIONS) as one:
        yield one


@pytest.fixture(scope="module")
def asks(model: Model) -> tuple[Ask, ...]:
    """Mixed requests with their right answers; the last can only be refused."""
    clip = moving_shapes_clip()
    return (
        image_ask(model, "image", photo(160, 120)),
        video_ask(model, "short clip", moving_shapes_clip(seconds=2, width=160, height=120), 2),
        video_ask(model, "30 s clip", clip, 1),
        text_ask(model, "text"),
        image_ask(model, "photo", photo(640, 480)),
        video_ask(model, LARGE, repeated_clip(clip, 2), 8),
        video_ask(model, "corrupt clip", truncated_clip(), 2),
    )


@pytest.mark.parametrize("count", [120, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
async def test_killed_workers_cause_clean_refusals_at_most(
    server: WatchedServer, asks: tuple[Ask, ...], count: int
) -> None:
    await warm_up(server, asks)
    memory_before, descriptors_before, ends_before = held_bytes(server), server.descriptor_count(), worker_ends(server)
    endings: list[Ending] = []
    async with killing(server, endings, every=3) as killed:
        in_pairs = tuple(ask for ask in asks for _ in range(2))  # so that some join what others have begun
        load = storm(in_pairs, count=count, check_share=1, new_media_share=0.5)
        traffic = await drive(server.address, load, endings=endings)
    assert len(killed) > count / 8, "there was no storm"
    assert_ended_well(traffic, count, "WORKER_LOST")
    await eventually(server.is_at_rest)
    assert worker_ends(server) - ends_before > len(killed) / 2
    assert_the_cache_took_part(server)
    await eventually(lambda: held_bytes(server) < memory_before + MEMORY_SLACK_BYTES)
    await eventually(lambda: server.descriptor_count() <= descriptors_before)
    assert_ended_well(await drive(server.address, storm(asks, count=len(asks), check_share=1)), len(asks))
    await assert_nothing_is_left(server)


@pytest.mark.parametrize("count", [60, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
async def test_calls_cancelled_at_random_moments_release_everything(
    server: WatchedServer, asks: tuple[Ask, ...], count: int, request: pytest.FixtureRequest
) -> None:
    await warm_up(server, asks)
    descriptors_before = server.descriptor_count()
    # Half of them ask for so much that it takes longer than that.
    mixed = asks + (by_name(asks, LARGE),) * len(asks)
    load = storm(mixed, count=count, concurrency=count, cancel_share=1.0, cancel_within_seconds=count / 150)
    traffic = await drive(server.address, load)
    assert len(traffic.endings) == count
    left_at_seconds = [end.ended_at_seconds for end in traffic.endings if end.outcome == LEFT]
    assert len(left_at_seconds) > count / 3, "too few left in time"
    if request.node.get_closest_marker("slow"):  # not one of the tests that must pass on any machine, however busy
        since_seconds = time.monotonic() - max(left_at_seconds)
        assert since_seconds + seconds_until_idle(server.process, within_seconds=20) < 1.0
    await eventually(server.is_at_rest)
    await eventually(lambda: server.descriptor_count() <= descriptors_before)
    await assert_nothing_is_left(server)


async def test_callers_that_never_read_release_their_memory_when_cancelled(
    server: WatchedServer, asks: tuple[Ask, ...]
) -> None:
    large = by_name(asks, LARGE)
    await eventually(server.is_at_rest)
    async with grpc.aio.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
        each = [with_salt(large, str(number)).messages for number in range(4)]
        method: Any = channel.stream_stream(PREPARE)
        calls = [method(iter(messages), timeout=DEADLINE_SECONDS) for messages in each]
        await eventually(lambda: all_pixels_are_written_and_unread(server, len(calls)))
        for call in calls:
            call.cancel()
        await eventually(server.is_at_rest)


@pytest.mark.parametrize("kill_count", [1, pytest.param(12, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
async def test_workers_are_replaced_when_the_fork_server_is_lost(
    server: WatchedServer, asks: tuple[Ask, ...], kill_count: int
) -> None:
    await warm_up(server, asks)
    descriptors_before = server.descriptor_count()
    for turn in range(kill_count):
        traffic_task = asyncio.create_task(drive(server.address, storm(asks, count=60, check_share=1)))
        await eventually(lambda: is_busy(server))
        fork_server = server.fork_server()
        assert fork_server is not None
        fork_server.kill()
        if turn % 2:  # kill the next one too, before it has forked workers or while it does
            await eventually(lambda: server.fork_server() not in (None, fork_server))  # noqa: B023
            await asyncio.sleep(random.uniform(0, 3))
            (server.fork_server() or fork_server).kill()
        assert_ended_well(await traffic_task, 60, "WORKER_LOST")
        await eventually(server.is_at_rest)
    await eventually(lambda: server.descriptor_count() <= descriptors_before)
    assert_ended_well(await drive(server.address, storm(asks, count=len(asks), check_share=1)), len(asks))
    await assert_nothing_is_left(server)


async def test_a_killed_service_takes_everything_with_it(asks: tuple[Ask, ...]) -> None:
    with WatchedServer(*OPTIONS, is_warm=True) as server:
        traffic_task = asyncio.create_task(drive(server.address, storm(asks, count=40, check_share=1)))
        await eventually(lambda: len(server.workers()) == WORKER_PROCESS_COUNT and is_busy(server))
        tree = server.tree()
        server.process.kill()
        server.wait()
        await eventually(lambda: all(map(has_ended, tree)))
        traffic = await traffic_task
        # A call that was sending at that moment may get its error from `grpc.aio` alone: see `traffic.callers`.
        assert_ended_well(traffic, 40, "UNAVAILABLE", STATUS_LOST)
        assert traffic.refusals()["UNAVAILABLE"] > 0
        await assert_nothing_is_left(server)


@pytest.mark.soak
@pytest.mark.timeout(0)
async def test_memory_and_descriptors_stay_flat_for_hours(asks: tuple[Ask, ...]) -> None:
    seconds = float(os.environ.get("SOAK_SECONDS", "1800"))
    with WatchedServer(*OPTIONS) as server:
        await warm_up(server, asks)
        descriptors_before = server.descriptor_count()
        load = storm(asks, seconds=seconds, check_share=0.1, cancel_share=0.1, cancel_within_seconds=0.5)
        # At the same time, callers whose requests are refused at once, again and again.
        with server.watched_pss(every_seconds=1.0) as samples, pressure(server.address, REFUSED):
            traffic = await drive(server.address, load)
        await eventually(server.is_at_rest)
        quarter = len(samples) // 4
        early, late = (statistics.median(part) / 1e6 for part in (samples[quarter : 2 * quarter], samples[-quarter:]))
        print(f"{len(traffic.endings)} requests in {seconds:.0f} s: {dict(traffic.outcomes())}")
        print(
            f"memory {early:.0f} MB in the second quarter, {late:.0f} MB in the last, {max(samples) / 1e6:.0f} at most"
        )
        print(
            f"descriptors {descriptors_before} before, {server.descriptor_count()} after; worker ends {worker_ends(server)}"
        )
        assert_ended_well(traffic, len(traffic.endings), LEFT, *CROWDED)
        assert late < early * 1.05 + 50
        assert_the_cache_took_part(server)
        assert server.metric_by("result", "preprocessor_cache_items_total")["joined"] > 0
        assert sum(server.metric_by("reason", "preprocessor_cache_evictions_total").values()) > 0
        await eventually(lambda: server.descriptor_count() <= descriptors_before)
        await assert_nothing_is_left(server)


def storm(asks: tuple[Ask, ...], *, concurrency: int = 8, **more: float) -> Load:
    given: dict[str, Any] = {"new_media_share": NEW_MEDIA_SHARE, **more}
    return Load(asks, concurrency, timeout_seconds=DEADLINE_SECONDS, check=Checksum, **given)


def by_name(asks: tuple[Ask, ...], name: str) -> Ask:
    return next(ask for ask in asks if ask.name == name)


async def warm_up(server: WatchedServer, asks: tuple[Ask, ...]) -> None:
    """Send requests of each kind, and wait until they have ended."""
    count = 3 * len(asks)
    assert_ended_well(await drive(server.address, storm(asks, count=count, concurrency=4, check_share=1)), count)
    await eventually(server.is_at_rest)


def assert_ended_well(traffic: Traffic, count: int, *allowed: str) -> None:
    """Every request ended with the right answer or an allowed error, so none by its deadline; most with the right answer."""
    strange = {end for end in traffic.outcomes() if end[1] not in ("right", "answered, not read", *allowed)}
    assert strange == set()
    assert len(traffic.endings) == count
    assert len(traffic.answered) > count / 2 or "UNAVAILABLE" in allowed


async def assert_nothing_is_left(server: WatchedServer) -> None:
    """No file is left in the server's temporary directory or in /dev/shm; files of other programs may come and go there."""
    left = server.files_left()
    await eventually(lambda: not left & server.files_left())


@asynccontextmanager
async def killing(server: WatchedServer, endings: list[Ending], *, every: int) -> AsyncIterator[list[int]]:
    """In the background, kill a worker after every so many requests that have ended; the list holds the process ids."""
    killed: list[int] = []

    async def kill() -> None:
        while True:
            await asyncio.sleep(random.uniform(0.0, 0.02))
            workers = server.workers()
            if workers and len(endings) >= every * (len(killed) + 1):
                victim = random.choice(workers)
                with contextlib.suppress(psutil.NoSuchProcess):
                    victim.kill()
                    killed.append(victim.pid)

    task = asyncio.create_task(kill())
    try:
        yield killed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def assert_the_cache_took_part(server: WatchedServer) -> None:
    """Some requests found pixels, or joined the work of others. How many of which depends on the machine."""
    items = server.metric_by("result", "preprocessor_cache_items_total")
    assert items["hit"] + items["joined"] > 0


def is_busy(server: WatchedServer) -> bool:
    return server.metrics()["preprocessor_running_work"] > 0


def all_pixels_are_written_and_unread(server: WatchedServer, call_count: int) -> bool:
    now = server.metrics()
    return (
        now.get("preprocessor_requests_in_flight", 0) == call_count
        and now["preprocessor_running_work"] == now["preprocessor_queued_requests"] == 0
        and now["preprocessor_budget_used_bytes"] > call_count * (64 << 20)
    )


def held_bytes(server: WatchedServer) -> float:
    """Memory of the server, without what it keeps for requests with the same media."""
    kept = server.metrics()
    return server.pss_bytes() - kept["preprocessor_cache_bytes"] - kept["preprocessor_file_cache_bytes"]


def worker_ends(server: WatchedServer) -> float:
    return server.metrics().get("preprocessor_worker_ends_total", 0)
