"""One task on its way through the pool, and the states it may be in."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any

from preprocessor.pipeline.division import IdleCores
from preprocessor.workers.payloads import Payload
from preprocessor.workers.process import ProcessWorker
from preprocessor.workers.ranges import Lease
from preprocessor.workers.thread import ThreadWorker

SHORT_SECONDS = 0.25

Worker = ProcessWorker | ThreadWorker


class Lane(enum.Enum):
    """Which workers may run a task: those for tasks expected to take less than `SHORT_SECONDS`, or those for the rest."""

    SHORT = "short"
    LONG = "long"


def lane_of(cpu_seconds: float) -> Lane:
    """The lane of a task that is expected to take so long."""
    return Lane.SHORT if cpu_seconds < SHORT_SECONDS else Lane.LONG


class TaskState(enum.Enum):
    """Where a task is: QUEUED → RUNNING → CANCELLING → DONE.

    QUEUED: It waits for a worker or for memory.
    RUNNING: A worker has it.
    CANCELLING: A worker has it and was told to stop.
    DONE: No worker has it, and its result or error is set.
    """

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"


_NEXT_STATES = {
    TaskState.QUEUED: (TaskState.RUNNING, TaskState.DONE),  # done: abandoned, or past its deadline, before it started
    TaskState.RUNNING: (
        TaskState.CANCELLING,
        TaskState.DONE,
        TaskState.QUEUED,
    ),  # queued: its worker died; it is retried
    TaskState.CANCELLING: (TaskState.DONE,),
    TaskState.DONE: (),
}


@dataclass(slots=True)
class TensorSlot:
    """Where a request's pixel tensor goes: leased when its task starts, shared by the parts that the task may be cut into.

    Attributes:
        on_lease: Called when there is a lease.
    """

    size_bytes: int
    lease: Lease | None = None
    on_lease: Callable[[], None] = lambda: None


@dataclass(slots=True, eq=False)
class Task:
    """A payload with its expected cost, its callbacks, its state and its result.

    Attributes:
        cpu_seconds, working_bytes: Its expected cost. The bytes do not include the tensor.
        deadline_seconds: On `time.monotonic`'s clock.
        on_rows_written: Called with (first row, row count) when those rows are final.
        lease_result: Leases a range of the arena for a result of that many bytes and returns its offset; None: no memory.
        payload_at_start: Makes the payload anew when the task starts, with what is known by then.
        on_result: Called with the result before another task starts, so that it is known to that one.
        cut: Divides the task among idle cores. The task becomes the first part; the others are returned.
        scope: Whose task it is: tasks of one scope may run in one process.
        context: The request's context, so that log lines about the task carry its request id, whichever task's end starts it.
        done: Its result or error; set when the state becomes DONE.
        started_at_seconds: When it first started, on `time.monotonic`'s clock; 0 before that.
        start_count: How often it has started. More than once means that its workers died.
        core_count: Threads that it has.
        is_early: Nobody waits for it yet: it is not tried again if its worker dies.
        task_id: Its number while it runs; another one each time it starts.
    """

    payload: Payload
    cpu_seconds: float
    working_bytes: int
    deadline_seconds: float
    on_rows_written: Callable[[int, int], None]
    lease_result: Callable[[int], int | None]
    tensor: TensorSlot | None = None
    cut: Callable[[IdleCores], list[Task]] | None = None
    payload_at_start: Callable[[], Payload] | None = None
    on_result: Callable[[Any], None] = lambda result: None
    scope: str = ""
    context: Context = field(default_factory=copy_context)
    done: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    lane: Lane = field(init=False)
    queued_at_seconds: float = field(default_factory=time.monotonic)
    started_at_seconds: float = field(init=False, default=0.0)
    start_count: int = field(init=False, default=0)
    core_count: int = field(init=False, default=1)
    is_early: bool = field(init=False, default=False)
    task_id: int = field(init=False, default=0)
    _state: TaskState = field(init=False, default=TaskState.QUEUED)
    _worker: Worker | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.lane = lane_of(self.cpu_seconds)

    @property
    def state(self) -> TaskState:
        return self._state

    @property
    def is_done(self) -> bool:
        return self._state is TaskState.DONE

    @property
    def tensor_bytes(self) -> int:
        """Memory that its tensor still needs."""
        return 0 if self.tensor is None or self.tensor.lease is not None else self.tensor.size_bytes

    def start(self, worker: Worker, task_id: int) -> None:
        """QUEUED → RUNNING."""
        self._move_to(TaskState.RUNNING)
        self._worker = worker
        self.task_id = task_id
        self.start_count += 1
        self.started_at_seconds = self.started_at_seconds or time.monotonic()

    def move_to_worker(self, worker: Worker) -> None:
        """RUNNING: another worker has it."""
        self._worker = worker

    def cancel(self) -> Worker:
        """RUNNING → CANCELLING; returns the worker that has the task."""
        self._move_to(TaskState.CANCELLING)
        assert self._worker is not None
        return self._worker

    def requeue(self) -> None:
        """RUNNING → QUEUED, as its worker died."""
        self._move_to(TaskState.QUEUED)
        self._worker = None

    def finish(self, outcome: Any) -> None:
        """Any state → DONE, with the result or the error."""
        self._move_to(TaskState.DONE)
        self._worker = None
        if isinstance(outcome, BaseException):
            self.done.set_exception(outcome)
            self.done.exception()  # marks the error as seen: nobody may be awaiting it any more
        else:
            self.done.set_result(outcome)

    def _move_to(self, state: TaskState) -> None:
        """The only place that changes the state.

        Raises:
            RuntimeError: A task cannot go there from the state it is in.
        """
        if state not in _NEXT_STATES[self._state]:
            raise RuntimeError(f"a task cannot go from {self._state.value} to {state.value}")
        self._state = state
