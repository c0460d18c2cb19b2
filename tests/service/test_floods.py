"""Floods of calls, pings, connections and endless messages: memory stays flat, and other callers are served."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
import pytest

from preprocessor.client import Client, Prompt
from preprocessor.config import WireSettings
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.bench.service.watched import WatchedServer
from tests.service.conftest import PREPARE, chat, eventually_answered, serving
from tests.service.http2 import (
    DATA,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    PING,
    RST_STREAM,
    SETTINGS,
    RawConnection,
)
from tests.waiting import PATIENCE_SECONDS, eventually

MIB = 1 << 20
SLACK_BYTES = 24 * MIB
"""What a heap may keep of a crowd that is gone; thousands of calls that stayed would hold far more."""
CANCEL = (8).to_bytes(4, "big")


@pytest.fixture(scope="module")
def server() -> Iterator[WatchedServer]:
    """A small server; the tests do not change its state."""
    with WatchedServer("--workers", "1", "--memory-budget", "256MiB", "--max-uploads", "4") as one:
        yield one


def own_bytes(server: WatchedServer) -> int:
    """Memory of the service's own process, which alone talks to callers."""
    return int(server.process.memory_full_info().uss)


async def is_served(server: WatchedServer) -> bool:
    """Whether an ordinary call succeeds."""

    def ask() -> bool:
        with Client(server.address) as client:
            result = client.prepare(Prompt(chat("still there?")), timeout_seconds=PATIENCE_SECONDS)
            return result.header.token_count > 0

    return await asyncio.to_thread(ask)


def reset_streams(address: str, count: int, first: int = 1) -> None:
    """Open calls and reset each at once, as in CVE-2023-44487, as fast as the server reads."""
    with RawConnection(address) as connection:
        for number in range(count):
            connection.open_stream(first + 2 * number, PREPARE)
            connection.send(RST_STREAM, CANCEL, stream=first + 2 * number)


def empty_streams(address: str, count: int) -> None:
    """Calls that end without a message."""
    with RawConnection(address) as connection:
        for number in range(count):
            stream = 1 + 2 * number
            connection.open_stream(stream, PREPARE)
            connection.send(DATA, flags=1, stream=stream)  # END_STREAM
            if number % 100 == 99:
                connection.frames_until(HEADERS)


@pytest.mark.parametrize("flood", [reset_streams, empty_streams])
async def test_memory_is_flat_under_a_flood_of_tiny_calls(server: WatchedServer, flood: object) -> None:
    async def turn(count: int) -> None:
        await asyncio.gather(*(asyncio.to_thread(flood, server.address, count) for _ in range(4)))  # type: ignore[arg-type]
        assert await is_served(server)
        await eventually(server.is_at_rest)

    await turn(500)
    before = own_bytes(server)
    await turn(2500)
    await eventually(lambda: own_bytes(server) < before + SLACK_BYTES)


async def test_memory_is_bounded_where_large_messages_never_end(server: WatchedServer) -> None:
    """Forty incomplete messages of 15 MiB: 600 MiB, of which at most `max_upload_count` are read."""
    assert await is_served(server)
    before = own_bytes(server)
    message = pb.PrepareRequest(spec=pb.PrepareSpec(text="x" * (15 * MIB))).SerializeToString()
    with ThreadPoolExecutor(40) as senders:
        connections = list(senders.map(lambda _: unfinished(server.address, message), range(40)))
    # Those who do not go on give way to those who wait, and what they had sent goes with them.
    await eventually(lambda: server.metrics().get("preprocessor_errors_total", 0) >= 4)
    assert own_bytes(server) < before + 4 * 16 * MIB + SLACK_BYTES
    for connection in connections:
        connection.__exit__(None, None, None)
    await eventually(server.is_at_rest)
    assert await is_served(server)


@pytest.mark.parametrize("path", ["/preprocessor.v1.Preprocessor/GetModel", "/grpc.health.v1.Health/Check"])
async def test_unary_requests_are_received_under_the_same_limits(server: WatchedServer, path: str) -> None:
    assert await is_served(server)
    before = own_bytes(server)
    message = bytes(15 * MIB)
    connections = await asyncio.gather(
        *(asyncio.to_thread(unfinished, server.address, message, path) for _ in range(12))
    )
    assert own_bytes(server) < before + 4 * 16 * MIB + SLACK_BYTES
    for connection in connections:
        connection.__exit__(None, None, None)
    assert await is_served(server)


def unfinished(address: str, message: bytes, path: str = PREPARE) -> RawConnection:
    """A call that sends an incomplete message, as far as flow control allows."""
    connection = RawConnection(address).__enter__()
    connection.open_stream(1, path)
    rest = b"\0" + len(message).to_bytes(4, "big") + message[:-1]
    connection.send_data(1, rest, patience_seconds=1.0)
    return connection


async def test_pings_in_quick_succession_end_the_connection(server: WatchedServer) -> None:
    def ping() -> bytes:
        with RawConnection(server.address) as connection:
            for _ in range(10):
                connection.send(PING, bytes(8))
            return connection.frames_until(GOAWAY)[-1][2]

    last = await asyncio.to_thread(ping)
    assert int.from_bytes(last[4:8], "big") == ENHANCE_YOUR_CALM
    assert last[8:] == b"too_many_pings"
    assert await is_served(server)


async def test_streams_per_connection_are_limited(model: Model) -> None:
    def crowd(address: str) -> list[int]:
        """Numbers of the streams that are refused."""
        with RawConnection(address) as connection:
            for number in (1, 3, 5):
                connection.open_stream(number, PREPARE)
            return [stream for kind, stream, _ in connection.frames_until(RST_STREAM) if kind == RST_STREAM]

    async with serving(model, wire=WireSettings(max_streams_a_connection=2)) as caller:
        assert await asyncio.to_thread(crowd, caller.server.address) == [5]
        await caller.prepare(chat("still there?"))


async def test_open_connections_are_limited(model: Model) -> None:
    def connect(address: str) -> list[bool]:
        """Of ten connections, those that the server accepts."""
        with contextlib.ExitStack() as stack:
            connections = [stack.enter_context(RawConnection(address)) for _ in range(10)]
            return [connection.frames_until(SETTINGS) != [] for connection in connections]

    async with serving(model, front_count=1, wire=WireSettings(max_connections=4)) as caller:
        greeted = await asyncio.to_thread(connect, caller.server.address)
        assert greeted == sorted(greeted, reverse=True)
        assert 2 <= sum(greeted) <= 4
        # The server notices their going in its own time.
        await eventually_answered(lambda: caller.prepare(chat("still there?")), grpc.StatusCode.UNAVAILABLE)
