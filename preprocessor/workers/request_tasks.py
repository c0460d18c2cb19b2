"""The tasks of one request, from their creation until no worker has any of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from preprocessor.pipeline.division import IdleCores
from preprocessor.types.timing import Timings
from preprocessor.workers.payloads import Payload
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.task import Task, TensorSlot


def _ignore(first_row: int, row_count: int) -> None:
    pass


class RequestTasks:
    """Creates the tasks of a request, submits them, and awaits their results.

    Args:
        deadline_seconds: On `time.monotonic`'s clock; a task that has not started by then does not start.
        timings: Gets the time spent waiting for workers, as the stage "queue".
        lease_result: As `Task.lease_result`.
        scope: As `Task.scope`.
    """

    def __init__(
        self,
        pool: WorkerPool,
        deadline_seconds: float,
        timings: Timings,
        lease_result: Callable[[int], int | None],
        scope: str,
    ) -> None:
        self._pool = pool
        self._deadline_seconds = deadline_seconds
        self._timings = timings
        self._lease_result = lease_result
        self._scope = scope
        self._is_pending = False
        self._tasks: list[Task] = []
        self._own: list[Task] = []
        self._on_done: Callable[[], None] | None = None

    @property
    def are_done(self) -> bool:
        """Whether no worker has any of the tasks, and none waits for one."""
        return all(task.is_done for task in self._tasks)

    def begin(self) -> None:
        """Count the request among those that wait for workers, until `end`. Calling it twice is fine.

        Raises:
            Overloaded: `QUEUE_FULL`.
        """
        if not self._is_pending:
            self._pool.begin_request()
            self._is_pending = True

    def end(self) -> None:
        """The request needs no more workers. Calling it twice is fine."""
        if self._is_pending:
            self._is_pending = False
            self._pool.end_request()

    def create(
        self,
        payload: Payload,
        cpu_seconds: float,
        working_bytes: int,
        *,
        on_rows_written: Callable[[int, int], None] = _ignore,
        tensor: TensorSlot | None = None,
        cut: Callable[[IdleCores], list[Task]] | None = None,
        payload_at_start: Callable[[], Payload] | None = None,
        on_result: Callable[[Any], None] = lambda result: None,
    ) -> Task:
        """A task with the request's deadline; see `Task`. Either `submit` it or `add` it."""
        return Task(
            payload,
            cpu_seconds,
            working_bytes,
            self._deadline_seconds,
            on_rows_written,
            self._lease_result,
            tensor,
            cut,
            payload_at_start,
            on_result,
            self._scope,
        )

    def submit(self, task: Task, *, is_shared: bool = False) -> None:
        """See `WorkerPool.submit`; `is_shared` as in `add`."""
        self._pool.submit(task)
        self.add(task, is_shared=is_shared)

    def add(self, task: Task, *, is_shared: bool = False) -> None:
        """Keep a task that the pool has, or is about to start.

        Args:
            is_shared: Other requests may want its result: `abandon` does not end it.
        """
        self._tasks.append(task)
        if self._on_done is not None:
            self._call_when_done(task, self._on_done)
        if not is_shared:
            self._own.append(task)

    def share(self, task: Task) -> None:
        """Other requests may want the result of a task that was added: `abandon` does not end it any more."""
        self._own.remove(task)

    async def result(self, task: Task) -> Any:
        """Wait for a task; returns its result.

        Raises:
            Whatever ended the task.
        """
        await asyncio.wait([task.done])  # if the caller is cancelled here, `abandon` ends the task
        if task.started_at_seconds:
            wait = Timings()
            wait.add("queue", (task.started_at_seconds - task.queued_at_seconds) * 1e3, 0.0, task.started_at_seconds)
            self._timings.merge(wait)
        return task.done.result()

    def abandon(self) -> None:
        """End all tasks that are not shared soon; see `WorkerPool.abandon`."""
        for task in self._own:
            self._pool.abandon(task)

    def on_done(self, callback: Callable[[], None]) -> None:
        """Have this called when each task that is not done yet is done, those included that are added later."""
        self._on_done = callback
        for task in self._tasks:
            if not task.is_done:
                self._call_when_done(task, callback)

    @staticmethod
    def _call_when_done(task: Task, callback: Callable[[], None]) -> None:
        task.done.add_done_callback(lambda _: callback())
