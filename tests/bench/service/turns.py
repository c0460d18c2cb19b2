"""What the same clip costs when it comes again: `python -m tests.bench.service.turns`.

One caller has many chats, each with a `cache_salt` of its own, so that its first turn is new to the service. CPU is that of the
service's whole tree of processes, without the caller's. Beside it stand a later turn without pixels, and gRPC alone: a server
that does nothing but send the same answer, which is the least that any service over gRPC in Python can take.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from preprocessor.client import AsyncClient, Credentials, Prompt, chat, video
from preprocessor.traffic.load import ask_prepare
from preprocessor.traffic.seed import TEXT, seed_clip
from tests.bench.service.sender import SenderAlone, record
from tests.bench.service.sizes import GIB
from tests.bench.service.watched import WatchedServer
from tests.engine.relay import Relay

CALLER_COUNT = 32


@dataclass(slots=True)
class Turns:
    """Of each turn of one kind: seconds of CPU together, and milliseconds until the first row and until the last."""

    cpu_seconds: float = 0.0
    first_row_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)

    @property
    def cpu_ms(self) -> float:
        return self.cpu_seconds / len(self.wall_ms) * 1e3


class CountingRelay(Relay):
    """A relay that counts the bytes that go to the service, HTTP/2's included."""

    def __init__(self, upstream: str) -> None:
        super().__init__(upstream)
        self.sent_bytes = 0

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if writer.get_extra_info("peername")[1] == int(self.upstream.split(":")[1]):
                self.sent_bytes += len(data)
            writer.write(data)
            await writer.drain()


def question(
    clip: bytes, fps: float, salt: str, turn_count: int, pixel_form: Literal["uint8", "none"] = "uint8"
) -> Prompt:
    """A chat about the clip with so many turns of the user."""
    messages = [{"role": "user", "content": [video(clip, fps=fps), TEXT]}]
    for number in range(1, turn_count):
        messages += [
            {"role": "assistant", "content": f"Answer {number}."},
            {"role": "user", "content": f"{TEXT} {number}"},
        ]
    return chat(messages, cache_salt=salt, pixel_form=pixel_form)


async def turn(client: AsyncClient, prompt: Prompt, turns: Turns) -> None:
    started = time.perf_counter()

    def arrived(received_bytes: int, total_bytes: int) -> None:
        if first_row:
            return
        first_row.append((time.perf_counter() - started) * 1e3)

    first_row: list[float] = []
    await client.prepare(prompt, timeout_seconds=120, progress=arrived)
    turns.wall_ms.append((time.perf_counter() - started) * 1e3)
    turns.first_row_ms += first_row


@contextmanager
def measured(server: WatchedServer | SenderAlone, turns: Turns) -> Iterator[None]:
    """Adds the CPU that the service takes meanwhile."""
    before = server.cpu_seconds()
    yield
    turns.cpu_seconds += server.cpu_seconds() - before


async def chats(
    server: WatchedServer, clip: bytes, fps: float, chat_count: int, turn_count: int
) -> tuple[Turns, Turns]:
    """First turns and later ones, of so many chats."""
    first, later = Turns(), Turns()
    for _ in range(chat_count):
        salt = secrets.token_hex(8)
        async with AsyncClient(server.address, Credentials(insecure=True)) as client:
            with measured(server, first):
                await turn(client, question(clip, fps, salt, 1), first)
            with measured(server, later):
                for number in range(2, turn_count + 1):
                    await turn(client, question(clip, fps, salt, number), later)
    return first, later


async def later_turns(server: WatchedServer | SenderAlone, prompt: Prompt, count: int) -> Turns:
    """The same turn again and again."""
    turns = Turns()
    async with AsyncClient(server.address, Credentials(insecure=True)) as client:
        await turn(client, prompt, Turns())
        with measured(server, turns):
            for _ in range(count):
                await turn(client, prompt, turns)
    return turns


async def bytes_of_a_turn(server: WatchedServer, clip: bytes, fps: float) -> int:
    """Bytes from the caller in a second turn."""
    salt = secrets.token_hex(8)
    async with CountingRelay(server.address) as relay, AsyncClient(relay.address, Credentials(insecure=True)) as client:
        await client.prepare(question(clip, fps, salt, 1), timeout_seconds=120)
        before = relay.sent_bytes
        await client.prepare(question(clip, fps, salt, 2), timeout_seconds=120)
        return relay.sent_bytes - before


async def at_once(server: WatchedServer, clip: bytes, fps: float, caller_count: int, rounds: int) -> Turns:
    """So many callers with the same new clip."""
    turns, together = Turns(), Turns()
    for _ in range(rounds):
        prompt = question(clip, fps, secrets.token_hex(8), 1)
        clients = [AsyncClient(server.address, Credentials(insecure=True)) for _ in range(caller_count)]

        started = time.perf_counter()
        with measured(server, together):
            await asyncio.gather(*(turn(client, prompt, turns) for client in clients))
        together.wall_ms.append((time.perf_counter() - started) * 1e3)
        for client in clients:
            await client.close()
    return together


async def measure(arguments: argparse.Namespace) -> None:
    clip = seed_clip()
    options = ("--workers", "2", "--memory-budget", str(2 * GIB), "--max-queued", "1024")
    with WatchedServer(*options) as server:
        for fps in arguments.fps:
            await chats(server, clip, fps, 2, 2)  # fills the arena's pages
            first, later = await chats(server, clip, fps, arguments.chats, arguments.turns)
            print(
                f"{fps:g} fps: first turn {first.cpu_ms:.1f} ms of CPU, later ones {later.cpu_ms:.2f} ms: "
                f"{later.cpu_ms / first.cpu_ms:.1%}; first row after {statistics.median(first.first_row_ms):.1f} and "
                f"{statistics.median(later.first_row_ms):.1f} ms, last after {statistics.median(first.wall_ms):.1f} and "
                f"{statistics.median(later.wall_ms):.1f} ms; bytes from the caller "
                f"{await bytes_of_a_turn(server, clip, fps)} of a file of {len(clip)}",
                flush=True,
            )
            count = arguments.chats * arguments.turns
            prompt = question(clip, fps, "", 2, pixel_form="none")
            bare = await later_turns(server, prompt, count)
            pieces = await asyncio.to_thread(record, server.address, ask_prepare("turn", question(clip, fps, "", 2)))
            with SenderAlone(pieces, 0.0) as sender:
                alone = await later_turns(sender, prompt, count)
            print(
                f"{fps:g} fps: a later turn without pixels {bare.cpu_ms:.2f} ms: {bare.cpu_ms / first.cpu_ms:.1%} of the first; "
                f"gRPC alone {alone.cpu_ms:.2f} ms: {alone.cpu_ms / first.cpu_ms:.1%}",
                flush=True,
            )
            one = await at_once(server, clip, fps, 1, arguments.chats)
            many = await at_once(server, clip, fps, CALLER_COUNT, max(1, arguments.chats // 4))
            print(
                f"{fps:g} fps, {CALLER_COUNT} callers at once: CPU {many.cpu_ms / one.cpu_ms:.1f} of one caller's, "
                f"time {statistics.median(many.wall_ms) / statistics.median(one.wall_ms):.1f} of one caller's",
                flush=True,
            )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fps", type=float, nargs="+", default=[1.0, 8.0])
    parser.add_argument("--chats", type=int, default=8)
    parser.add_argument("--turns", type=int, default=10, help="of each chat")
    asyncio.run(measure(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
