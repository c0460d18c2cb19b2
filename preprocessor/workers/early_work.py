"""What is made of a request's files while they are still arriving, so that a slow upload costs little after its end.

1. Once the index of every file that is still arriving is here, a worker plans the request. That plan is a guess: see
   `media.arriving`.
2. Whenever enough has arrived since, a worker makes the rows of one more part. A task reads what has arrived by then, and never
   waits for more.
3. The whole files are planned as ever. If that plan makes the same rows, the parts are the beginning of the request's
   `PixelFlight`. If not, or if the rows are cached or being made already, all of it is dropped.

Nobody waits for any of it, so it takes only what nobody else needs. A task starts only while no other task waits. It is stopped
as soon as one waits for its worker, and everything is dropped as soon as one waits for memory. Uploads that take less than
`PATIENCE_SECONDS` have none.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Protocol

from preprocessor.config import Limits
from preprocessor.errors import Cancelled
from preprocessor.media.arriving import index_stop
from preprocessor.pipeline import cost
from preprocessor.pipeline.early import EarlyCut, makes_same_rows
from preprocessor.types.plan import PixelPlan
from preprocessor.types.request import FileData, Media, Modality, PreparationRequest
from preprocessor.workers.payloads import EarlyPlanPayload, PixelPayload, PlanPayload
from preprocessor.workers.pixel_flight import EarlyRows, copied_bytes
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.request_tasks import RequestTasks
from preprocessor.workers.task import Lane, Task, TensorSlot

PATIENCE_SECONDS = 0.05
_LEAST_SHARE = 8  # a part is at least one part in so many of all rows: each reads the file from its beginning
_UNKNOWN_DIGEST = bytes(32)


class EarlyEnd(enum.Enum):
    """What became of early work. Values are labels of `preprocessor_early_requests_total`."""

    USED = "used"
    OTHER_PLAN = "other_plan"
    """The whole files are planned differently."""
    GAVE_WAY = "gave_way"
    """Others needed the memory."""
    UNUSED = "unused"
    """Nothing was finished, or the request has failed or needs no rows."""


class ArrivingUpload(Protocol):
    """A file while it arrives, as `UploadBuffer`."""

    @property
    def is_whole(self) -> bool: ...
    @property
    def declared_bytes(self) -> int | None: ...
    @property
    def arrived(self) -> memoryview | None: ...


class EarlyWork:
    """The early work of one request; on the event loop alone.

    Args:
        keys: Of the media whose files are still to come.
        fill: The request with these files in it, by key, as far as they have arrived.
        known: A medium with its file's digest, where that is known.
    Attributes:
        row_count: Rows that are made; they are the first of the tensor.
    """

    def __init__(
        self,
        pool: WorkerPool,
        tasks: RequestTasks,
        keys: Set[str],
        fill: Callable[[Mapping[str, FileData]], PreparationRequest],
        limits: Limits,
        known: Callable[[Media], Media],
    ) -> None:
        self._pool = pool
        self._tasks = tasks
        self._keys = keys
        self._fill = fill
        self._limits = limits
        self._known = known
        self._files: dict[str, ArrivingUpload] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_patient = True
        self._is_over = False  # nothing more is begun
        self._end: EarlyEnd | None = None
        self._task: Task | None = None  # that runs
        self._plan: PixelPlan | None = None
        self._cuts: Sequence[EarlyCut] = ()
        self._tensor = TensorSlot(0)
        self._reserved_bytes = 0
        self._parts: list[Task] = []
        self.row_count = 0

    # -- while files arrive --------------------------------------------------------------------------------------------

    def watch(self, key: str, file: ArrivingUpload) -> None:
        """The file of that medium is about to arrive."""
        self._files[key] = file

    def advance(self) -> None:
        """More has arrived, or a task has ended: begin what can be begun."""
        if self._is_over or self._task is not None:
            return
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._lose_patience)
        if self._is_patient or self._keys != self._files.keys():
            return
        if self._plan is None:
            self._begin_plan()
        else:
            self._begin_part(self._plan)

    def end_upload(self) -> None:
        """Everything has arrived: begin nothing more. A part that runs goes on until `settle`."""
        self._stop_beginning()
        if self._task is not None and self._plan is None:
            self._pool.stop_early(self._task)

    async def settle(self) -> None:
        """Wait until no part runs: it is stopped, so that what is left to make is divided among all idle cores."""
        self.end_upload()
        if (task := self._task) is not None and self._plan is not None:
            self._pool.stop_early(task)
            await asyncio.wait([task.done])

    def _lose_patience(self) -> None:
        self._is_patient = False
        self.advance()

    def _stop_beginning(self) -> None:
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()

    def _arrived(self) -> tuple[PreparationRequest, dict[str, int]] | None:
        """The request as far as its files have arrived, and by media key the sizes of the others; None: nothing can begin."""
        views: dict[str, memoryview] = {}
        sizes: dict[int, int] = {}
        for key, file in self._files.items():
            view, size_bytes = file.arrived, file.declared_bytes
            if view is None:
                return None
            if not file.is_whole and len(view) != size_bytes:
                if size_bytes is None or index_stop(view, size_bytes) is None:
                    return None
                sizes[id(view)] = size_bytes
            views[key] = view
        if not sizes:
            return None
        request = self._fill(views)
        arriving = {one.key: sizes[id(one.data)] for one in request.media if id(one.data) in sizes}
        if any(
            one.modality is not Modality.VIDEO or one.frames is not None for one in request.media if one.key in arriving
        ):
            return None
        media = tuple(
            dataclasses.replace(one, file_sha256=_UNKNOWN_DIGEST, content_sha256=None)
            if one.key in arriving
            else self._known(one)
            for one in request.media
        )
        return dataclasses.replace(request, media=media), arriving

    # -- its tasks -----------------------------------------------------------------------------------------------------

    def _begin_plan(self) -> None:
        if (arrived := self._arrived()) is None:
            return
        request, sizes = arrived
        load = self._pool.model.planning_workload(request, self._pool.rows.size_bytes // 2)
        payload = EarlyPlanPayload(PlanPayload(request, self._limits), sizes)
        self._start(self._tasks.create(payload, load.cpu_seconds, load.working_bytes))

    def _begin_part(self, plan: PixelPlan) -> None:
        if (arrived := self._arrived()) is None:
            return
        request, sizes = arrived
        files = {medium.key: medium for medium in request.media}
        stop = self.row_count
        for row, key, needed_bytes in self._cuts:
            if key in sizes and needed_bytes > len(files[key].data):
                break
            stop = row
        rows = range(self.row_count, stop)
        if len(rows) * _LEAST_SHARE < plan.row_count:
            return
        read = {item.key for item in plan.items if item.groups_within(rows)}
        media = tuple(medium for medium in request.media if medium.key in read)
        payload = PixelPayload(media, plan, 0, rows, arriving={key: sizes[key] for key in read & sizes.keys()})
        whole = cost.estimate(plan, request.media)
        missing_bytes = sum(size_bytes - len(files[key].data) for key, size_bytes in sizes.items())
        is_first = self._tensor.lease is None
        task = self._tasks.create(
            payload,
            whole.cpu_seconds * len(rows) / plan.row_count,
            whole.working_bytes + missing_bytes + copied_bytes(self._pool.arena, plan, whole.working_bytes)
            if is_first
            else 0,
            tensor=self._tensor,
        )
        if self._start(task) and is_first:
            # What the first task needs is held until the request's last one has ended, so none of them waits for memory while the
            # tensor is held.
            self._reserved_bytes, task.working_bytes = task.working_bytes, 0

    def _start(self, task: Task) -> bool:
        """Have the task run now, if a worker and memory are free that nobody else waits for."""
        task.is_early = True
        if not self._pool.start_early(task):
            return False
        self._pool.early_works.add(self)
        self._tasks.add(task)
        self._task = task
        task.done.add_done_callback(lambda _: self._on_task_done(task))
        return True

    def _on_task_done(self, task: Task) -> None:
        self._task = None
        error, result = task.done.exception(), None
        if error is None:
            result = task.done.result()
        elif not isinstance(error, Cancelled):
            self._stop_beginning()  # the same error, or a better one, comes when the files are whole
        if isinstance(task.payload, PixelPayload):
            if result is not None:
                self._parts.append(task)
                self.row_count = task.payload.rows.stop
            elif error is None:
                self._stop_beginning()  # the file is read in another order than its index lets expect
        elif result is not None:
            self._plan, self._cuts = result
            if self._plan is None:
                self._stop_beginning()
            else:
                self._tensor = TensorSlot(self._plan.size_bytes)
        if self._end is not None:
            self._release()
        else:
            self.advance()

    # -- how it ends ---------------------------------------------------------------------------------------------------

    def yield_worker(self, lane: Lane) -> None:
        """Another task waits for a worker of that lane."""
        if self._task is not None and self._task.lane is lane and not self._is_over:
            self._pool.stop_early(self._task)

    def give_way(self) -> None:
        """Another task waits for memory."""
        self.drop(EarlyEnd.GAVE_WAY)

    def drop(self, why: EarlyEnd = EarlyEnd.UNUSED) -> None:
        """Nobody needs it. Calling it twice is fine."""
        self._stop_beginning()
        if self._end is None and self in self._pool.early_works:
            self._finish(why)
            if self._task is not None:
                self._pool.stop_early(self._task)
            self._release()

    def adopt(self, plan: PixelPlan) -> EarlyRows | None:
        """The rows that have been made, for the plan of the whole files; None if there are none. No task may run."""
        if self._end is not None or self._plan is None or not self._parts:
            self.drop()
            return None
        if not makes_same_rows(self._plan, plan):
            self.drop(EarlyEnd.OTHER_PLAN)
            return None
        self._stop_beginning()
        self._finish(EarlyEnd.USED)
        for part in self._parts:
            self._tasks.share(part)
        return EarlyRows(tuple(self._parts), self._tensor, self.row_count, self._release_reserve)

    def _finish(self, why: EarlyEnd) -> None:
        self._end = why
        self._pool.early_works.discard(self)
        self._pool.counters.add_early(why.value)

    def _release(self) -> None:
        if self._task is not None or self._end is EarlyEnd.USED:
            return
        if self._tensor.lease is not None and not self._tensor.lease.is_released:
            self._tensor.lease.release()
        self._release_reserve()
        self._pool.released()

    def _release_reserve(self) -> None:
        reserved_bytes, self._reserved_bytes = self._reserved_bytes, 0
        self._pool.counters.remove_working(reserved_bytes)
