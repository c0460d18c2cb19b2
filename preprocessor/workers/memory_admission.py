"""Which task gets memory when there is not enough for all that wait.

A task that does not fit yet may be bypassed by others for `MAX_BYPASS_SECONDS`. Then memory is reserved for it: what other
tasks release is given to nobody else. Only small tasks may still bypass it, in either lane, so that a caller who reads slowly
delays one large video and not every photo behind it. All bypassing tasks together hold at most an allowance, which leaves
enough memory for the waiting task. Their tensors lie at the end of memory, where they split no free range.
"""

from __future__ import annotations

import time

from preprocessor.workers.chunk_memory import SpareChunks
from preprocessor.workers.counters import PoolCounters
from preprocessor.workers.ranges import Lease, Ranges
from preprocessor.workers.row_cache import RowCache
from preprocessor.workers.task import Task

MAX_BYPASS_SECONDS = 1.0
_ALLOWANCE_SHARE = 8  # one part in so many: dozens of photos, and the plans of hundreds of requests


class MemoryAdmission:
    """Admits tasks to the memory for tensors and for what workers need meanwhile.

    Args:
        rows: The memory in which tensors lie.
        spare: Chunks that no task has, dropped for tasks.
        counters: Those of the pool: what tasks hold.
        cache: Finished rows in the same memory, evicted for tasks.
    Attributes:
        reserved_for: The waiting task that memory is reserved for.
    """

    def __init__(self, rows: Ranges, spare: SpareChunks, counters: PoolCounters, cache: RowCache) -> None:
        self.reserved_for: Task | None = None
        self._rows = rows
        self._spare = spare
        self._counters = counters
        self._cache = cache
        self._bypassing: list[Task] = []

    @property
    def free_bytes(self) -> int:
        """What requests may take: memory that is free, or that only the cache holds."""
        return self._rows.size_bytes - self._counters.row_bytes

    def try_admit(self, task: Task) -> bool:
        """Whether the task leaves its queue now: its memory fits, and its tensor is leased, or its deadline has passed."""
        now = time.monotonic()
        if task.deadline_seconds <= now:
            return True
        if self.reserved_for is not None and self.reserved_for.is_done:
            self.reserved_for, self._bypassing = None, []
        is_bypassing = self.reserved_for not in (None, task)
        if wanted_bytes(task) <= (self._allowance_bytes() if is_bypassing else self.free_bytes) and self._lease_tensor(
            task, from_end=is_bypassing
        ):
            if is_bypassing:
                self._bypassing.append(task)
            elif task is self.reserved_for:
                self.reserved_for, self._bypassing = None, []
            return True
        if self.reserved_for is None and now - task.queued_at_seconds > MAX_BYPASS_SECONDS:
            self.reserved_for = task
        return False

    def lease(self, size_bytes: int, *, from_end: bool = False, scope: str | None = None) -> Lease | None:
        """Lease a range, see `Ranges.lease`, in place of cached rows if need be; None if no free range is long enough."""
        while (lease := self._rows.lease(size_bytes, from_end=from_end, scope=scope)) is None:
            if not self._cache.give_way():
                return None
        return lease

    def make_room(self, size_bytes: int = 0) -> None:
        """Drop cached rows until so much memory is free, and what running tasks need with it, or until none is left."""
        self._cache.make_room(size_bytes, self._counters.working_bytes + self._rows.leased_bytes)

    def make_room_for_workers(self) -> None:
        """Give up what only the cache holds, and pages that nothing holds, for tasks that have just started.

        A task was admitted with its memory, but the parts that it was cut into were not.
        """
        self.make_room()
        excess_bytes = self._counters.working_bytes + self._rows.paged_bytes - self._rows.size_bytes
        self._spare.drop(self._spare.size_bytes + excess_bytes)
        if excess_bytes > 0:
            self._rows.drop_free_pages()

    def _allowance_bytes(self) -> int:
        """What a bypassing task may take: never more than is free, and never what the waiting task needs."""
        assert self.reserved_for is not None
        size_bytes = self._rows.size_bytes
        self._bypassing = [task for task in self._bypassing if _held_bytes(task)]
        allowance = min(size_bytes // _ALLOWANCE_SHARE, (size_bytes - wanted_bytes(self.reserved_for)) // 2)
        return min(self.free_bytes, allowance - sum(map(_held_bytes, self._bypassing)))

    def _lease_tensor(self, task: Task, *, from_end: bool) -> bool:
        """Make room for the task, and lease the range of its tensor if it needs one; returns whether there was one."""
        self.make_room(wanted_bytes(task))
        if not task.tensor_bytes or task.tensor is None:
            return True
        task.tensor.lease = self.lease(task.tensor.size_bytes, from_end=from_end, scope=task.scope)
        if task.tensor.lease is None:
            return False
        task.tensor.on_lease()
        return True


def wanted_bytes(task: Task) -> int:
    """Memory that a task needs before it can start."""
    return task.tensor_bytes + task.working_bytes


def _held_bytes(task: Task) -> int:
    """Memory that a bypassing task still holds: its tensor may outlive it, until the caller has read it."""
    lease = None if task.tensor is None else task.tensor.lease
    tensor_bytes = 0 if lease is None or lease.is_released else lease.size_bytes
    return tensor_bytes + (0 if task.is_done else task.working_bytes)
