"""What one request holds of the pool: room for its files, its work, room for its pixels. Leaving it gives all of it back.

Memory is given back only when no worker, and no engine that it was lent to, has anything to do with it any more, so leaving a
claim in the midst of its work returns at once, and the rest happens behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from preprocessor.config import Limits
from preprocessor.errors import Overloaded
from preprocessor.pipeline import cost
from preprocessor.types.plan import PixelPlan, Plan, Substitution
from preprocessor.types.request import Media, PreparationRequest
from preprocessor.types.result import PixelReport
from preprocessor.types.timing import Timings
from preprocessor.vision.patches import PIXEL_DTYPES
from preprocessor.workers.arena import Arena, Lease, Ranges
from preprocessor.workers.payloads import PixelPayload, PlanPayload
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.task import Task, TensorSlot


class RequestResources:
    """An async context manager, one a request.

    Args:
        deadline_seconds: On `time.monotonic`'s clock; work that has not begun by then does not begin.
        timings: Gets the time spent waiting for workers, as the stage "queue".
    """

    def __init__(self, pool: WorkerPool, deadline_seconds: float, timings: Timings) -> None:
        self._pool = pool
        self._deadline_seconds = deadline_seconds
        self._timings = timings
        self._is_pending = False
        self._uploading_bytes = 0
        self._is_lent = False
        self._leases: list[Lease] = []
        self._tasks: list[Task] = []
        self._exits: list[Callable[[], None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._settle()
        for leave in self._exits:
            leave()
        self._pool.uploading_bytes -= self._uploading_bytes
        for task in self._tasks:
            self._pool.abandon(task)
        self.release()

    @property
    def arena(self) -> Arena:
        """Where its files and its pixels lie."""
        return self._pool.arena

    # -- files ---------------------------------------------------------------------------------------------------------

    def on_exit(self, leave: Callable[[], None]) -> None:
        """Have this called when the claim is left, however that happens."""
        self._exits.append(leave)

    def expect_upload(self, size_bytes: int) -> None:
        """Count bytes that have arrived and are not stored yet.

        Raises:
            Overloaded: `MEMORY_BUDGET_FULL`.
        """
        self.check_memory(size_bytes)
        self._count_upload(size_bytes)

    def lease_file(self, size_bytes: int, come_bytes: int) -> Lease:
        """Room for a file where workers can read it; what has come of it counts no more for itself.

        Raises:
            Overloaded: `MEMORY_BUDGET_FULL`, or as `Arena.reserve`.
        """
        self.check_memory(size_bytes - come_bytes)
        lease = self._pool.files.lease(size_bytes)
        if lease is None:
            raise _file_memory_full(self._pool.files)
        self._leases.append(lease)
        self._count_upload(-come_bytes)
        return lease

    def check_memory(self, size_bytes: int) -> None:
        """Return where files of this size would fit now; nothing is kept for them.

        Raises:
            Overloaded: `MEMORY_BUDGET_FULL`.
        """
        if self._pool.uploading_bytes + self._pool.files.leased_bytes + size_bytes > self._pool.files.size_bytes:
            raise _file_memory_full(self._pool.files)

    def _count_upload(self, size_bytes: int) -> None:
        self._pool.uploading_bytes += size_bytes
        self._uploading_bytes += size_bytes

    # -- work ----------------------------------------------------------------------------------------------------------

    async def plan(self, request: PreparationRequest, limits: Limits) -> Plan:
        """`pipeline.plan` on a worker.

        Args:
            request: Its files as `UploadBuffer.finish` returned them.
        Raises:
            Overloaded: `QUEUE_FULL`, or as `WorkerPool.submit`.
            Whatever `pipeline.plan` raises.
        """
        settings = self._pool.settings
        if self._pool.pending_count >= settings.worker_count + settings.max_queued_count:
            raise Overloaded(
                f"{self._pool.pending_count} requests wait for {settings.worker_count} workers already; try again, or "
                "another replica",
                reason="QUEUE_FULL",
            )
        self._is_pending = True
        self._pool.pending_count += 1
        load = self._pool.model.planning_workload(request, self._pool.rows.size_bytes // 2)
        task = self._task(PlanPayload(request, limits), load.cpu_seconds, load.working_bytes)
        self._pool.submit(task)
        planned: Plan = await self._result(task)
        if planned.pixels is None:
            self._settle()
        return planned

    def pixels(self, media: Sequence[Media], planned: PixelPlan) -> PixelRun:
        """Begin `pipeline.write_pixels` on a worker, or on several where they are idle.

        Raises:
            LimitExceeded, Overloaded: As `WorkerPool.submit`.
        """
        load = cost.estimate(planned, media)
        tensor = TensorSlot(planned.size_bytes)
        run = PixelRun(self, tuple(media), planned, tensor)
        first = self._task(
            PixelPayload(tuple(media), planned, 0, range(planned.row_count)),
            load.cpu_seconds,
            load.working_bytes,
            rows_written=run._rows_written,
            tensor=tensor,
            cut=run._cut,
        )
        run.add(first)
        self._pool.submit(first)
        return run

    def lend(self) -> Callable[[], None]:
        """Somebody else reads the memory from now on, such as an engine. Calling what is returned gives all of it back, and
        before that nothing does, not even the claim's end."""
        self._is_lent = True

        def take_back() -> None:
            self._is_lent = False
            self.release()

        return take_back

    def release(self) -> None:
        """Give back all memory, as soon as nobody uses it."""
        for task in self._tasks:
            if not task.done.done():
                task.done.add_done_callback(lambda _: self._release_if_idle())
        self._release_if_idle()

    def _release_if_idle(self) -> None:
        if self._is_lent or any(not task.done.done() for task in self._tasks):
            return
        leases = self._leases + [task.tensor.lease for task in self._tasks if task.tensor and task.tensor.lease]
        self._leases = []
        for lease in leases:
            lease.release()
        self._pool.released()

    def _settle(self) -> None:
        """The request no longer counts among those that wait for workers."""
        if self._is_pending:
            self._is_pending = False
            self._pool.pending_count -= 1

    def _task(self, payload: PlanPayload | PixelPayload, cpu_seconds: float, working_bytes: int, **more: Any) -> Task:
        more.setdefault("rows_written", lambda first_row, row_count: None)
        task = Task(
            payload, cpu_seconds, working_bytes, self._deadline_seconds, lease_result=self._lease_result, **more
        )
        self._tasks.append(task)
        return task

    def _lease_result(self, size_bytes: int) -> int | None:
        lease = self._pool.rows.lease(size_bytes)
        if lease is None:
            return None
        self._leases.append(lease)
        return lease.offset

    async def _result(self, task: Task) -> Any:
        await asyncio.wait([task.done])  # leaves the work alone where the caller is cancelled: `abandon` ends it
        if task.started_at_seconds:
            wait = Timings()
            wait.add("queue", (task.started_at_seconds - task.queued_at_seconds) * 1e3, 0.0, task.started_at_seconds)
            self._timings.merge(wait)
        return task.done.result()


