"""The worker pool: which task runs when, on which worker and in which memory.

Rules that hold here:

* Everything runs on one event loop, and nothing here computes: payloads run on workers.
* A task starts when a worker of its lane is idle *and* its memory fits the budget, which `memory_admission` decides.
  Waiting tasks are ordered by `queue`.
* There are two lanes of `worker_count` workers each. Tasks that are expected to be short have a lane of their own, so that no
  image waits for the end of a ten-minute video. The processes of the long lane have a lower priority, so that the kernel
  divides the cores.
* A task whose caller has gone is told to stop, and its worker is killed if it does not. Its memory is free only when it has
  ended.

Why not a ready-made pool: Pebble and loky, the candidates, have no results in shared memory, no order by expected cost, no
admission by bytes, no stop without a kill, and no workers forked with a loaded model.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from preprocessor.config import FILE_SHARE
from preprocessor.errors import Cancelled, DeadlineExceeded
from preprocessor.models.loaded import LoadedModel
from preprocessor.pipeline.division import MOST_THREADS, IdleCores
from preprocessor.workers import refusals
from preprocessor.workers.arena import Arena
from preprocessor.workers.counters import PoolCounters
from preprocessor.workers.file_cache import FileCache
from preprocessor.workers.fork_server import ForkServer
from preprocessor.workers.idle_trim import IdleTrim
from preprocessor.workers.known_uuids import KnownUuids
from preprocessor.workers.memory_admission import MemoryAdmission, wanted_bytes
from preprocessor.workers.pixel_flight import PixelFlight
from preprocessor.workers.plan_cache import PlanCache
from preprocessor.workers.queue import TaskQueue
from preprocessor.workers.ranges import Lease, Ranges
from preprocessor.workers.row_cache import ItemKey, RowCache
from preprocessor.workers.running import RunningTasks
from preprocessor.workers.task import Lane, Task, TaskState, Worker
from preprocessor.workers.worker_set import WorkerSet, WorkerSetSettings

CANCEL_GRACE_SECONDS = 0.1
EARLY_GRACE_SECONDS = 1.0  # of early work, which is stopped often: a worker that is killed costs more than a short wait

_RETAINED_BYTES_A_WORKER = 256 << 20  # pages that stay mapped: a tensor being written, and some being sent
_PLAN_SHARE = 16  # plans take at most one part in so many of what rows may take


class GivesWay(Protocol):
    """What holds workers and memory that nobody waits for, as `early_work.EarlyWork`."""

    def yield_worker(self, lane: Lane) -> None:
        """A task waits for a worker of that lane."""

    def give_way(self) -> None:
        """A task waits for memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings(WorkerSetSettings):
    """See `config.ServeSettings` for the options behind these."""

    max_queued_count: int
    memory_budget_bytes: int
    max_cpu_seconds: float
    cache_bytes: int = 0
    has_workers_a_caller: bool = True


