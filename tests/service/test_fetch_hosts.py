"""Fetching from slow and from hostile hosts, all of them on this machine."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import pytest

from preprocessor.errors import FetchFailed, Overloaded
from tests.service.hosts import (
    Answer,
    Collected,
    Host,
    Resolver,
    chunked,
    drip,
    fetch,
    fetching,
    hang,
    reason,
    redirect,
    refusal,
    reset,
    respond,
    send,
)
from tests.waiting import eventually

BODY = bytes(range(256)) * 2000


# -- slow hosts --------------------------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "settings"),
    [
        (hang(), {"read_seconds": 0.1}),
        (hang(b"HTTP/1.1 200 OK\r\n"), {"read_seconds": 0.1}),
        (hang(HEAD + b"some"), {"read_seconds": 0.1}),
        (drip(HEAD, b"x"), {"total_seconds": 0.3}),
        (drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), {"total_seconds": 0.3}),
        (drip(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"), {"total_seconds": 0.1}),
        (drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), {"total_seconds": 0.3}),
    ],
    ids=["no answer", "half a head", "half a body", "a slow body", "slow chunks", "a slow head", "always soon"],
)
async def test_a_host_that_takes_too_long_times_out(answer: Answer, settings: dict[str, Any]) -> None:
    async with Host({"/": answer}) as host, fetching(host, **settings) as fetcher:
        assert await reason(fetcher, host.url("/")) == "FETCH_TIMEOUT"
        await eventually(lambda: host.busy_count == 0)


async def test_a_name_that_never_resolves_times_out() -> None:
    class Silent(Resolver):
        async def resolve(self, *_: object) -> list[object]:  # type: ignore[override]
            await asyncio.Event().wait()
            return []

    async with Host() as host, fetching(host, resolver=Silent(), connect_seconds=0.1) as fetcher:
        assert await reason(fetcher, host.url("/")) == "FETCH_TIMEOUT"


async def test_redirects_share_one_timeout() -> None:
    async def slowly(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        await redirect("/")(_, writer)

    async with Host({"/": slowly}) as host, fetching(host, total_seconds=0.5, max_redirects=100) as fetcher:
        assert await reason(fetcher, host.url("/")) == "FETCH_TIMEOUT"


# -- hostile hosts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (send(HEAD + BODY, close=True), "FETCH_INCOMPLETE"),
        (send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", close=True), "FETCH_INCOMPLETE"),
        (reset(HEAD + BODY), "FETCH_INCOMPLETE"),
        (reset(b""), "FETCH_INCOMPLETE"),
        (send(b"", close=True), "FETCH_INCOMPLETE"),
        (send(b"SSH-2.0-OpenSSH_9.2\r\n", close=True), "BAD_ANSWER"),
        (send(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello"), "BAD_ANSWER"),
        (send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"), "BAD_ANSWER"),
        (send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello"), "BAD_ANSWER"),
        (send(b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000 + b"\r\n\r\n"), "BAD_ANSWER"),
        (send(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 100_000 + b"\r\n"), "BAD_ANSWER"),
        (respond(gzip.compress(bytes(10_000_000)), Content_Encoding="gzip"), "FETCH_ENCODED"),
        (respond(gzip.compress(bytes(10_000_000)), Content_Encoding="deflate"), "FETCH_ENCODED"),
        (respond(BODY, Content_Encoding="identity, gzip"), "FETCH_ENCODED"),
        (respond(BODY, Content_Encoding="br"), "FETCH_ENCODED"),
        *((respond(BODY, f"{status} No"), "FETCH_STATUS") for status in (201, 206, 300, 400, 401, 403, 404, 500)),
        *((send(b"HTTP/1.1 %d No\r\n\r\n" % status), "FETCH_STATUS") for status in (204, 304)),
        (send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"), "FETCH_STATUS"),
    ],
)
async def test_a_response_that_is_not_the_file_is_refused(answer: Answer, expected: str) -> None:
    async with Host({"/": answer, "/next": respond(b"fine")}) as host, fetching(host) as fetcher:
        assert await reason(fetcher, host.url("/")) == expected
        assert await fetch(fetcher, host.url("/next")) == b"fine", "and the next one is"


async def test_bytes_beyond_content_length_are_ignored_and_affect_no_other_response() -> None:
    smuggled = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    answer = send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello" + smuggled)
    async with Host({"/": answer, "/next": respond(b"fine")}) as host, fetching(host) as fetcher:
        for _ in range(3):
            assert await fetch(fetcher, host.url("/")) == b"hello"
            assert await fetch(fetcher, host.url("/next")) == b"fine"


async def test_the_http_status_is_reported() -> None:
    async with Host() as host, fetching(host) as fetcher:
        error = await refusal(fetcher, host.url("/nowhere"))
    assert (type(error), error.metadata["http_status"]) == (FetchFailed, "404")
    assert "the host answered 404" in error.message


async def test_a_compressed_transfer_is_not_inflated() -> None:
    bomb = gzip.compress(bytes(10_000_000))
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n%x\r\n" % len(bomb)
    async with Host({"/": send(head + bomb + b"\r\n0\r\n\r\n")}) as host, fetching(host) as fetcher:
        assert len(await fetch(fetcher, host.url("/"))) == len(bomb)


async def test_a_refused_body_ends_the_connection() -> None:
    class Full(Collected):
        async def write(self, data: bytes) -> None:
            await super().write(data)
            if len(self.data) > 1_000_000:
                raise Overloaded("full")

    async with Host({"/": chunked(bytes(1 << 16), endless=True)}) as host, fetching(host) as fetcher:
        sink = Full()
        with pytest.raises(Overloaded):
            await fetcher.fetch(host.url("/"), "clip", sink)
        assert len(sink.data) < 2_000_000
        await eventually(lambda: host.busy_count == 0)


async def test_a_host_that_does_not_listen_is_unreachable() -> None:
    async with Host() as host:
        pass
    async with fetching(host) as fetcher, fetching(host, resolver=Resolver([])) as lost:
        assert await reason(fetcher, host.url("/")) == "FETCH_UNREACHABLE"
        assert await reason(lost, host.url("/")) == "FETCH_UNREACHABLE"
