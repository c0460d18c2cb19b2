"""gRPC without a service behind it: a server that knows one answer and only sends it, in a process of its own, to compare with.

What it takes is the least that any service over gRPC in Python can add to the pipeline.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Self

import grpc
import grpc.aio
import psutil
import uvloop

from preprocessor.client.calls import CHANNEL_OPTIONS
from preprocessor.traffic.load import PREPARE, Ask
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.workers.heap import keep_freed_memory
from tests.bench.service.watched import process_cpu_seconds

_OPTIONS = (("grpc.max_send_message_length", -1), ("grpc.http2.bdp_probe", 0))  # as the service's, where they cost CPU


@dataclass(frozen=True, slots=True)
class Piece:
    """A message of an answer: what comes before its rows, or all of it where it has none, and the rows."""

    head: bytes
    rows: bytes


def record(address: str, ask: Ask) -> list[Piece]:
    """The answer that a server gives."""
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(ask.method)
        messages = list(call(iter(ask.messages)))
    pieces = []
    for message in messages:
        rows = pb.PrepareResponse.FromString(message).rows.data
        assert message.endswith(rows)
        pieces.append(Piece(message[: len(message) - len(rows)], rows))
    return pieces


class SenderAlone:
    """Answers each request with the same messages. Their rows it copies out of shared memory, into which another process has
    just written them, as a worker does.

    Args:
        seconds: Over which the rows of an answer are written.
    Attributes:
        address: Where it listens.
    """

    def __init__(self, pieces: Sequence[Piece], seconds: float) -> None:
        context = get_context("spawn")
        self._its_address, its_end = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(pieces, seconds, its_end), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self.address: str = self._its_address.recv()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def cpu_seconds(self) -> float:
        """Of the sender, without the process that writes the rows."""
        return process_cpu_seconds(psutil.Process(self._process.pid))


def _serve(pieces: Sequence[Piece], seconds: float, address_to: Connection) -> None:
    memory = mmap.mmap(-1, sum(len(piece.rows) for piece in pieces))  # shared with the fork
    news, writers_end = socket.socketpair()
    if os.fork() == 0:
        news.close()
        _write_rows(pieces, seconds, memory, writers_end)
        os._exit(0)
    writers_end.close()
    keep_freed_memory()  # or every message pays for fresh pages, which the service's do not
    uvloop.run(_answer(pieces, memory, news, address_to))


def _write_rows(pieces: Sequence[Piece], seconds: float, memory: mmap.mmap, orders: socket.socket) -> None:
    """For each byte that comes write all rows, evenly over the time, and send a byte for each piece of them."""
    with_rows = [piece.rows for piece in pieces if piece.rows]
    while orders.recv(1):
        began, written = time.monotonic(), 0
        for number, rows in enumerate(with_rows, 1):
            memory[written : written + len(rows)] = rows
            written += len(rows)
            while time.monotonic() < began + seconds * number / len(with_rows):  # busy, as a worker is
                pass
            orders.sendall(b"\0")


async def _answer(pieces: Sequence[Piece], memory: mmap.mmap, news: socket.socket, address_to: Connection) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=news)
    view = memoryview(memory)

    async def prepare(requests: AsyncIterator[bytes], context: Any) -> None:
        async for _ in requests:
            pass
        writer.write(b"\0")
        sent = 0
        for piece in pieces:
            if not piece.rows:
                await context.write(piece.head)
                continue
            await reader.readexactly(1)
            await context.write(b"".join((piece.head, view[sent : sent + len(piece.rows)])))
            sent += len(piece.rows)

    server = grpc.aio.server(options=_OPTIONS)
    service, method = PREPARE.removeprefix("/").split("/")
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(prepare)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    address_to.send(f"127.0.0.1:{port}")
    await server.wait_for_termination()
