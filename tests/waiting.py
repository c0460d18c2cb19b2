"""Waiting for what must come, without saying when."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE_SECONDS = 30.0


async def eventually(holds: Callable[[], bool], patience_seconds: float = PATIENCE_SECONDS) -> None:
    """Return as soon as it holds; fail when patience is over."""
    deadline = time.monotonic() + patience_seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {patience_seconds} s"
        await asyncio.sleep(0.002)
