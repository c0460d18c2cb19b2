"""In a cgroup of the budget and 1 GiB callers cannot kill the service, and refused requests leave no memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from preprocessor.client import Client, Prompt
from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.config import front_bytes
from tests.bench.service.watched import WatchedServer
from tests.media import photo
from tests.service.cgroup import MemoryGroup, memory_group
from tests.service.conftest import FRONT_COUNT, chat, image
from tests.service.pressure import WAYS, Way, leaves, pressure, slow_reader, slow_sender, too_large
from tests.waiting import eventually, has_ended

MIB = 1 << 20
BUDGET_BYTES = 256 * MIB
OPTIONS = ("--workers", "1", "--memory-budget", "256MiB", "--max-media-bytes", "30MiB")
BESIDE_BYTES = 500 * MIB
"""What the service's own process may take beside what it has at rest, where there are no cgroups to hold it to a limit."""


@pytest.fixture(scope="module")
def group() -> Iterator[MemoryGroup | None]:
    with memory_group(BUDGET_BYTES + 1024 * MIB + front_bytes(FRONT_COUNT)) as one:
        yield one


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text("someone a-token-of-sixteen-characters\n")
    return path


@pytest.fixture(scope="module")
def server(group: MemoryGroup | None) -> Iterator[WatchedServer]:
    """A server shared by the tests, in a real cgroup if one can be created."""
    with WatchedServer(*OPTIONS, under=() if group is None else group.under) as one:
        yield one


def anonymous_bytes(server: WatchedServer) -> int:
    """RssAnon of the service's own process, which alone talks to callers; proc_pid_status(5)."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("RssAnon:", 1)[1].split()[0]) << 10


async def stand(
    server: WatchedServer, group: MemoryGroup | None, ways: tuple[Way, ...], *, each: int, rounds: int
) -> Counter[tuple[str, str]]:
    """Run every way for `rounds` endings, with ordinary calls meanwhile; the service must survive."""
    processes, before = {server.process.pid}, anonymous_bytes(server)
    most = before
    with pressure(server.address, ways, each=each) as endings:

        def is_over() -> bool:
            nonlocal most
            most = max(most, anonymous_bytes(server))
            ended = Counter(way for way, _ in list(endings))
            counts = Counter[str]()
            for (way, _), count in list(endings.items()):
                counts[way] += count
            return len(ended) == len(ways) and min(counts.values()) >= rounds

        while not await asyncio.to_thread(is_over):
            await asyncio.to_thread(ask, server.address)
    assert not has_ended(server.process)
    assert {server.process.pid} == processes
    assert most < before + BESIDE_BYTES
    assert group is None or group.kill_count == 0
    return endings


def ask(address: str) -> None:
    with Client(address, retry_seconds=120) as client:
        client.prepare(Prompt(chat(image("photo", photo(64, 48)))), timeout_seconds=120)


async def test_refusals_of_every_kind_do_not_kill_the_service(server: WatchedServer, group: MemoryGroup | None) -> None:
    ways = tuple(way for way in WAYS if way not in (slow_sender, slow_reader))
    endings = await stand(server, group, ways, each=1, rounds=1)
    lost = {ending for ending in endings if ending[1] in ("INTERNAL", "UNAVAILABLE", "UNKNOWN", "CANCELLED")}
    assert lost == set()


async def test_refused_and_cancelled_uploads_leave_no_memory(server: WatchedServer) -> None:
    await eventually(server.is_at_rest)
    await asyncio.to_thread(ask, server.address)
    before = anonymous_bytes(server)
    with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
        for way in (too_large, leaves):
            for _ in range(4):
                await asyncio.to_thread(way, channel)
    await eventually(lambda: anonymous_bytes(server) < before + 30 * MIB)


@pytest.mark.slow
async def test_uploads_of_unauthenticated_callers_are_not_read(token_file: Path) -> None:
    with WatchedServer(*OPTIONS, "--token-file", str(token_file)) as server:
        before = anonymous_bytes(server)
        with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
            endings = [await asyncio.to_thread(too_large, channel) for _ in range(6)]
        assert set(endings) == {"UNAUTHENTICATED"}
        assert anonymous_bytes(server) < before + 40 * MIB


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_many_misbehaving_callers_do_not_kill_the_service(
    server: WatchedServer, group: MemoryGroup | None
) -> None:
    await stand(server, group, WAYS, each=5, rounds=20)
    await eventually(server.is_at_rest)
