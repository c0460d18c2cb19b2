"""One pixel tensor while workers write it: its tasks, its finished rows, its report."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy.typing as npt

from preprocessor.pipeline import cost
from preprocessor.types.plan import PixelPlan, Substitution
from preprocessor.types.request import Media
from preprocessor.types.result import PixelReport
from preprocessor.types.timing import Timings
from preprocessor.vision.patches import PIXEL_DTYPES
from preprocessor.workers.arena import Arena
from preprocessor.workers.payloads import PixelPayload
from preprocessor.workers.request_tasks import RequestTasks
from preprocessor.workers.task import Task, TensorSlot


class PixelRun:
    """A pixel tensor that workers write.

    Attributes:
        tasks: The parts that it is cut into, in the order of their rows.
    """

    def __init__(self, request_tasks: RequestTasks, arena: Arena, media: tuple[Media, ...], plan: PixelPlan) -> None:
        self.tasks: list[Task] = []
        self._request_tasks = request_tasks
        self._arena = arena
        self._media = media
        self._plan = plan
        self._written: dict[int, int] = {}
        self._changed = asyncio.Event()
        self._tensor = TensorSlot(plan.size_bytes, on_lease=self._changed.set)

    def submit(self) -> None:
        """Queue `pipeline.write_pixels`.

        Raises:
            LimitExceeded, Overloaded: As `WorkerPool.submit`.
        """
        load = cost.estimate(self._plan, self._media)
        task = self._request_tasks.create(
            PixelPayload(self._media, self._plan, 0, range(self._plan.row_count)),
            load.cpu_seconds,
            load.working_bytes,
            on_rows_written=self._on_rows_written,
            tensor=self._tensor,
            cut=self._cut,
        )
        self._add(task)
        self._request_tasks.submit(task)

    async def begun(self) -> npt.NDArray[Any]:
        """Wait until the tensor has its memory; returns it.

        Raises:
            Whatever ended the task before it started.
        """
        while self._tensor.lease is None:
            if self.tasks[0].is_done:
                self.tasks[0].done.result()
            self._changed.clear()
            await self._changed.wait()
        return self.array

    @property
    def array(self) -> npt.NDArray[Any]:
        """The tensor [row_count, feature_count] in shared memory, once its task has started."""
        assert self._tensor.lease is not None, "its task has not started"
        shape = (self._plan.row_count, self._plan.feature_count)
        return self._arena.array(self._tensor.lease.offset, shape, PIXEL_DTYPES[self._plan.form])

    async def finished_rows(self) -> AsyncIterator[tuple[int, int]]:
        """(first row, row count) of finished rows, in order, as they are finished, until all are.

        Raises:
            Whatever `pipeline.write_pixels` raises; if several parts fail, the error of the first.
        """
        next_row = 0
        while next_row < self._plan.row_count:
            row_count = self._written.pop(next_row, 0) or self._unreported_rows(next_row)
            if row_count:
                yield next_row, row_count
                next_row += row_count
            else:
                self._changed.clear()
                await self._changed.wait()

    async def report(self) -> PixelReport:
        """Wait until all rows are written.

        Raises:
            Whatever `pipeline.write_pixels` raises.
        """
        timings = Timings()
        substitutions: list[Substitution] = []
        decoded_frame_count = 0
        for task in self.tasks:
            report: PixelReport = await self._request_tasks.result(task)
            timings.merge(report.timings)
            substitutions += report.substitutions
            decoded_frame_count += report.decoded_frame_count
        self._request_tasks.end()
        return PixelReport(timings, tuple(substitutions), decoded_frame_count)

    def _add(self, task: Task) -> None:
        self.tasks.append(task)
        task.done.add_done_callback(lambda _: self._changed.set())

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

    def _cut(self, part_count: int) -> list[Task]:
        """See `Task.cut`."""
        first = self.tasks[0]
        rows = cost.cut(self._plan, self._media, part_count)
        first.payload = PixelPayload(self._media, self._plan, 0, rows[0])
        first.cut = None
        seconds_a_row = first.cpu_seconds / self._plan.row_count
        first.cpu_seconds = seconds_a_row * len(rows[0])
        for part in rows[1:]:
            payload = PixelPayload(self._media, self._plan, 0, part)
            seconds = seconds_a_row * len(part)
            task = self._request_tasks.create(
                payload, seconds, first.working_bytes, on_rows_written=self._on_rows_written, tensor=self._tensor
            )
            task.lane = first.lane  # whose workers are idle
            task.context = (
                first.context.copy()
            )  # this code runs in the context of whichever task's end starts the parts
            self._request_tasks.add(task)
            self._add(task)
        return self.tasks[1:]
