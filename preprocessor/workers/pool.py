"""A sized pool for CPU work, with a bounded queue in front.

The pool is the service's own: the interpreter's shared default executor has another size, another queue and other users.
Each worker is one core: torch, OpenCV and FFmpeg are held to one thread, or workers would fight each other for cores.

Work is a callable that takes a checkpoint and calls it often. The checkpoint raises once the caller has gone or its
deadline has passed, so an abandoned decode ends within a packet.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import cv2
import torch

from preprocessor.errors import Cancelled, Overloaded
from preprocessor.pipeline import Checkpoint
from preprocessor.timing import Timings

Result = TypeVar("Result")


class WorkerPool:
    """Runs CPU work off the event loop, `worker_count` pieces at once.

    Args:
        worker_count: At least 1.
        max_queued_count: Pieces that may wait beyond those running; one more is refused.
    """

    def __init__(self, worker_count: int, max_queued_count: int) -> None:
        self.worker_count = worker_count
        self.max_queued_count = max_queued_count
        self.pending_count = 0
        """Pieces running or waiting, those of callers who left included until they end."""
        self._executor = ThreadPoolExecutor(worker_count, "worker", initializer=_use_one_thread)

    @property
    def queued_count(self) -> int:
        return max(0, self.pending_count - self.worker_count)

    async def run(self, work: Callable[[Checkpoint], Result], timings: Timings | None = None) -> Result:
        """Run `work` on a worker and return what it returns.

        Cancelling the awaiting task stops the work at its next checkpoint.

        Args:
            timings: Gets the time spent waiting for a worker, as the stage "queue".
        Raises:
            Overloaded: `QUEUE_FULL`.
            Whatever `work` raises.
        """
        if self.queued_count >= self.max_queued_count:
            raise Overloaded(
                f"{self.queued_count} requests wait for {self.worker_count} workers already; try again, or another replica",
                reason="QUEUE_FULL",
            )
        abandoned = threading.Event()
        queued_at = time.perf_counter()

        def checkpoint() -> None:
            if abandoned.is_set():
                raise Cancelled("the caller went away")

        def measured() -> Result:
            checkpoint()
            if timings is not None:
                timings.add("queue", (time.perf_counter() - queued_at) * 1e3)
            return work(checkpoint)

        loop = asyncio.get_running_loop()
        future = self._executor.submit(measured)
        self.pending_count += 1
        future.add_done_callback(lambda _: _call_if_open(loop, self._forget_one))
        try:
            return await asyncio.wrap_future(future)
        finally:
            abandoned.set()

    def close(self) -> None:
        """Drop what waits, and return when running work has ended."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _forget_one(self) -> None:
        self.pending_count -= 1


def _call_if_open(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Schedule from a worker thread; a loop that closed meanwhile has nobody left to tell."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)


def _use_one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
