"""A chat about one clip: of each turn the time to its first token, and the core-seconds of all serving processes."""

from __future__ import annotations

from typing import Any

from tests.bench.device.vllm.cell import settle
from tests.bench.device.vllm.systems import System, Workload, unique_clip

TURN_COUNT = 10


async def chats(system: System, fps: float, chat_count: int) -> dict[str, Any]:
    """One chat after another, each about a clip that no cache knows; one more before them does not count."""
    first_token_seconds: list[list[float]] = []
    core_seconds: list[list[float]] = []
    async with system.connected(Workload(fps, 1)) as ask:
        for number in range(-1, chat_count):
            file, first, cores = unique_clip(), [], []
            await settle(system)
            for turn in range(1, TURN_COUNT + 1):
                cpu = system.cpu_seconds()
                reply = await ask(file, turn)
                cores.append(system.cpu_seconds() - cpu)
                first.append(reply.first_token_seconds)
            if number >= 0:
                first_token_seconds.append(first)
                core_seconds.append(cores)
    return {
        "turns_of": system.name,
        "fps": fps,
        "turn_first_token_seconds": first_token_seconds,
        "turn_core_seconds": core_seconds,
    }
