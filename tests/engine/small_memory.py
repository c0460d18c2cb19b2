"""Processes with a small `/dev/shm` of their own, which a test may fill without harm to others on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from preprocessor.client import Client, Prompt
from preprocessor.client.retry import RETRY_SECONDS
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.bench.service.watched import WatchedServer
from tests.waiting import PATIENCE_SECONDS, eventually

DEFAULT_BYTES = 64 << 20
"""Of a container's /dev/shm, unless it is told otherwise."""


@asynccontextmanager
async def served(*options: object, under: Sequence[str]) -> AsyncIterator[WatchedServer]:
    """A service as a process, which must be at rest when the context ends.

    Args:
        under: What gives it its `/dev/shm`: `own_shared_memory`, or `beside`.
    """
    server = WatchedServer(*map(str, options), under=under)
    await asyncio.to_thread(server.__enter__)
    try:
        yield server
        await eventually(server.is_at_rest)
        assert server.process.is_running()
    finally:
        await asyncio.to_thread(server.__exit__)


def beside(process_id: int) -> list[str]:
    """What to put before a command so that it has the `/dev/shm` of a process that was started under `own_shared_memory`."""
    as_user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
    return ["nsenter", "--target", str(process_id), *as_user, "--mount", "--"]


def shared_memory_of(process_id: int) -> Path:
    """Its `/dev/shm`, seen from here."""
    return Path(f"/proc/{process_id}/root/dev/shm")


@contextlib.contextmanager
def filled(directory: Path, free_bytes: int) -> Iterator[None]:
    """Somebody else takes all but so much of it."""
    filler = directory / "somebody-else-s"
    space = os.statvfs(directory)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - free_bytes)
    try:
        yield
    finally:
        filler.unlink(missing_ok=True)  # with the last process in it that /dev/shm is gone


async def answer(
    server: WatchedServer, spec: pb.PrepareSpec, max_tokens: int = 3, retry_seconds: float = RETRY_SECONDS
) -> list[int]:
    """All tokens of a `Generate`.

    Raises:
        CallFailed: It was refused, for so long.
    """

    def call() -> list[int]:
        with (
            Client(server.address, retry_seconds=retry_seconds) as client,
            client.generate(Prompt(spec), max_tokens=max_tokens, timeout_seconds=PATIENCE_SECONDS) as answer,
        ):
            answer.read()
            return list(answer.token_ids)

    return await asyncio.to_thread(call)
