"""One pixel tensor while workers write it, for all requests that want it.

The first request for a tensor begins it. Others with the same items join, and read its rows as they are finished. Those with some
of its items may wait until it has ended. It goes on until the last of all these has left. The tasks are those of the request that
began it, so its files stay until they are done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from preprocessor.errors import PreprocessorError
from preprocessor.pipeline import cost
from preprocessor.pipeline.division import IdleCores, divide
from preprocessor.types.plan import PixelPlan, Substitution
from preprocessor.types.request import Media
from preprocessor.types.result import PixelReport
from preprocessor.types.timing import Timings
from preprocessor.vision.patches import PIXEL_DTYPES
from preprocessor.workers import region_copy
from preprocessor.workers.arena import Arena
from preprocessor.workers.payloads import Payload, PixelPayload
from preprocessor.workers.ranges import Lease
from preprocessor.workers.row_cache import CachedRows, substitutions_of
from preprocessor.workers.task import Task, TensorSlot


@dataclass(frozen=True, slots=True, eq=False)
class EarlyRows:
    """The first rows of a tensor, made before its flight began.

    Attributes:
        parts: Tasks that are done, in the order of their rows; the first begins at row 0.
        tensor: Leased for all rows.
        row_count: Of all parts.
        release_reserve: Gives up the memory of one more task, which is held so that the task for the other rows waits for none.
    """

    parts: Sequence[Task]
    tensor: TensorSlot
    row_count: int
    release_reserve: Callable[[], None]


class FlightTasks(Protocol):
    """The tasks of the request that begins a flight, as `RequestTasks`."""

    def create(
        self,
        payload: Payload,
        cpu_seconds: float,
        working_bytes: int,
        *,
        on_rows_written: Callable[[int, int], None],
        tensor: TensorSlot | None = None,
        cut: Callable[[IdleCores], list[Task]] | None = None,
    ) -> Task: ...

    def submit(self, task: Task, *, is_shared: bool = False) -> None: ...

    def add(self, task: Task, *, is_shared: bool = False) -> None: ...


class PixelFlight:
    """A pixel tensor that workers write.

    Args:
        request_tasks: Of the request that begins it.
        cached: Items whose rows are copied, not made, by index. While the task waits they may be dropped, and are made then:
            if it held them, it might wait for memory that it holds itself.
        find_cached: The same, asked again when the task starts: others may have made more of them meanwhile.
        early: Rows that are made already. No others may be cached then.
        on_end: Called once when no worker has any of it, with whether all of it is written.
        on_release: Called when its memory is free.
        abandon: As `WorkerPool.abandon`.
    Attributes:
        tasks: The parts that it is cut into, in the order of their rows.
        plan: Of the request that began it. Others have the same items.
        cpu_seconds: What making all of it is expected to take, without cached rows.
    """

    def __init__(
        self,
        request_tasks: FlightTasks,
        arena: Arena,
        media: tuple[Media, ...],
        plan: PixelPlan,
        cached: Mapping[int, CachedRows],
        *,
        find_cached: Callable[[], Mapping[int, CachedRows]],
        on_end: Callable[[PixelFlight, bool], None],
        on_release: Callable[[], None],
        abandon: Callable[[Task], None],
        early: EarlyRows | None = None,
    ) -> None:
        self.tasks: list[Task] = []
        self.plan = plan
        self.cpu_seconds = 0.0
        self._working_bytes = 0
        self._request_tasks = request_tasks
        self._arena = arena
        self._media = media
        self._cached = cached
        self._find_cached = find_cached
        self._on_end = on_end
        self._on_release = on_release
        self._abandon = abandon
        self._sources: list[Lease] = []
        self._written: dict[int, int] = {}
        self._changed = asyncio.Event()
        self._early = early
        self._first_row = 0 if early is None else early.row_count
        self._tensor = TensorSlot(plan.size_bytes, on_lease=self._on_lease) if early is None else early.tensor
        self._waiting_count = 0
        self._holding_count = 0
        self._has_ended = False

    def submit(self) -> None:
        """Queue `pipeline.write_pixels`.

        Raises:
            LimitExceeded, Overloaded: As `WorkerPool.submit`.
        """
        whole = cost.estimate(self.plan, self._media)
        self._working_bytes = whole.working_bytes
        rows = range(self._first_row, self.plan.row_count)
        if self._early is not None:
            self.tasks += self._early.parts
        task = self._request_tasks.create(
            self._payload(rows),
            cost.estimate(self.plan, self._media, self._cached.keys()).cpu_seconds
            if self._cached
            else whole.cpu_seconds * len(rows) / self.plan.row_count,
            whole.working_bytes + self._copied_bytes(self.plan.row_count) if self._early is None else 0,
            on_rows_written=self._on_rows_written,
            tensor=self._tensor,
            cut=self._cut,
        )
        self.cpu_seconds = whole.cpu_seconds
        self._add(task)
        try:
            self._request_tasks.submit(task, is_shared=True)
        except PreprocessorError:
            if self._early is not None and self._tensor.lease is not None:
                self._early.release_reserve()
                self._tensor.lease.release()
                self._on_release()
            raise

    @property
    def is_joinable(self) -> bool:
        """Whether a request may join: some request wants it still, and no part of it has failed."""
        return self._waiting_count > 0 and not any(task.is_done and task.done.exception() for task in self.tasks)

    @property
    def error(self) -> BaseException | None:
        """Once it has ended: that of the first part that failed."""
        return next((error for task in self.tasks if (error := task.done.exception()) is not None), None)

    # -- who wants it --------------------------------------------------------------------------------------------------

    def join(self, deadline_seconds: float) -> None:
        """One more request wants the rows, and holds the tensor."""
        self._waiting_count += 1
        self._holding_count += 1
        for task in self.tasks:
            task.deadline_seconds = max(task.deadline_seconds, deadline_seconds)

    def stop_waiting(self) -> None:
        """A request wants no more rows; when the last one says so, the tasks are ended."""
        self._waiting_count -= 1
        if not self._waiting_count:
            for task in self.tasks:
                self._abandon(task)

    def leave(self) -> None:
        """A request reads the tensor no longer; when the last one has left, its memory is free."""
        self._holding_count -= 1
        self._release_if_unused()

    async def ended(self) -> None:
        """Wait until no worker has any of it, and none will."""
        while not self._has_ended:
            await self._change()

    # -- what there is of it -------------------------------------------------------------------------------------------

    @property
    def lease(self) -> Lease | None:
        """Of its range, once the task has started."""
        return self._tensor.lease

    @property
    def array(self) -> npt.NDArray[Any]:
        """The tensor [row_count, feature_count] in shared memory, once its task has started."""
        assert self._tensor.lease is not None, "its task has not started"
        shape = (self.plan.row_count, self.plan.feature_count)
        return self._arena.array(self._tensor.lease.offset, shape, PIXEL_DTYPES[self.plan.form])

    @property
    def substitutions(self) -> tuple[Substitution, ...]:
        """Frames that could not be decoded, once all tasks have ended well."""
        reports: list[PixelReport] = [task.done.result() for task in self.tasks]
        return (*substitutions_of(self._cached), *(one for report in reports for one in report.substitutions))

    @property
    def early_row_count(self) -> int:
        """Rows that were made before the flight began."""
        return self._first_row

    @property
    def cached_item_count(self) -> int:
        """Items whose rows are copied."""
        return len(self._cached)

    async def begun(self) -> None:
        """Wait until the tensor has its memory.

        Raises:
            Whatever ended the task before it started.
        """
        while self._tensor.lease is None:
            if self.tasks[0].is_done:
                self.tasks[0].done.result()
            await self._change()

    async def rows_from(self, row: int) -> int:
        """Wait until that row is finished; returns how many are, from it on.

        Raises:
            Whatever `pipeline.write_pixels` raises; if several parts fail, the error of the first.
        """
        while True:
            stop = row
            while count := self._written.get(stop, 0):
                stop += count
            if count := stop - row or self._unreported_rows(row):
                return count
            await self._change()

    async def report(self, result: Callable[[Task], Awaitable[PixelReport]]) -> PixelReport:
        """Wait until all rows are written.

        Args:
            result: Waits for the result of a task.
        Raises:
            Whatever `pipeline.write_pixels` raises.
        """
        timings = Timings()
        decoded_frame_count = 0
        for task in self.tasks:
            report = await result(task)
            timings.merge(report.timings)
            decoded_frame_count += report.decoded_frame_count
        return PixelReport(timings, self.substitutions, decoded_frame_count)

    # -- its tasks -----------------------------------------------------------------------------------------------------

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _payload(self, rows: range, thread_count: int = 1) -> PixelPayload:
        cached = {index: (found.offset, found.form) for index, found in self._cached.items()}
        made = (item for index, item in enumerate(self.plan.items) if index not in cached)
        read = {item.key for item in made if item.groups_within(rows)}
        media = tuple(one for one in self._media if one.key in read)
        return PixelPayload(media, self.plan, 0, rows, cached, thread_count)

    def _copied_bytes(self, row_count: int) -> int:
        """Of `region_copy.planned_bytes`, those of so many rows."""
        whole_bytes = region_copy.planned_bytes(self._arena, self.plan.size_bytes, self._working_bytes)
        return whole_bytes * row_count // max(1, self.plan.row_count)

    def _on_lease(self) -> None:
        """The task is about to start: hold the cached rows that are here now."""
        cached = self._find_cached()
        if cached or self._cached:
            first, self._cached = self.tasks[0], cached
            self._sources = [rows.share_lease() for rows in cached.values()]
            first.payload = self._payload(range(self.plan.row_count))
            first.cpu_seconds = cost.estimate(self.plan, self._media, cached.keys()).cpu_seconds
        self._changed.set()

    def _add(self, task: Task) -> None:
        self.tasks.append(task)
        task.done.add_done_callback(lambda _: self._on_task_done())

    def _on_task_done(self) -> None:
        self._changed.set()
        if self._has_ended or not all(task.is_done for task in self.tasks):
            return
        self._has_ended = True
        for lease in self._sources:
            lease.release()
        if self._early is not None:
            self._early.release_reserve()
        self._on_end(self, all(task.done.exception() is None for task in self.tasks))
        self._release_if_unused()

    def _release_if_unused(self) -> None:
        if self._has_ended and not self._holding_count and self._tensor.lease is not None:
            self._tensor.lease.release()
            self._on_release()

    def _on_rows_written(self, first_row: int, row_count: int) -> None:
        self._written[first_row] = row_count
        self._changed.set()

    def _unreported_rows(self, row: int) -> int:
        """How many rows from this one on are finished because their part has ended: a part does not report its last rows.

        Raises:
            Whatever ended a part before them.
        """
        for task in self.tasks:
            if not task.is_done:
                break
            task.done.result()
            assert isinstance(task.payload, PixelPayload)
            if row in task.payload.rows:
                return task.payload.rows.stop - row
        return 0

    def _cut(self, idle: IdleCores) -> list[Task]:
        """See `Task.cut`."""
        first = self.tasks[-1]  # the one that is there, but for parts made early
        first.cut = None
        working_bytes = self._working_bytes + self._copied_bytes(self.plan.row_count)
        division = divide(self.plan, self._media, idle, working_bytes, self._cached.keys(), self._first_row)
        rows, thread_count = division.parts, division.thread_count
        if len(rows) == thread_count == 1:
            return []
        first.payload = self._payload(rows[0], thread_count)
        first.core_count = thread_count
        working_bytes = self._working_bytes + (thread_count - 1) * cost.thread_bytes(self.plan)
        first.working_bytes = working_bytes + self._copied_bytes(len(rows[0]))
        seconds_a_row = first.cpu_seconds / (self.plan.row_count - self._first_row)
        first.cpu_seconds = seconds_a_row * len(rows[0])
        others: list[Task] = []
        for part in rows[1:]:
            task = self._request_tasks.create(
                self._payload(part, thread_count),
                seconds_a_row * len(part),
                working_bytes + self._copied_bytes(len(part)),
                on_rows_written=self._on_rows_written,
                tensor=self._tensor,
            )
            task.core_count = thread_count
            task.lane = first.lane  # whose workers are idle
            task.deadline_seconds = first.deadline_seconds  # perhaps that of a request that has joined
            task.context = (
                first.context.copy()
            )  # this code runs in the context of whichever task's end starts the parts
            self._request_tasks.add(task, is_shared=True)
            self._add(task)
            others.append(task)
        return others
