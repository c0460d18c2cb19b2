"""Running coroutines at the same time: without leaving reference cycles behind, and without holding up the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


async def run_concurrently(*coroutines: Coroutine[Any, Any, Result]) -> list[Result]:
    """Run all of them; returns their results in order.

    The first failure cancels the others and is raised once all have ended, and so is a cancellation of the caller.

    `asyncio.TaskGroup` does the same, but its exceptions are in reference cycles with their frames (CPython 3.11). These
    keep everything that the frames hold, such as pieces of files, until the garbage collector runs.
    """
    if not coroutines:
        return []
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        failed = [task for task in tasks if task in done and not task.cancelled() and task.exception() is not None]
    finally:
        await _cancel(tasks)
    if failed:
        failed[0].result()  # raises its error
    return [task.result() for task in tasks]


async def _cancel(tasks: list[asyncio.Task[Result]]) -> None:
    """Cancel tasks and wait until they have ended, even if the waiting is cancelled, too."""
    for task in tasks:
        task.cancel()
    while pending := [task for task in tasks if not task.done()]:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(pending)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # mark it as retrieved: only the first failure is raised


class Turns:
    """At most one long step in each round of the event loop: what else is ready runs between two of them."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def next(self) -> None:
        """Wait for a turn. The step is what the task does from here until it next waits."""
        await self._lock.acquire()
        asyncio.get_running_loop().call_soon(self._lock.release)  # in the next round
