"""Waiting for what must come, without saying when."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import psutil

PATIENCE_SECONDS = 120.0
"""For what takes a second where nothing else runs: no test passes by waiting so long, and none fails on a busy machine."""
GROWING_SECONDS = (0.3, 1.2, 5.0, 20.0)
"""Deadlines for what is to be cut off in its middle: on a busy machine a short one may pass before anything has begun, and then
the next is tried."""
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.002, 0.05


async def eventually(holds: Callable[[], bool | Awaitable[bool]], patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Return as soon as it holds; fail when patience is over.

    It is asked in the event loop, ever less often: where it asks over a network, it is to be awaited or to answer within
    milliseconds.
    """
    deadline, pause_seconds = time.monotonic() + patience_seconds, _FIRST_PAUSE_SECONDS
    while not (await answer if isinstance(answer := holds(), Awaitable) else answer):
        assert time.monotonic() < deadline, f"not within {patience_seconds} s"
        await asyncio.sleep(pause_seconds)
        pause_seconds = min(1.5 * pause_seconds, _LONGEST_PAUSE_SECONDS)


def has_ended(process: psutil.Process) -> bool:
    """Whether nothing of it runs. An orphan stays a zombie until the init process reaps it, which may take a minute."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return True
