"""What a front and the service say to each other, and rows that a front reads."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest

from preprocessor.errors import DeadlineExceeded
from preprocessor.service.fronts.connection import FrontConnection
from preprocessor.service.fronts.frames import FILE_NUMBER, Begin, FrameProtocol, Kind, RowsPlace, Status
from preprocessor.service.fronts.relay import RelayedCall
from preprocessor.service.fronts.rows import RowFiles
from preprocessor.service.response_buffer import ResponseBuffer
from preprocessor.wire.tensors import write_rows
from preprocessor.workers.arena import Arena
from preprocessor.workers.chunks import GivenChunks
from preprocessor.workers.shown_rows import ARENA_FILE, ShownRows
from tests.waiting import eventually

SIZES = (0, 1, 51, 65_522, 65_523, 65_535, 65_536, 200_000, 0, 3 << 20, 7)


async def test_frames_arrive_whole_and_in_order_however_they_are_cut() -> None:
    sent = [(kind, number, random.Random(number).randbytes(size)) for number, size in enumerate(SIZES) for kind in Kind]
    got: list[tuple[Kind, int, bytes]] = []
    protocol = FrameProtocol(lambda kind, call_id, body: got.append((kind, call_id, bytes(body))), lambda: None)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_unix_connection(lambda: protocol, sock=theirs)
    writer = FrameProtocol(lambda *_: None, lambda: None)
    written = bytearray()

    class Recorder(asyncio.WriteTransport):
        def write(self, data: bytes | bytearray | memoryview) -> None:
            written.extend(data)

        def is_closing(self) -> bool:
            return False

    writer.connection_made(Recorder())
    for kind, number, body in sent:
        writer.send(kind, number, body)
    cuts, left = random.Random(0), memoryview(written)
    while left:
        size = cuts.choice((1, 12, 13, 14, 1000, 100_000, 1_000_000))
        await loop.sock_sendall(ours, left[:size])
        left = left[size:]
    await eventually(lambda: len(got) == len(sent))
    assert got == sent
    transport.abort()
    ours.close()


def test_a_call_is_described_without_loss() -> None:
    metadata = (("x-request-id", "ä"), ("trace-bin", bytes(range(256))), ("x", ""))
    for begin in (
        Begin("/a.B/C", "ipv6:%5B::1%5D:5", metadata, {"x509_common_name": [b"n\xe9me"]}, 1.5),
        Begin("/a.B/C", "ipv4:127.0.0.1:5", (), {}, None),
    ):
        assert Begin.unpack(begin.pack()) == begin
    status = Status(3, "wröng", (("grpc-status-details-bin", b"\x00\xff"),))
    assert Status.unpack(status.pack()) == status


async def test_a_call_that_its_caller_leaves_in_the_turn_in_which_it_begins_is_forgotten(tmp_path: Path) -> None:
    async def answers(*_: object) -> AsyncIterator[bytes]:
        yield b"never asked for"

    sent: list[tuple[Kind, int]] = []
    with socket.socket() as unused:
        connection = FrontConnection(
            {"/a/method": grpc.stream_stream_rpc_method_handler(answers)},
            ShownRows(named_arena(tmp_path / "arena")),
            unused,
            1.0,
            on_ready=lambda: None,
            on_lost=lambda: None,
            kill=lambda: None,
        )
        connection.send = lambda kind, call_id, _: sent.append((kind, call_id))  # type: ignore[assignment,misc]
        connection._on_frame(Kind.BEGIN, 7, Begin("/a/method", "", (), {}, None).pack())
        connection._on_frame(Kind.LEFT, 7, b"")
        await eventually(lambda: connection.open_count == 0)
    assert sent == [(Kind.STATUS, 7)]


class Frames:
    """The frames that a front sends."""

    def __init__(self) -> None:
        self.sent: list[Kind] = []

    def send(self, kind: Kind, call_id: int, body: bytes = b"") -> None:
        self.sent.append(kind)


class Caller:
    """A caller that reads when it is told to."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()

    async def write(self, message: bytes) -> None:
        await self.reads.wait()


async def relayed() -> tuple[RelayedCall, Frames, Caller, asyncio.Task[None]]:
    """A call whose first response waits for its caller, with another one behind it."""
    frames, caller = Frames(), Caller()
    row_files: Any = None
    protocol: Any = frames
    call = RelayedCall(protocol, 1, caller, row_files, ResponseBuffer(), 60.0)
    running = asyncio.create_task(call.run())
    call.on_frame(Kind.RESPONSE, b"first")
    call.on_frame(Kind.RESPONSE, b"second")
    await eventually(lambda: call._sending is not None)
    return call, frames, caller, running