class WorkerPool:
    """Runs tasks in worker processes. Requests use it through a `resources.RequestResources`.

    Args:
        on_worker_end, fork_server: As for `WorkerSet`.
        arena: An arena of the size of the budget; None creates one.
    Attributes:
        files, rows: Ranges of the arena for files, and for pixels and other results.
        counters: Every count, and the only object that changes one.
        cache, file_cache: Finished rows that stay in `rows`, and files that stay in `files`.
        plan_cache, known_uuids: What is known of files beside that.
        flights: Tensors that workers write and other requests may join, by the keys of their items.
        early_works: What gives way to tasks that wait.
    """

    def __init__(
        self,
        model: LoadedModel,
        settings: PoolSettings,
        on_worker_end: Callable[[str], None] = lambda reason: None,
        fork_server: ForkServer | None = None,
        arena: Arena | None = None,
    ) -> None:
        self.settings = settings
        self.model = model
        budget = settings.memory_budget_bytes
        self.arena = arena or Arena.create(budget)
        retained_bytes = min(budget // 4, settings.worker_count * _RETAINED_BYTES_A_WORKER)
        self.arena.chunks.spare.most_bytes = retained_bytes
        rows_start = self.arena.rows_start
        self.files = Ranges(self.arena, 0, rows_start, retained_bytes // 8)
        chunks = None if self.arena.is_named else self.arena.chunks  # the named file has pages of its own
        self.rows = Ranges(self.arena, rows_start, self.arena.size_bytes, retained_bytes, self.arena.unit_bytes, chunks)
        self.counters = PoolCounters(self.files, self.rows)
        self.worker_set = WorkerSet(
            model, self.arena, settings, self._dispatch, on_worker_end, self.counters.add_violation, fork_server
        )
        self._queues: dict[Lane, TaskQueue[Task]] = {lane: TaskQueue() for lane in Lane}
        self._running = RunningTasks(model, self.worker_set, self.counters, settings.max_cpu_seconds, self._on_task_end)
        self.cache = RowCache(self.rows, settings.cache_bytes)
        self.file_cache = FileCache(settings.cache_bytes // FILE_SHARE)
        self.plan_cache = PlanCache(settings.cache_bytes // _PLAN_SHARE)
        self.known_uuids = KnownUuids(is_on=settings.cache_bytes > 0)
        self.flights: dict[tuple[ItemKey, ...], PixelFlight] = {}
        self.early_works: set[GivesWay] = set()
        self._memory = MemoryAdmission(self.rows, self.arena.chunks.spare, self.counters, self.cache)
        self._idle_trim = IdleTrim(self.counters, self.arena.chunks.spare, self.files, self.rows)
        self._is_closing = False

    @property
    def pending_count(self) -> int:
        """Requests that wait for a worker or have one."""
        return self.counters.pending_count

    @property
    def queued_count(self) -> int:
        """Tasks that wait for a worker or for memory."""
        return sum(map(len, self._queues.values()))

    @property
    def running_count(self) -> int:
        """Tasks that workers have."""
        return len(self._running)

    @property
    def used_bytes(self) -> int:
        """The part of the budget that requests hold."""
        return self.counters.used_bytes

    @property
    def fullness(self) -> float:
        """See `PoolCounters.fullness`."""
        return self.counters.fullness

    @property
    def expected_seconds(self) -> float:
        """CPU seconds that all tasks, waiting or running, are expected to take from beginning to end."""
        waiting = sum(queue.cpu_seconds for queue in self._queues.values())
        return waiting + sum(task.cpu_seconds for task in self._running)

    async def start(self) -> None:
        """See `WorkerSet.start`."""
        await self.worker_set.start()

    async def close(self) -> None:
        """End every worker and every task. Closing twice is fine."""
        if self._is_closing:
            return
        self._is_closing = True
        self._idle_trim.cancel()
        for queue in self._queues.values():
            while (waiting := queue.take(lambda _: True)) is not None:
                waiting.finish(Cancelled("the service stops"))
        for task in list(self._running):
            self.abandon(task)
        await self.worker_set.close()
        await self._running.join()
        self.cache.clear()
        self.file_cache.clear()
        self.plan_cache.clear()
        self.arena.close()

    # -- for requests --------------------------------------------------------------------------------------------------

    def begin_request(self) -> None:
        """Count a request among those that wait for workers, until `end_request`.

        Raises:
            Overloaded: `QUEUE_FULL`.
        """
        worker_count = self.settings.worker_count
        if self.pending_count >= worker_count + self.settings.max_queued_count:
            raise refusals.queue_full(self.pending_count, worker_count)
        self.counters.add_pending()

    def end_request(self) -> None:
        """The request no longer waits for workers."""
        self.counters.remove_pending()

    def submit(self, task: Task) -> None:
        """Queue a task. It starts as soon as a worker and its memory are free.

        Raises:
            LimitExceeded: `MEMORY_BUDGET_EXCEEDED`: it would not fit even into an idle pool.
            Overloaded: `WAIT_EXCEEDS_DEADLINE`: its deadline would pass before the tasks ahead of it are done.
        """
        if wanted_bytes(task) > self.rows.size_bytes:
            raise refusals.budget_exceeded(wanted_bytes(task), self.rows.size_bytes)
        queue = self._queues[task.lane]
        wait_seconds = queue.seconds_ahead(task.cpu_seconds, task.queued_at_seconds) / self.settings.worker_count
        if wait_seconds > task.deadline_seconds - task.queued_at_seconds:
            raise refusals.wait_exceeds_deadline(wait_seconds)
        queue.put(task, task.cpu_seconds, task.queued_at_seconds)
        self._dispatch()

    def start_early(self, task: Task) -> bool:
        """Start a task that nobody waits for yet; returns whether it has started.

        It does only while no other task waits, and takes at most half of the memory that is free: so the budget is never full of
        what would give way.
        """
        idle_count = self.settings.worker_count - sum(running.core_count for running in self._running)
        if self._is_closing or self.queued_count or idle_count < 1 or not self.worker_set.idle_count(task.lane):
            return False
        if task.deadline_seconds <= time.monotonic() or 2 * wanted_bytes(task) > self._memory.free_bytes:
            return False
        if not self._memory.try_admit(task):
            return False
        self._begin(task)
        return True

    def stop_early(self, task: Task) -> None:
        """End a task soon that `start_early` has started. `task.done` says when it has ended."""
        if task.state is TaskState.RUNNING:
            self._stop(task, EARLY_GRACE_SECONDS)

    def abandon(self, task: Task) -> None:
        """End a task soon, as its caller has gone. `task.done` says when it has ended."""
        if task.state is TaskState.QUEUED:
            self.counters.add_abandoned(task.state)
            self._queues[task.lane].remove(task)
            task.finish(Cancelled("the caller went away"))
            self._dispatch()
        elif task.state is TaskState.RUNNING:
            self.counters.add_abandoned(task.state)
            self._stop(task, CANCEL_GRACE_SECONDS)

    def make_file_room(self, size_bytes: int) -> None:
        """Drop cached files until so many more bytes of files fit, or until none is left that nobody reads."""
        while self.counters.file_bytes + self.files.kept_bytes + size_bytes > self.files.size_bytes:
            if not self.file_cache.give_way():
                return

    def lease_file(self, size_bytes: int) -> Lease | None:
        """Lease a range for a file, in place of cached files if need be; None if there is no memory."""
        while (lease := self.files.lease(size_bytes)) is None:
            if not self.file_cache.give_way():
                return None
        return lease

    def lease_rows(self, size_bytes: int, scope: str | None = None) -> Lease | None:
        """Lease a range for a result of a scope's task, in place of cached rows if need be; None if there is no memory.

        No cached rows are dropped for what would not fit without any.
        """
        if size_bytes > self.rows.size_bytes - self.rows.leased_bytes + self.rows.kept_bytes:
            return None
        self._memory.make_room(size_bytes)
        return self._memory.lease(size_bytes, scope=scope)

    def released(self) -> None:
        """Memory was released: start the tasks that fit now."""
        self._dispatch()
        if not self._is_closing:
            self._idle_trim.schedule()

    def _stop(self, task: Task, grace_seconds: float) -> None:
        worker = task.cancel()
        worker.stop(task.task_id)
        asyncio.get_running_loop().call_later(grace_seconds, self._kill, task, worker)

    def _kill(self, task: Task, worker: Worker) -> None:
        if task.state is TaskState.CANCELLING and not self._is_closing:
            worker.end_reason = "killed"
            worker.kill()

    # -- from the queue to a worker ------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        if self._is_closing:
            return
        for lane, queue in self._queues.items():
            while self.worker_set.idle_count(lane):
                task = queue.take(self._memory.try_admit)
                if task is None:
                    break
                if task.deadline_seconds <= time.monotonic():
                    task.finish(DeadlineExceeded("the deadline passed while the request waited for a worker"))
                    continue
                for part in self._parts(task):
                    self._begin(part)
        self._take_back()

    def _take_back(self) -> None:
        """Take from early work what tasks wait for."""
        for lane, queue in self._queues.items():
            if not queue or not self.early_works:
                continue
            if self.worker_set.idle_count(lane):  # so they wait for memory
                next(iter(self.early_works)).give_way()
            else:
                for work in list(self.early_works):
                    work.yield_worker(lane)

    def _parts(self, task: Task) -> list[Task]:
        """The task, divided among the cores that have nothing else to do.

        A short task gains little, and other requests come as soon: it is divided only while half of the cores are idle.
        """
        worker_count = self.settings.worker_count
        idle_count = worker_count - sum(running.core_count for running in self._running)
        least_count = worker_count / 2 if task.lane is Lane.SHORT else 0
        if task.cut is None or self.queued_count or idle_count < max(2, least_count):
            return [task]
        idle = IdleCores(
            core_count=idle_count,
            worker_count=self.worker_set.idle_count(task.lane),
            ready_count=self.worker_set.ready_count(task.lane, task.scope),
            free_bytes=self._memory.free_bytes,
            most_threads=1 if self.settings.is_in_process else MOST_THREADS,
        )
        return [task, *task.cut(idle)]

    def _begin(self, task: Task) -> None:
        self._running.begin(task)
        self._memory.make_room_for_workers()

    def _on_task_end(self, task: Task) -> None:
        """A task has left its worker."""
        if task.state is TaskState.QUEUED:  # its worker died
            self._queues[task.lane].put(task, task.cpu_seconds, task.queued_at_seconds)
        self._dispatch()
