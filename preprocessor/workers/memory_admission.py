"""Who gets memory when it does not suffice for all that waits.

Work that does not fit yet lets others by. When it has done so for a second, memory is kept for it: what others give back is
no longer handed on. Only small work passes even then, in either lane, so that a caller who reads slowly holds up one film and
not every photo behind it: all that passes holds at most an allowance, which leaves room for the waiting work beside it, and
lies at the far end of memory, where it cuts no free range in two.
"""

from __future__ import annotations

import time

from preprocessor.workers.arena import Ranges
from preprocessor.workers.task import Task

PASSED_OVER_SECONDS = 1.0
_ALLOWANCE_SHARE = 8  # one part in so many: dozens of photos, and the plans of hundreds of requests


class MemoryAdmission:
    """Memory for tensors and for what workers need meanwhile.

    Attributes:
        working_bytes: What running work is expected to need beside its tensor.
        kept_for: Waiting work for which memory is kept.
    """

    def __init__(self, rows: Ranges) -> None:
        self.working_bytes = 0
        self.kept_for: Task | None = None
        self._rows = rows
        self._passed: list[Task] = []

    @property
    def free_bytes(self) -> int:
        return self._rows.size_bytes - self._rows.leased_bytes - self.working_bytes

    def may_start(self, task: Task) -> bool:
        """Whether the work is to be taken from its queue now: its memory fits, and it gets it, or its time is over."""
        now = time.monotonic()
        if task.deadline_seconds <= now:
            return True
        if self.kept_for is not None and self.kept_for.done.done():
            self.kept_for, self._passed = None, []
        is_passing = self.kept_for not in (None, task)
        if wanted_bytes(task) <= (self._allowance_bytes() if is_passing else self.free_bytes) and self._place(
            task, from_end=is_passing
        ):
            if is_passing:
                self._passed.append(task)
            elif task is self.kept_for:
                self.kept_for, self._passed = None, []
            return True
        if self.kept_for is None and now - task.queued_at_seconds > PASSED_OVER_SECONDS:
            self.kept_for = task
        return False

    def _allowance_bytes(self) -> int:
        """What may still pass: never more than is free, nor than leaves room for the work that waits."""
        assert self.kept_for is not None
        size_bytes = self._rows.size_bytes
        self._passed = [task for task in self._passed if _held_bytes(task)]
        allowance = min(size_bytes // _ALLOWANCE_SHARE, (size_bytes - wanted_bytes(self.kept_for)) // 2)
        return min(self.free_bytes, allowance - sum(map(_held_bytes, self._passed)))

    def _place(self, task: Task, *, from_end: bool) -> bool:
        """Lease the range of its tensor, where it has one to come."""
        if not task.tensor_bytes or task.tensor is None:
            return True
        task.tensor.lease = self._rows.lease(task.tensor.size_bytes, from_end=from_end)
        if task.tensor.lease is None:
            return False
        task.tensor.on_lease()
        return True


def wanted_bytes(task: Task) -> int:
    """Memory that the work needs before it can start."""
    return task.tensor_bytes + task.working_bytes


def _held_bytes(task: Task) -> int:
    """What work that has passed holds still: its tensor may stay when it is done, until the caller has read it."""
    lease = None if task.tensor is None else task.tensor.lease
    tensor_bytes = 0 if lease is None or lease.is_released else lease.size_bytes
    return tensor_bytes + (0 if task.done.done() else task.working_bytes)
