"""What the same clip costs when it comes again: `python -m tests.bench.service.turns`.

One caller has many chats, each with a `cache_salt` of its own, so that its first turn is new to the service. CPU is that of the
service's whole tree of processes, without the caller's. Beside it stand a later turn without pixels, and gRPC alone: a server
that does nothing but send the same answer, which is the least that any service over gRPC in Python can take. Then the same turns
with rows in shared memory of the caller, and through `Generate` with a real Triton on this host (`turns_engine`).
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import statistics
import time
from collections.abc import Sequence
from functools import partial

from preprocessor.client import AsyncClient, Credentials, Prompt, RowsRegion
from preprocessor.traffic.load import ask_prepare
from preprocessor.traffic.seed import seed_clip
from tests.bench.service.sender import SenderAlone, record
from tests.bench.service.sizes import GIB
from tests.bench.service.turn_calls import Turns, chats, measured, question, turn
from tests.bench.service.turns_engine import measure_with_triton
from tests.bench.service.watched import WatchedServer
from tests.engine.relay import Relay
from tests.media import photo

PARTS = ("caller", "triton")
CALLER_COUNT = 32
PHOTOS = [(photo(96 + number, 64),) for number in range(CALLER_COUNT)]
_BESIDE_ROWS_BYTES = 1 << 20  # the region's secret, and where tensors begin


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


async def at_once(
    server: WatchedServer, clip: bytes, fps: float, pictures: Sequence[Sequence[bytes]], rounds: int
) -> Turns:
    """The same new clip from a caller for each of these lists of pictures, which come with it."""
    turns, together = Turns(), Turns()
    for _ in range(rounds):
        salt = secrets.token_hex(8)
        prompts = [question(clip, fps, salt, 1, pictures=each) for each in pictures]
        clients = [AsyncClient(server.address, Credentials(insecure=True)) for _ in prompts]

        started = time.perf_counter()
        with measured(server, together):
            await asyncio.gather(*map(partial(turn, turns=turns), clients, prompts))
        together.wall_ms.append((time.perf_counter() - started) * 1e3)
        for client in clients:
            await client.close()
    return together


async def by_region(server: WatchedServer, clip: bytes, fps: float, chat_count: int, turn_count: int) -> None:
    """Print what turns take whose rows go to shared memory of the caller."""
    async with AsyncClient(server.address, Credentials(insecure=True)) as client:
        answer = await client.prepare(question(clip, fps, "", 1))
    size_bytes = sum(array.nbytes for array in answer.tensors.values())
    with RowsRegion.create(size_bytes + _BESIDE_ROWS_BYTES) as region:
        ask = partial(turn, region=region)
        await chats(server, clip, fps, 1, 2, ask)
        first, later = await chats(server, clip, fps, chat_count, turn_count, ask)
    print(
        f"{fps:g} fps, rows in the caller's shared memory: first turn {first.cpu_ms:.1f} ms of CPU, later ones "
        f"{later.cpu_ms:.2f} ms: {later.cpu_ms / first.cpu_ms:.1%}; first row after "
        f"{statistics.median(later.first_row_ms):.1f} ms, last after {statistics.median(first.wall_ms):.1f} and "
        f"{statistics.median(later.wall_ms):.1f} ms",
        flush=True,
    )


async def measure(arguments: argparse.Namespace) -> None:
    clip = seed_clip()
    if "caller" in arguments.only:
        await measure_with_callers(clip, arguments)
    if "triton" in arguments.only:
        await measure_with_triton(clip, arguments.fps, arguments.chats, arguments.turns)


async def measure_with_callers(clip: bytes, arguments: argparse.Namespace) -> None:
    options = ("--workers", "2", "--memory-budget", str(2 * GIB), "--max-queued", "1024", "--caller-shared-memory")
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
            await by_region(server, clip, fps, arguments.chats, arguments.turns)
            one = await at_once(server, clip, fps, [()], arguments.chats)
            for beside, pictures in (("", [()] * CALLER_COUNT), (", each beside a photo of its own", PHOTOS)):
                many = await at_once(server, clip, fps, pictures, max(1, arguments.chats // 4))
                print(
                    f"{fps:g} fps, {CALLER_COUNT} callers at once{beside}: CPU {many.cpu_ms / one.cpu_ms:.1f} of one caller's, "
                    f"time {statistics.median(many.wall_ms) / statistics.median(one.wall_ms):.1f} of one caller's",
                    flush=True,
                )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fps", type=float, nargs="+", default=[1.0, 8.0])
    parser.add_argument("--chats", type=int, default=8)
    parser.add_argument("--turns", type=int, default=10, help="of each chat")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    asyncio.run(measure(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
