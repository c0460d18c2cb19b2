"""One piece of work for all who wait for its outcome, whoever of them leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

_Outcome = TypeVar("_Outcome")

UNSEEN_SECONDS = 10.0
"""Between two probes of an engine; longer ago than that it may have been another one."""


class SharedTask(Generic[_Outcome]):
    """Runs a coroutine once at a time, for all who wait for it then. It goes on when they leave, so work that takes longer than
    each of them waits is done all the same.

    Args:
        work: Makes the coroutine.
    """

    def __init__(self, work: Callable[[], Coroutine[Any, Any, _Outcome]]) -> None:
        self._work = work
        self._task: asyncio.Task[_Outcome] | None = None
        self._ended_at = 0.0

    async def outcome(self, *, unseen_seconds: float = 0.0) -> _Outcome:
        """Wait for the run that is under way, or else for a new one.

        Args:
            unseen_seconds: How old the outcome of a run that everybody left may be to be taken in place of a new run's.
        Raises:
            Exception: what the work raises; the same object for all who wait.
        """
        task = self._task
        if task is None or (task.done() and self._age_seconds() >= unseen_seconds):
            task = self._task = asyncio.create_task(self._work())
            task.add_done_callback(self._note_end)
        try:
            return await asyncio.shield(task)
        finally:
            if task.done() and self._task is task:
                self._task = None

    def forget(self) -> None:
        """An outcome that nobody has seen does not hold any more."""
        if self._task is not None and self._task.done():
            self._task = None

    async def ended(self) -> None:
        """Wait for the run that is under way, whatever its outcome."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    def _age_seconds(self) -> float:
        return asyncio.get_running_loop().time() - self._ended_at

    def _note_end(self, task: asyncio.Task[_Outcome]) -> None:
        self._ended_at = asyncio.get_running_loop().time()
        if not task.cancelled():
            task.exception()  # perhaps nobody waits for it
