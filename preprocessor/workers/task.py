"""One job on its way through the pool."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any

from preprocessor.workers.arena import Lease
from preprocessor.workers.payloads import Payload
from preprocessor.workers.process import ProcessWorker
from preprocessor.workers.thread import ThreadWorker

SHORT_SECONDS = 0.25

Worker = ProcessWorker | ThreadWorker


class Lane(enum.Enum):
    """Which workers may do it: those for work expected to take less than `SHORT_SECONDS`, or those for the rest."""

    SHORT = "short"
    LONG = "long"


@dataclass(slots=True)
class TensorSlot:
    """Where a request's pixel tensor goes: leased when its work starts, shared by the parts it may be cut into.

    Attributes:
        on_lease: Called when there is a lease.
    """

    size_bytes: int
    lease: Lease | None = None
    on_lease: Callable[[], None] = lambda: None


@dataclass(slots=True, eq=False)
class Task:
    """A job with what it is expected to take, whom to tell about it, and what became of it.

    Attributes:
        cpu_seconds, working_bytes: What it is expected to take.
        deadline_seconds: On `time.monotonic`'s clock.
        rows_written: Told of finished rows.
        make_room: Leases a range of the arena for a result of that many bytes; None: there is none.
        cut: Divides the work in up to so many parts, of which it becomes the first; returns the others.
        context: The request's, so that what is logged of the work is logged as the request's, whoever lets it start.
        done: The job's result or error, set when no worker has anything to do with it any more.
    """

    payload: Payload
    cpu_seconds: float
    working_bytes: int
    deadline_seconds: float
    rows_written: Callable[[int, int], None]
    lease_result: Callable[[int], int | None]
    tensor: TensorSlot | None = None
    cut: Callable[[int], list[Task]] | None = None
    context: Context = field(default_factory=copy_context)
    done: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    lane: Lane = field(init=False)
    queued_at_seconds: float = field(default_factory=time.monotonic)
    started_at_seconds: float = 0.0
    task_id: int = 0
    lost_count: int = 0
    is_abandoned: bool = False
    worker: Worker | None = None

    def __post_init__(self) -> None:
        self.lane = Lane.SHORT if self.cpu_seconds < SHORT_SECONDS else Lane.LONG

    @property
    def tensor_bytes(self) -> int:
        """Room that its tensor still needs."""
        return 0 if self.tensor is None or self.tensor.lease is not None else self.tensor.size_bytes

    def settle(self, outcome: Any) -> None:
        """Set the result, or the error."""
        if isinstance(outcome, BaseException):
            self.done.set_exception(outcome)
            self.done.exception()  # whoever awaited it may be gone
        else:
            self.done.set_result(outcome)
