"""Workers that are threads of the service, for debugging and comparison: without isolation and limits, and never killed."""

from __future__ import annotations

import asyncio
import dataclasses
import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from preprocessor.config.machine import use_one_thread
from preprocessor.models.loaded import LoadedModel
from preprocessor.workers.arena import Arena
from preprocessor.workers.channel import Command, dump, load
from preprocessor.workers.stop_flag import StopFlag
from preprocessor.workers.worker import StopCheck


class ThreadWorker:
    """Has the methods of `process.ProcessWorker`."""

    def __init__(self, arena: Arena, model: LoadedModel) -> None:
        self._flag = StopFlag(mmap.mmap(-1, mmap.PAGESIZE))
        self.task_count = 0
        self.grown_bytes = 0
        self.end_reason = ""
        self.is_alive = True
        self._arena = arena
        self._model = model
        self._executor = ThreadPoolExecutor(1, "worker", initializer=use_one_thread)

    def is_for(self, scope: str) -> bool:
        """Always: nothing is isolated."""
        return True

    async def run(
        self, command: Command, on_rows_written: Callable[[int, int], None], lease_result: Callable[[int], int | None]
    ) -> Any:
        """See `process.ProcessWorker.run`. Results stay where they are, so `lease_result` is not called."""
        loop = asyncio.get_running_loop()

        def report_rows(first_row: int, row_count: int) -> None:
            loop.call_soon_threadsafe(on_rows_written, first_row, row_count)

        # CPU time is measured for the whole process, so it cannot be limited for one thread.
        files: list[memoryview] = []
        message = dump(dataclasses.replace(command, cpu_seconds=float("inf")), files.append)
        command = load(message, lambda _: bytes(files.pop(0)))  # a copy, so that nobody can change what decoders read
        check = StopCheck(self._flag, command)
        try:
            return await loop.run_in_executor(
                self._executor, lambda: command.payload.run(self._model, self._arena, check, report_rows)
            )
        finally:
            self.task_count += 1

    def stop(self, task_id: int) -> None:
        """See `process.ProcessWorker.stop`."""
        self._flag.stop(task_id)

    def examine(self) -> None:
        """Does nothing: a thread has no limits."""

    def kill(self) -> None:
        """Does nothing: a thread ends only at its next checkpoint."""

    def retire(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def on_exit(self, callback: Callable[[], None]) -> None:
        """Never calls back: a thread ends only when it is told to."""