async def test_an_interrupt_is_answered_although_the_caller_reads_in_the_same_turn() -> None:
    call, frames, caller, running = await relayed()
    caller.reads.set()
    call.on_frame(Kind.INTERRUPT, b"")
    await eventually(lambda: Kind.INTERRUPTED in frames.sent)
    assert frames.sent in ([Kind.SENT, Kind.INTERRUPTED], [Kind.INTERRUPTED])
    call.on_frame(Kind.RESPONSE, b"third")
    await eventually(lambda: frames.sent[-1] is Kind.SENT)
    assert frames.sent.count(Kind.INTERRUPTED) == 1
    call.on_frame(Kind.INTERRUPT, b"")
    assert frames.sent[-1] is Kind.INTERRUPTED
    running.cancel()


async def test_an_interrupt_is_answered_although_the_caller_s_time_passes_in_the_same_turn() -> None:
    call, frames, caller, running = await relayed()
    waiting = asyncio.get_running_loop().create_future()
    reached = asyncio.Event()

    async def write(message: bytes) -> None:
        reached.set()
        await waiting

    call._sender.write = write
    caller.reads.set()
    await reached.wait()
    waiting.set_exception(DeadlineExceeded("the caller does not read"))
    call.on_frame(Kind.INTERRUPT, b"")
    await eventually(lambda: Kind.INTERRUPTED in frames.sent)
    running.cancel()


@pytest.fixture
def supply() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def named_arena(path: Path) -> Arena:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    os.truncate(descriptor, Arena.file_bytes(64 << 20))
    return Arena(descriptor, 64 << 20)


def give(shown: ShownRows, files: list[int], to: socket.socket) -> None:
    with shown.give(files) as descriptors:
        socket.send_fds(to, [b"".join(map(FILE_NUMBER.pack, files))], descriptors)


@pytest.mark.parametrize("way", ["in chunks", "by a thread", "in a named arena"])
@pytest.mark.parametrize("message_bytes", [1, 100_000, 2 << 20])
def test_a_front_makes_the_same_messages_of_rows(
    supply: tuple[socket.socket, socket.socket], tmp_path: Path, way: str, message_bytes: int
) -> None:
    arena = named_arena(tmp_path / "arena") if way == "in a named arena" else Arena.create(64 << 20)
    offset, shape = arena.rows_start + arena.unit_bytes // 2, (200, 7_000)
    size_bytes = 2 * shape[0] * shape[1]
    if way == "in chunks":
        _, descriptors = arena.chunks.give(GivenChunks(), "", [range(offset, offset + size_bytes)])
        for descriptor in descriptors:
            os.close(descriptor)
    rows = arena.array(offset, shape, np.dtype(ml_dtypes.bfloat16))
    rows[...] = np.arange(rows.size).reshape(shape)
    shown, files = ShownRows(arena), RowFiles(supply[1])
    part = rows[20:150]
    pieces = shown.pieces_of(part)
    assert pieces is not None
    assert len({piece.file for piece in pieces} - {ARENA_FILE}) == (4 if way == "in chunks" else 0)
    missing = shown.missing(pieces)
    give(shown, missing, supply[0])
    assert shown.missing(pieces) == []
    place = RowsPlace.unpack(RowsPlace(3, 20, 130, len(missing), pieces).pack())
    found = list(files.messages(place, lambda: message_bytes))
    assert found == list(write_rows(3, rows, 20, 130, lambda: message_bytes))
    arena.close()


def test_a_chunk_in_the_place_of_another_is_given_anew(supply: tuple[socket.socket, socket.socket]) -> None:
    arena = Arena.create(64 << 20)
    shown, files = ShownRows(arena), RowFiles(supply[1])
    place = range(arena.rows_start, arena.rows_start + arena.unit_bytes)
    for count, (scope, value) in enumerate((("one", 1), ("other", 2)), 1):
        _, descriptors = arena.chunks.give(GivenChunks(), scope, [place])
        for descriptor in descriptors:
            os.close(descriptor)
        rows = arena.array(arena.rows_start, (4, 8), np.dtype(np.uint8))
        rows[...] = value
        pieces = shown.pieces_of(rows)
        assert pieces is not None
        give(shown, shown.missing(pieces), supply[0])
        (message,) = files.messages(RowsPlace(0, 0, 4, count, pieces), lambda: 1 << 20)
        assert message == next(write_rows(0, rows, 0, 4))
    arena.close()


def test_rows_that_lie_elsewhere_or_apart_are_not_shown() -> None:
    arena = Arena.create(64 << 20)
    shown = ShownRows(arena)
    assert shown.pieces_of(np.zeros((2, 3), np.uint8)) is None
    rows = arena.array(arena.rows_start, (4, 8), np.dtype(np.uint8))
    assert shown.pieces_of(rows[:, :4]) is None
    assert shown.pieces_of(rows[2:2]) is None
    arena.close()
