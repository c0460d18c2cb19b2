"""What requests take of one pool, counted in one place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from preprocessor.workers.claims import VIOLATION_KINDS
from preprocessor.workers.ranges import Ranges
from preprocessor.workers.task import TaskState


class PoolCounters:
    """Every count of a pool. Only the methods here change one; everybody else reads.

    Args:
        files: The memory for files.
        rows: The memory for pixels and other results, and for what workers need meanwhile.
    """

    def __init__(self, files: Ranges, rows: Ranges) -> None:
        self._files = files
        self._rows = rows
        self._pending_count = 0
        self._uploading_bytes = 0
        self._working_bytes = 0
        self._violation_counts = dict.fromkeys(VIOLATION_KINDS, 0)
        self._early_counts: Counter[str] = Counter()
        self._abandoned_counts = {TaskState.QUEUED: 0, TaskState.RUNNING: 0}

    @property
    def pending_count(self) -> int:
        """Requests that wait for a worker or have one."""
        return self._pending_count

    @property
    def abandoned_counts(self) -> Mapping[str, int]:
        """Tasks whose caller went away, since the start, by the state they were in: "queued" or "running"."""
        return {state.value: count for state, count in self._abandoned_counts.items()}

    @property
    def early_counts(self) -> Mapping[str, int]:
        """What became of early work, since the start; see `early_work.EarlyEnd`."""
        return self._early_counts

    @property
    def violation_counts(self) -> Mapping[str, int]:
        """What workers did that they may not, since the start, by kind; see `claims.Violation`."""
        return self._violation_counts

    @property
    def file_bytes(self) -> int:
        """Memory that files take: those in the arena, and bytes that have arrived and are not in the arena yet.

        Files that only the cache holds are not included: they give way.
        """
        return self._uploading_bytes + self._files.leased_bytes - self._files.kept_bytes

    @property
    def row_bytes(self) -> int:
        """Memory that pixels and other results take, and that running tasks are expected to need beside them.

        Rows that only the cache holds are not included: they give way.
        """
        return self._working_bytes + self._rows.leased_bytes - self._rows.kept_bytes

    @property
    def working_bytes(self) -> int:
        """Memory that running tasks are expected to need beside their tensors."""
        return self._working_bytes

    @property
    def used_bytes(self) -> int:
        """The part of the budget that requests hold."""
        return self.file_bytes + self.row_bytes

    @property
    def fullness(self) -> float:
        """The part taken, 0 to 1, of the memory for files or of that for rows, whichever is fuller."""
        return max(self.file_bytes / self._files.size_bytes, self.row_bytes / self._rows.size_bytes)

    def add_pending(self) -> None:
        """A request now waits for workers."""
        self._pending_count += 1

    def remove_pending(self) -> None:
        """A request no longer waits for workers."""
        self._pending_count -= 1

    def add_uploading(self, size_bytes: int) -> None:
        """Bytes of a file have arrived and are not in the arena yet."""
        self._uploading_bytes += size_bytes

    def remove_uploading(self, size_bytes: int) -> None:
        """Those bytes are in the arena now, or gone."""
        self._uploading_bytes -= size_bytes

    def add_working(self, size_bytes: int) -> None:
        """A task has started that is expected to need so much."""
        self._working_bytes += size_bytes

    def remove_working(self, size_bytes: int) -> None:
        """The worker has returned that task."""
        self._working_bytes -= size_bytes

    def add_violation(self, kind: str) -> None:
        """A worker did what it may not."""
        self._violation_counts[kind] += 1

    def add_early(self, end: str) -> None:
        """A request's early work has ended that way."""
        self._early_counts[end] += 1

    def add_abandoned(self, state: TaskState) -> None:
        """A task was abandoned in that state."""
        self._abandoned_counts[state] += 1
