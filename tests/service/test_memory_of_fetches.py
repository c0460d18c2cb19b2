"""Refused and cancelled fetches, by http and `file:` URLs, leave no memory in the service's own process."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from tests.bench.service.watched import WatchedServer, entered
from tests.media import photo
from tests.service.cgroup import MemoryGroup, memory_group
from tests.service.conftest import chat, image
from tests.service.hosts import Answer, Host, chunked
from tests.service.refusals import refusal_of
from tests.service.test_memory_of_refusals import BUDGET_BYTES, anonymous_bytes
from tests.waiting import PATIENCE_SECONDS, eventually

MIB = 1 << 20
MAX_MEDIA_BYTES = 30 * MIB
TOO_LARGE_BYTES = 77 * MIB
LARGE_BYTES = 25 * MIB
"""Two such files fit the memory for files, a quarter of the budget; three do not."""
LARGE_FILES_THAT_FIT = 2
HELD_BYTES = 40 * MIB
REMAINING_BYTES = 40 * MIB
"""Fluctuation of the process's memory at rest."""
WHILE_FETCHING_BYTES = 100 * MIB
"""What buffers of the fetches may take beside that; the files themselves are in shared memory."""
PIECE = bytes(MIB // 4)


def body_of(size_bytes: int, sent_bytes: int | None = None) -> Answer:
    """Announces `size_bytes` and sends them, or stops after `sent_bytes` and waits until the client leaves."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size_bytes)
        for _ in range(0, size_bytes if sent_bytes is None else sent_bytes, len(PIECE)):
            writer.write(PIECE)
            await writer.drain()
        if sent_bytes is not None:
            await reader.read()

    return answer


@dataclass(frozen=True, slots=True)
class Setup:
    """A service that may fetch from `host` and below `folder`."""

    server: WatchedServer
    host: Host
    folder: Path
    stub: pb_grpc.PreprocessorAsyncStub

    def call(self, url: str) -> grpc.aio.StreamStreamCall[pb.PrepareRequest, pb.PrepareResponse]:
        medium = pb.Media(key="clip", modality=pb.MODALITY_VIDEO, url=url)
        call = self.stub.Prepare(iter([pb.PrepareRequest(spec=chat(medium))]), timeout=PATIENCE_SECONDS)
        assert isinstance(call, grpc.aio.StreamStreamCall)
        return call

    def http_url(self, path: str) -> str:
        return self.host.url(path, "localhost")

    def file_url(self, size_bytes: int) -> str:
        """A file of zeros, which takes no space on the disk."""
        path = self.folder / f"{size_bytes}.mp4"
        with path.open("wb") as file:
            file.truncate(size_bytes)
        return path.as_uri()

    async def answered(self) -> None:
        """An ordinary request, after which the service's memory is at its usual level."""
        spec = chat(image("photo", photo(64, 48)))
        async for _ in self.stub.Prepare(iter([pb.PrepareRequest(spec=spec)]), timeout=PATIENCE_SECONDS):
            pass


@pytest.fixture(scope="module")
def group() -> Iterator[MemoryGroup | None]:
    with memory_group(BUDGET_BYTES + 1024 * MIB) as one:
        yield one


@asynccontextmanager
async def set_up(folder: Path, group: MemoryGroup | None) -> AsyncIterator[Setup]:
    answers = {
        "/too-large": body_of(TOO_LARGE_BYTES),
        "/endless": chunked(PIECE, endless=True),
        "/large": body_of(LARGE_BYTES),
        "/held": body_of(LARGE_BYTES, sent_bytes=LARGE_BYTES - MIB),
    }
    async with Host(answers) as host:
        options = (
            *("--workers", "1", "--memory-budget", "256MiB", "--max-media-bytes", str(MAX_MEDIA_BYTES)),
            *("--fetch-hosts", "localhost", "--fetch-networks", "127.0.0.1/32", "--fetch-ports", str(host.port)),
            *("--fetch-roots", str(folder)),
        )
        server = WatchedServer(*options, under=() if group is None else group.under)
        async with (
            entered(server),
            grpc.aio.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel,
        ):
            yield Setup(server, host, folder, pb_grpc.PreprocessorStub(channel))


async def fill_and_refuse(setup: Setup, *, each: int) -> tuple[Counter[str], int]:
    """Fill the memory for files with fetches that do not end, have others refused meanwhile, then cancel the first.

    Returns:
        How often each reason was given, and the most memory that the process took meanwhile.
    """
    server = setup.server
    held = [setup.call(setup.http_url("/held")) for _ in range(LARGE_FILES_THAT_FIT)]
    await eventually(lambda: server.metrics()["preprocessor_budget_used_bytes"] >= HELD_BYTES)
    urls = (
        *(setup.http_url(path) for path in ("/too-large", "/endless", "/large")),
        *(setup.file_url(size_bytes) for size_bytes in (TOO_LARGE_BYTES, LARGE_BYTES)),
    )
    most_bytes = anonymous_bytes(server)

    async def reason_of(call: Any) -> str:
        nonlocal most_bytes
        refusal = await refusal_of(call)
        most_bytes = max(most_bytes, anonymous_bytes(server))
        return refusal.reason

    reasons = await asyncio.gather(*(reason_of(setup.call(url)) for url in urls for _ in range(each)))
    for call in held:
        call.cancel()
    await eventually(server.is_at_rest)
    return Counter(reasons), most_bytes


async def stand(setup: Setup, *, each: int, rounds: int) -> None:
    await setup.answered()
    await eventually(setup.server.is_at_rest)
    before_bytes = anonymous_bytes(setup.server)
    for _ in range(rounds):
        reasons, most_bytes = await fill_and_refuse(setup, each=each)
        assert reasons == {"MEDIA_TOO_LARGE": 2 * each, "MEMORY_BUDGET_FULL": 3 * each}
        assert most_bytes < before_bytes + WHILE_FETCHING_BYTES
    await setup.answered()
    await eventually(lambda: anonymous_bytes(setup.server) < before_bytes + REMAINING_BYTES)


async def test_refused_and_cancelled_fetches_leave_no_memory(tmp_path: Path, group: MemoryGroup | None) -> None:
    async with set_up(tmp_path, group) as setup:
        await stand(setup, each=6, rounds=2)
    assert group is None or group.kill_count == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_many_refused_and_cancelled_fetches_leave_no_memory(tmp_path: Path, group: MemoryGroup | None) -> None:
    async with set_up(tmp_path, group) as setup:
        await stand(setup, each=30, rounds=20)
    assert group is None or group.kill_count == 0
