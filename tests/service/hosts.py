"""HTTP servers whose every byte a test controls, and resolvers with given answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from preprocessor.config import FetchSettings
from preprocessor.errors import PreprocessorError
from preprocessor.service.fetch.fetcher import Fetcher
from preprocessor.service.metrics import Metrics

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Host:
    """A minimal HTTP server, as an async context manager.

    Attributes:
        answers: Path → what to answer; may be changed at any time. Another path gets a 404.
        requests: The head of every request.
        connection_count: Connections accepted, those that never asked anything included.
        busy_count: Requests being answered; one whose asker has gone counts until its answer has noticed.
    """

    def __init__(
        self,
        answers: Mapping[str, Answer] | None = None,
        address: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.answers = dict(answers or {})
        self.requests: list[str] = []
        self.connection_count = self.busy_count = 0
        self.port = port
        self._address = address
        self._tls = tls

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, self._address, self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()

    def url(self, path: str, host: str = "media.test") -> str:
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connection_count += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.requests.append(head)
                self.busy_count += 1
                try:
                    await self.answers.get(head.split()[1], respond(b"", "404 Not Found"))(reader, writer)
                    await writer.drain()
                finally:
                    self.busy_count -= 1
        writer.close()


def respond(body: bytes = b"", status: str = "200 OK", **headers: str) -> Answer:
    """A complete response; write header names with underscores."""
    given = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return send(f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1", "surrogateescape") + body)


def redirect(location: str, status: str = "302 Found") -> Answer:
    return respond(b"moved", status, Location=location)


def send(data: bytes, close: bool = False) -> Answer:
    """Bytes as they are."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if close:
            writer.close()

    return answer


def chunked(*pieces: bytes, endless: bool = False) -> Answer:
    """A chunked body; if endless, the last piece is repeated until the client leaves."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        while endless:
            writer.write(b"%x\r\n%b\r\n" % (len(pieces[-1]), pieces[-1]))
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    return answer


def hang(data: bytes = b"") -> Answer:
    """Some bytes, then silence until the client leaves."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        await reader.read()
        writer.close()

    return answer


def drip(head: bytes, piece: bytes) -> Answer:
    """The header, then a small piece repeatedly until the client leaves."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)

    return answer


def reset(data: bytes) -> Answer:
    """Some bytes, then a connection reset."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return answer


class Resolver(AbstractResolver):
    """Resolves every name to the next of its answers, and to the last one from then on.

    Attributes:
        names: What was asked.
    """

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers) or [["127.0.0.1"]]
        self.names: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        addresses = self._answers[min(len(self.names), len(self._answers) - 1)]
        self.names.append(host)
        if not addresses:
            raise OSError(None, "no such name")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        pass


class Collected:
    """A `Sink` that collects the bytes."""

    def __init__(self) -> None:
        self.data = b""
        self.announced_bytes: int | None = None

    def announce(self, size_bytes: int) -> None:
        self.announced_bytes = size_bytes

    async def write(self, data: bytes) -> None:
        self.data += data


def fetching(*hosts: Host, resolver: AbstractResolver | None = None, **settings: object) -> Fetcher:
    """A fetcher that may reach 127.0.0.1 by any name in .test, on these hosts' ports only."""
    allowed = {"hosts": "*.test", "networks": "127.0.0.1/32", "ports": ",".join(str(host.port) for host in hosts)}
    options = FetchSettings(**{**allowed, "read_seconds": 5.0, "total_seconds": 20.0, **settings})  # type: ignore[arg-type]
    return Fetcher(options, Metrics(), resolver or Resolver())


async def fetch(fetcher: Fetcher, url: str) -> bytes:
    sink = Collected()
    await fetcher.fetch(url, "clip", sink)
    return sink.data


async def refusal(fetcher: Fetcher, url: str) -> PreprocessorError:
    """The error of a fetch, whose message and metadata name the medium."""
    with pytest.raises(PreprocessorError) as caught:
        await fetch(fetcher, url)
    assert caught.value.metadata["media_key"] == "clip" and caught.value.message.startswith("clip: ")
    return caught.value


async def reason(fetcher: Fetcher, url: str) -> str:
    return (await refusal(fetcher, url)).reason