class PixelRun:
    """A pixel tensor being made.

    Attributes:
        works: The parts, in the order of their rows.
    """

    def __init__(
        self, resources: RequestResources, media: tuple[Media, ...], planned: PixelPlan, tensor: TensorSlot
    ) -> None:
        self.tasks: list[Task] = []
        self._resources = resources
        self._media = media
        self._planned = planned
        self._tensor = tensor
        self._written: dict[int, int] = {}
        self._changed = asyncio.Event()
        tensor.on_lease = self._changed.set

    async def begun(self) -> npt.NDArray[Any]:
        """Wait until the tensor has its place; returns it.

        Raises:
            Whatever ended the work before it began.
        """
        while self._tensor.lease is None:
            if self.tasks[0].done.done():
                self.tasks[0].done.result()
            self._changed.clear()
            await self._changed.wait()
        return self.array

    @property
    def array(self) -> npt.NDArray[Any]:
        """The tensor [row_count, feature_count]; it has its place once a worker has begun."""
        assert self._tensor.lease is not None, "no worker has begun yet"
        shape = (self._planned.row_count, self._planned.feature_count)
        return self._resources.arena.array(self._tensor.lease.offset, shape, PIXEL_DTYPES[self._planned.form])

    async def finished_rows(self) -> AsyncIterator[tuple[int, int]]:
        """(first row, row count) of runs of finished rows, in order, as they come, until all are.

        Raises:
            Whatever `pipeline.write_pixels` raises: where parts fail, the error of the first.
        """
        next_row = 0
        while next_row < self._planned.row_count:
            row_count = self._written.pop(next_row, 0) or self._rest_from(next_row)
            if row_count:
                yield next_row, row_count
                next_row += row_count
            else:
                self._changed.clear()
                await self._changed.wait()

    async def report(self) -> PixelReport:
        """Wait for the end.

        Raises:
            Whatever `pipeline.write_pixels` raises.
        """
        timings = Timings()
        substitutions: list[Substitution] = []
        decoded_frame_count = 0
        for task in self.tasks:
            report: PixelReport = await self._resources._result(task)
            timings.merge(report.timings)
            substitutions += report.substitutions
            decoded_frame_count += report.decoded_frame_count
        self._resources._settle()
        return PixelReport(timings, tuple(substitutions), decoded_frame_count)

    def add(self, task: Task) -> None:
        """Count on another part."""
        self.tasks.append(task)
        task.done.add_done_callback(lambda _: self._changed.set())

    def _rows_written(self, first_row: int, row_count: int) -> None:
        self._written[first_row] = row_count
        self._changed.set()

    def _rest_from(self, row: int) -> int:
        """How many rows from this one on are finished because their part has ended, which it announces no rows for.

        Raises:
            Whatever ended a part before them.
        """
        for task in self.tasks:
            if not task.done.done():
                break
            task.done.result()
            assert isinstance(task.payload, PixelPayload)
            if row in task.payload.rows:
                return task.payload.rows.stop - row
        return 0

    def _cut(self, part_count: int) -> list[Task]:
        """See `Task.cut`."""
        first = self.tasks[0]
        rows = cost.cut(self._planned, self._media, part_count)
        first.payload = PixelPayload(self._media, self._planned, 0, rows[0])
        first.cut = None
        seconds_a_row = first.cpu_seconds / self._planned.row_count
        first.cpu_seconds = seconds_a_row * len(rows[0])
        for part in rows[1:]:
            payload = PixelPayload(self._media, self._planned, 0, part)
            seconds = seconds_a_row * len(part)
            task = self._resources._task(
                payload, seconds, first.working_bytes, rows_written=self._rows_written, tensor=self._tensor
            )
            task.lane = first.lane  # whose workers are idle
            task.context = first.context.copy()  # this runs on behalf of whoever let the work start
            self.add(task)
        return self.tasks[1:]


def _file_memory_full(files: Ranges) -> Overloaded:
    return Overloaded(
        f"the files of other requests fill the {files.size_bytes >> 20} MiB that are kept for files; try again, or another "
        "replica",
        reason="MEMORY_BUDGET_FULL",
    )
