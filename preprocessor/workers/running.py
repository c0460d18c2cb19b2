"""Tasks that workers have: how each starts, and how it ends.

The death of a worker affects only the task that it ran. The task is tried once more; one that kills two workers fails.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import math
import signal
from collections.abc import Callable, Iterator
from typing import Any

from preprocessor.errors import Cancelled, WorkerLost
from preprocessor.models.loaded import LoadedModel
from preprocessor.workers import refusals
from preprocessor.workers.channel import Command
from preprocessor.workers.claims import Violation
from preprocessor.workers.counters import PoolCounters
from preprocessor.workers.payloads import PixelPayload, most_result_bytes
from preprocessor.workers.process import WorkerDied
from preprocessor.workers.task import Task, TaskState, Worker
from preprocessor.workers.worker_set import WorkerSet

logger = logging.getLogger(__name__)

_TRIES = 2


class RunningTasks:
    """Tasks with a worker each, in the order of their start.

    Args:
        counters: Get what the tasks work in.
        max_cpu_seconds: CPU that one task may use.
        on_end: Called with a task that no worker has any more: it is DONE, or QUEUED to be tried again.
    """

    def __init__(
        self,
        model: LoadedModel,
        worker_set: WorkerSet,
        counters: PoolCounters,
        max_cpu_seconds: float,
        on_end: Callable[[Task], None],
    ) -> None:
        self._model = model
        self._worker_set = worker_set
        self._counters = counters
        self._max_cpu_seconds = max_cpu_seconds
        self._on_end = on_end
        self._task_ids = itertools.count(1)
        self._runs: dict[Task, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Task]:
        return iter(self._runs)

    async def join(self) -> None:
        """Wait until all have ended."""
        if self._runs:
            await asyncio.wait(self._runs.values())

    def begin(self, task: Task) -> None:
        """Start a task on an idle worker of its lane; there is one."""
        worker = self._worker_set.take(task.lane, task.scope)
        task.start(worker, next(self._task_ids))
        if task.payload_at_start is not None:
            task.payload = task.payload_at_start()
        if isinstance(task.payload, PixelPayload) and task.tensor is not None and task.tensor.lease is not None:
            task.payload = dataclasses.replace(task.payload, offset=task.tensor.lease.offset)
        self._counters.add_working(task.working_bytes)
        self._runs[task] = asyncio.get_running_loop().create_task(self._run(task, worker), context=task.context)

    async def _run(self, task: Task, worker: Worker) -> None:
        """Run a task on its worker, and finish it or queue it again."""
        # A task that several requests wait for ends with the last of them.
        deadline_seconds = math.inf if isinstance(task.payload, PixelPayload) else task.deadline_seconds
        command = Command(task.task_id, deadline_seconds, self._max_cpu_seconds, task.payload, task.scope)
        outcome: Any
        try:
            if not worker.is_for(task.scope):
                worker = await self._change_worker(task, worker)
            outcome = await worker.run(
                command, task.on_rows_written, lambda size_bytes: self._lease_result(task, size_bytes)
            )
            task.on_result(outcome)
        except WorkerDied as death:
            outcome = self._outcome_of_death(task, death)
        except Exception as error:  # any error must reach the request that caused it, or the request would wait on
            outcome = error
        self._counters.remove_working(task.working_bytes)
        del self._runs[task]
        self._worker_set.put_back(task.lane, worker)
        if isinstance(outcome, WorkerDied):
            task.requeue()
        else:
            task.finish(outcome)
        self._on_end(task)

    async def _change_worker(self, task: Task, worker: Worker) -> Worker:
        """A new worker for a task of another caller than the one whose files have reached the worker.

        Raises:
            Overloaded: `SYSTEM_RESOURCES_EXHAUSTED`: no process can be forked now.
            Cancelled: The caller has left meanwhile.
        """
        try:
            fresh = await self._worker_set.renew(task.lane, worker)
        except OSError as error:
            logger.error("no worker can be forked: %s", error)
            raise refusals.system_resources_exhausted() from error
        if task.state is TaskState.CANCELLING:
            self._worker_set.put_back(task.lane, fresh)
            raise Cancelled("the caller went away")
        task.move_to_worker(fresh)
        return fresh

    def _lease_result(self, task: Task, size_bytes: int) -> int | None:
        """See `Task.lease_result`: cached rows may be dropped for it.

        Raises:
            Violation: No result of the task is so large.
        """
        most_bytes = most_result_bytes(task.payload, self._model)
        if most_bytes is not None and size_bytes > most_bytes:
            raise Violation("result", f"a result of {size_bytes} bytes; at most {most_bytes} are possible")
        return task.lease_result(size_bytes)

    def _outcome_of_death(self, task: Task, death: WorkerDied) -> Exception:
        """The error of a task whose worker died; the death itself if the task is tried again."""
        if task.state is TaskState.CANCELLING:
            return Cancelled("the caller went away")
        if death.violation is not None:
            logger.error("%s: %s; its request is given up", death, death.violation)
            return refusals.worker_violation()
        if death.code == -signal.SIGXCPU:
            return refusals.cpu_seconds_exceeded(self._max_cpu_seconds)
        is_retried = task.start_count < _TRIES and not task.is_early
        logger.warning("%s; its request is %s", death, "tried again" if is_retried else "given up")
        if is_retried:
            return death
        return WorkerLost(f"{_TRIES} workers in a row died of this request; it is not tried again")
