"""Workers that are threads of the service: for debugging, and to compare. No isolation, no kill, no limits."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from preprocessor.config.machine import use_one_thread
from preprocessor.models.loaded import LoadedModel
from preprocessor.workers.arena import Arena
from preprocessor.workers.channel import Command
from preprocessor.workers.worker import Checkpoint


class ThreadWorker:
    """Stands in for a `process.ProcessWorker`."""

    def __init__(self, slot: int, arena: Arena, model: LoadedModel) -> None:
        self.slot = slot
        self.task_count = 0
        self.grown_bytes = 0
        self.end_reason = ""
        self.is_alive = True
        self._arena = arena
        self._model = model
        self._executor = ThreadPoolExecutor(1, "worker", initializer=use_one_thread)

    async def run(
        self, command: Command, rows_written: Callable[[int, int], None], lease_result: Callable[[int], int | None]
    ) -> Any:
        """See `process.ProcessWorker.run`; results stay where they are, so no room is asked for."""
        loop = asyncio.get_running_loop()

        def announce(first_row: int, row_count: int) -> None:
            loop.call_soon_threadsafe(rows_written, first_row, row_count)

        # CPU time is counted by process, which is everybody's here.
        command = dataclasses.replace(command, cpu_seconds=float("inf"))
        check = Checkpoint(self._arena, self.slot, command)
        try:
            return await loop.run_in_executor(
                self._executor, lambda: command.payload.run(self._model, self._arena, check, announce)
            )
        finally:
            self.task_count += 1

    def kill(self) -> None:
        """A thread cannot be ended from outside: its next checkpoint does it."""

    def retire(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def on_exit(self, callback: Callable[[], None]) -> None:
        """A thread ends only when it is told to."""
