"""Turns of chats about a clip, and what the service takes for them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from preprocessor.client import AsyncClient, Credentials, Prompt, RowsRegion, chat, image, video
from preprocessor.traffic.seed import TEXT
from tests.bench.service.sender import SenderAlone
from tests.bench.service.watched import WatchedServer

TIMEOUT_SECONDS = 300.0


@dataclass(slots=True)
class Turns:
    """Of each turn of one kind: seconds of CPU together, and milliseconds until the first row and until the last."""

    cpu_seconds: float = 0.0
    first_row_ms: list[float] = field(default_factory=list)
    wall_ms: list[float] = field(default_factory=list)

    @property
    def cpu_ms(self) -> float:
        return self.cpu_seconds / len(self.wall_ms) * 1e3


Turn = Callable[[AsyncClient, Prompt, Turns], Awaitable[None]]
"""Asks for the answer to a prompt, reads all of it, and notes the time."""


def question(
    clip: bytes,
    fps: float,
    salt: str,
    turn_count: int,
    pixel_form: Literal["uint8", "none"] = "uint8",
    pictures: Sequence[bytes] = (),
) -> Prompt:
    """A chat about the clip and pictures with so many turns of the user."""
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [video(clip, fps=fps), *map(image, pictures), TEXT]},
    ]
    for number in range(1, turn_count):
        messages += [
            {"role": "assistant", "content": f"Answer {number}."},
            {"role": "user", "content": f"{TEXT} {number}"},
        ]
    return chat(messages, cache_salt=salt, pixel_form=pixel_form)


async def turn(client: AsyncClient, prompt: Prompt, turns: Turns, *, region: RowsRegion | None = None) -> None:
    """A turn through `Prepare`.

    Args:
        region: Where rows go; in messages where None.
    """
    started = time.perf_counter()

    def arrived(received_bytes: int, total_bytes: int) -> None:
        if first_row:
            return
        first_row.append((time.perf_counter() - started) * 1e3)

    first_row: list[float] = []
    await client.prepare(prompt, timeout_seconds=TIMEOUT_SECONDS, progress=arrived, shared_memory=region or False)
    turns.wall_ms.append((time.perf_counter() - started) * 1e3)
    turns.first_row_ms += first_row


@contextmanager
def measured(server: WatchedServer | SenderAlone, turns: Turns, idle_cores: float = 0.0) -> Iterator[None]:
    """Adds the CPU that the service takes meanwhile.

    Args:
        idle_cores: What it takes of a core when nobody calls; not added.
    """
    cpu, wall = server.cpu_seconds(), time.perf_counter()
    yield
    turns.cpu_seconds += server.cpu_seconds() - cpu - idle_cores * (time.perf_counter() - wall)


async def chats(
    server: WatchedServer,
    clip: bytes,
    fps: float,
    chat_count: int,
    turn_count: int,
    ask: Turn = turn,
    idle_cores: float = 0.0,
) -> tuple[Turns, Turns]:
    """First turns and later ones, of so many chats.

    Args:
        idle_cores: As in `measured`.
    """
    first, later = Turns(), Turns()
    for _ in range(chat_count):
        salt = secrets.token_hex(8)
        async with AsyncClient(server.address, Credentials(insecure=True)) as client:
            with measured(server, first, idle_cores):
                await ask(client, question(clip, fps, salt, 1), first)
            with measured(server, later, idle_cores):
                for number in range(2, turn_count + 1):
                    await ask(client, question(clip, fps, salt, number), later)
    return first, later
