"""The worker pool: who works, on what, when, and what happens when that goes wrong.

Rules that hold here:

* Everything runs on one event loop, and nothing here computes: jobs do, elsewhere.
* Work starts when a worker of its lane is idle *and* its memory fits the budget. Waiting work is ordered by `queue`.
* There are two lanes of `worker_count` workers each. Work expected to be short has a lane of its own, so that no image waits
  for the end of a ten-minute video; the long lane's processes have a lower priority, so that the kernel divides the cores.
* A worker that dies fails nobody but the work it held, and that is tried once more. What kills two workers is refused.
* Work whose caller has gone is told to stop and killed where it does not; its memory is free only when it has ended.

Why not a ready-made pool: of Pebble and loky, which would be the candidates, neither has results in shared memory, an order
by expected work, admission by bytes, a stop without a kill, or workers forked with a loaded model.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import itertools
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from preprocessor.errors import Cancelled, DeadlineExceeded, LimitExceeded, Overloaded, WorkerLost
from preprocessor.models.family import Model
from preprocessor.models.generic import GenericModel
from preprocessor.workers.arena import CONTROL_SLOT_COUNT, Arena, Lease, Ranges
from preprocessor.workers.channel import Order
from preprocessor.workers.jobs import Job, PixelJob
from preprocessor.workers.process import ProcessWorker, WorkerDied, Zygote
from preprocessor.workers.queue import WorkQueue
from preprocessor.workers.sandbox import WorkerLimits
from preprocessor.workers.thread import ThreadWorker
from preprocessor.workers.worker import cpu_exhausted

logger = logging.getLogger(__name__)

Worker = ProcessWorker | ThreadWorker

SHORT_SECONDS = 0.25
CANCEL_GRACE_SECONDS = 0.1

_LONG_LANE_NICENESS = 10  # about a tenth of the processor time of what it competes with; sched(7)
_FILES_SHARE = 4  # one part in so many of the budget holds files, the rest pixels and working memory
_TRIES = 2
_PASSED_OVER_SECONDS = 1.0  # work that does not fit lets others by for so long, then memory drains for it
_IDLE_TRIM_SECONDS = 10.0
_GROWN_BYTES = 512 << 20  # a worker that holds on to more than this is replaced
_MAX_BACKOFF_SECONDS = 1.0
_MIN_PART_SECONDS = 0.1  # opening the file again costs a few milliseconds a part


class Lane(enum.Enum):
    SHORT = "short"
    LONG = "long"


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """See `config.ServeSettings` for the options behind these."""

    worker_count: int
    max_queued_count: int
    memory_budget_bytes: int
    worker_memory_bytes: int
    max_cpu_seconds: float
    max_jobs_a_worker: int
    is_in_process: bool = False


@dataclass(slots=True)
class TensorRoom:
    """Where a request's pixel tensor goes: leased when its work starts, shared by the parts it may be cut into."""

    size_bytes: int
    lease: Lease | None = None


@dataclass(slots=True, eq=False)
class Work:
    """One job on its way through the pool.

    Attributes:
        cpu_seconds, working_bytes: What it is expected to take.
        cut: Divides the work in up to so many parts, of which it becomes the first; returns the others.
        done: The job's result or error, set when no worker has anything to do with it any more.
    """

    job: Job
    cpu_seconds: float
    working_bytes: int
    deadline_seconds: float
    rows_written: Callable[[int, int], None]
    make_room: Callable[[int], int | None]
    tensor: TensorRoom | None = None
    cut: Callable[[int], list[Work]] | None = None
    done: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    lane: Lane = field(init=False)
    queued_at_seconds: float = field(default_factory=time.monotonic)
    started_at_seconds: float = 0.0
    job_id: int = 0
    lost_count: int = 0
    is_abandoned: bool = False
    worker: Worker | None = None

    def __post_init__(self) -> None:
        self.lane = Lane.SHORT if self.cpu_seconds < SHORT_SECONDS else Lane.LONG

    def settle(self, outcome: Any) -> None:
        """Set the result, or the error."""
        if isinstance(outcome, BaseException):
            self.done.set_exception(outcome)
            self.done.exception()  # whoever awaited it may be gone
        else:
            self.done.set_result(outcome)


class WorkerPool:
    """Runs CPU work in processes of its own.

    Args:
        on_worker_end: Told why a worker ended: "lost", "killed" or "recycled".
        zygote: Forks the workers, where one holds the model already; it stays its owner's to close.
    """

    def __init__(
        self,
        model: Model | GenericModel,
        settings: PoolSettings,
        on_worker_end: Callable[[str], None] = lambda reason: None,
        zygote: Zygote | None = None,
    ) -> None:
        self.settings = settings
        self.model = model
        self.pending_count = 0
        """Requests that wait for a worker or have one; see `claim.Claim`."""
        self.uploading_bytes = 0
        """Bytes of files that have arrived and lie in messages still."""
        budget = settings.memory_budget_bytes
        self.arena = Arena.create(budget)
        files_bytes = budget // _FILES_SHARE
        retained_bytes = min(budget // 4, settings.worker_count * (128 << 20))
        self.files = Ranges(self.arena, 0, files_bytes, retained_bytes // 8)
        self.rows = Ranges(self.arena, files_bytes, self.arena.size_bytes, retained_bytes)
        self._on_worker_end = on_worker_end
        self._job_ids = itertools.count(1)
        self._queues: dict[Lane, WorkQueue[Work]] = {lane: WorkQueue() for lane in Lane}
        self._workers: dict[Lane, set[Worker]] = {lane: set() for lane in Lane}
        self._idle: dict[Lane, list[Worker]] = {lane: [] for lane in Lane}
        self._free_slots = list(range(CONTROL_SLOT_COUNT))
        self._working_bytes = 0
        self._running: dict[Work, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._zygote = zygote
        self._owns_zygote = zygote is None
        self._filling = asyncio.Lock()
        self._deaths_in_a_row = 0
        self._is_closing = False
        self._trim: asyncio.TimerHandle | None = None

    # -- what others may know ------------------------------------------------------------------------------------------

    @property
    def queued_count(self) -> int:
        """Work that waits for a worker or for memory."""
        return sum(len(queue) for queue in self._queues.values())

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def ready_worker_count(self) -> int:
        return sum(len(workers) for workers in self._workers.values())

    @property
    def is_whole(self) -> bool:
        """Whether every worker is there that should be."""
        return self.ready_worker_count == len(Lane) * self.settings.worker_count

    @property
    def used_bytes(self) -> int:
        """The part of the budget that requests hold."""
        return self.uploading_bytes + self.files.leased_bytes + self.rows.leased_bytes + self._working_bytes

    # -- life ----------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the workers; returns once they can be given work.

        Raises:
            RuntimeError: They cannot be started.
        """
        if self.settings.is_in_process:
            self._zygote = None
        elif self._zygote is None:
            self._zygote = Zygote(self.model)
            await self._zygote.start()
        if self._zygote is not None:
            self._watch = asyncio.create_task(self._keep_zygote(self._zygote))
        await self._fill()

    async def close(self) -> None:
        """End every worker, and with it all work. Closing twice is fine."""
        if self._is_closing:
            return
        self._is_closing = True
        if self._trim is not None:
            self._trim.cancel()
        for work in list(self._running):
            self.abandon(work)
        for queue in self._queues.values():
            while (waiting := queue.take(lambda _: True)) is not None:
                waiting.settle(Cancelled("the service stops"))
        if self._zygote is not None:
            self._watch.cancel()
        for worker in itertools.chain.from_iterable(self._workers.values()):
            worker.kill()
            worker.retire()
        if self._zygote is not None and self._owns_zygote:
            self._zygote.close()
        tasks = {*self._running.values(), *self._tasks}
        if tasks:
            await asyncio.wait(tasks)
        self.arena.close()

    async def _fill(self) -> None:
        """Bring every lane to its number of workers."""
        async with self._filling:
            for lane, workers in self._workers.items():
                while len(workers) < self.settings.worker_count and not self._is_closing:
                    worker = await self._new_worker(lane)
                    workers.add(worker)
                    self._idle[lane].append(worker)
                    worker.on_exit(lambda lane=lane, worker=worker: self._bury(lane, worker))  # type: ignore[misc]
        self._dispatch()

    async def _new_worker(self, lane: Lane) -> Worker:
        slot = self._free_slots.pop()
        if self._zygote is None:
            return ThreadWorker(slot, self.arena, self.model)
        niceness = _LONG_LANE_NICENESS if lane is Lane.LONG else 0
        return await self._zygote.fork(slot, self.arena, WorkerLimits(self.settings.worker_memory_bytes, niceness))

    def _bury(self, lane: Lane, worker: Worker) -> None:
        """A worker has ended: put another in its place, unless it was retired and has been replaced."""
        self._free_slots.append(worker.slot)
        if self._is_closing:
            return
        self._on_worker_end(worker.end_reason)
        if worker not in self._workers[lane]:
            return
        self._workers[lane].discard(worker)
        if worker in self._idle[lane]:
            self._idle[lane].remove(worker)
        self._deaths_in_a_row += 1
        self._spawn(self._refill(self._deaths_in_a_row))

    async def _refill(self, deaths_in_a_row: int) -> None:
        """Fill up, ever more slowly where workers die before they have done anything."""
        if deaths_in_a_row > 2 * self.settings.worker_count:
            await asyncio.sleep(min(_MAX_BACKOFF_SECONDS, 0.01 * deaths_in_a_row))
        if self._zygote is not None and self._zygote.is_alive:
            await self._fill()

    async def _keep_zygote(self, zygote: Zygote) -> None:
        """Whenever the process that forks workers ends, start another, as often as it takes."""
        while True:
            await zygote.lost.wait()
            zygote = Zygote(self.model)
            try:
                await zygote.start()
            except (RuntimeError, OSError):
                logger.exception("the workers' process does not start; trying again")
                await asyncio.sleep(_MAX_BACKOFF_SECONDS)
                continue
            self._zygote, self._owns_zygote = zygote, True
            await self._fill()

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- work ----------------------------------------------------------------------------------------------------------

    def submit(self, work: Work) -> None:
        """Queue work, to start as soon as it may.

        Raises:
            LimitExceeded: It would not fit even into an idle pool.
            Overloaded: So much waits before it that its deadline would pass.
        """
        tensor_bytes = 0 if work.tensor is None else work.tensor.size_bytes
        if tensor_bytes + work.working_bytes > self.rows.size_bytes:
            raise LimitExceeded(
                f"the request needs {(tensor_bytes + work.working_bytes) >> 20} MiB of memory, and this deployment gives one "
                f"request at most {self.rows.size_bytes >> 20}; ask for fewer frames or a smaller max_pixels",
                reason="MEMORY_BUDGET_EXCEEDED",
            )
        queue = self._queues[work.lane]
        wait_seconds = queue.seconds_ahead(work.cpu_seconds, work.queued_at_seconds) / self.settings.worker_count
        if wait_seconds > work.deadline_seconds - work.queued_at_seconds:
            raise Overloaded(
                f"about {wait_seconds:.1f} s of work wait before this request, which is more than its deadline leaves; try "
                "again later, or another replica",
                reason="WAIT_EXCEEDS_DEADLINE",
                retry_after_seconds=wait_seconds,
            )
        queue.put(work, work.cpu_seconds, work.queued_at_seconds)
        self._dispatch()

    def abandon(self, work: Work) -> None:
        """Nobody wants this any more: end it soon. `work.done` says when it has ended."""
        if work.done.done() or work.is_abandoned:
            return
        work.is_abandoned = True
        if work.worker is None:
            self._queues[work.lane].remove(work)
            work.settle(Cancelled("the caller went away"))
            self._dispatch()
            return
        self.arena.control[work.worker.slot] = work.job_id
        asyncio.get_running_loop().call_later(CANCEL_GRACE_SECONDS, self._kill, work, work.worker)

    def released(self) -> None:
        """Memory was given back: see what fits now."""
        if self._is_closing:
            return
        self._dispatch()
        if not self.used_bytes and self._trim is None:
            self._trim = asyncio.get_running_loop().call_later(_IDLE_TRIM_SECONDS, self._drop_pages)

    def _drop_pages(self) -> None:
        """After a while without work, keep no page that work has touched."""
        self._trim = None
        if not self.used_bytes:
            self.files.drop_free_pages()
            self.rows.drop_free_pages()

    def _kill(self, work: Work, worker: Worker) -> None:
        if work.worker is worker and not self._is_closing:
            worker.end_reason = "killed"
            worker.kill()

    def _dispatch(self) -> None:
        for lane, queue in self._queues.items():
            while self._idle[lane]:
                work = queue.take(self._may_start)
                if work is None:
                    break
                if work.deadline_seconds <= time.monotonic():
                    work.settle(DeadlineExceeded("the deadline passed while the request waited for a worker"))
                    continue
                for part in self._parts(work, lane):
                    self._begin(part, self._idle[lane].pop())

    def _may_start(self, work: Work) -> bool | None:
        """Whether its memory fits now; takes the tensor's range where it does."""
        now = time.monotonic()
        if work.deadline_seconds <= now:
            return True
        tensor = work.tensor
        wanted = work.working_bytes + (0 if tensor is None or tensor.lease else tensor.size_bytes)
        if self._working_bytes + self.rows.leased_bytes + wanted <= self.rows.size_bytes:
            if tensor is not None and tensor.lease is None:
                tensor.lease = self.rows.lease(tensor.size_bytes)
            if tensor is None or tensor.lease is not None:
                return True
        return None if now - work.queued_at_seconds > _PASSED_OVER_SECONDS else False

    def _parts(self, work: Work, lane: Lane) -> list[Work]:
        """The work, cut over the idle workers where the cores behind them have nothing else to do."""
        if work.cut is None or self.queued_count:
            return [work]
        idle_cores = min(len(self._idle[lane]), self.settings.worker_count - self.running_count)
        part_count = min(idle_cores, int(work.cpu_seconds / _MIN_PART_SECONDS))
        room_bytes = self.rows.size_bytes - self._working_bytes - self.rows.leased_bytes
        part_count = min(part_count, room_bytes // max(1, work.working_bytes))
        return [work, *work.cut(part_count)] if part_count > 1 else [work]

    def _begin(self, work: Work, worker: Worker) -> None:
        work.worker = worker
        work.job_id = next(self._job_ids)
        work.started_at_seconds = work.started_at_seconds or time.monotonic()
        if work.tensor is not None and work.tensor.lease is not None and isinstance(work.job, PixelJob):
            work.job = dataclasses.replace(work.job, offset=work.tensor.lease.offset)
        self._working_bytes += work.working_bytes
        task = asyncio.get_running_loop().create_task(self._carry_out(work, worker))
        self._running[work] = task

    async def _carry_out(self, work: Work, worker: Worker) -> None:
        order = Order(work.job_id, work.deadline_seconds, self.settings.max_cpu_seconds, work.job)
        outcome: Any
        try:
            outcome = await worker.run(order, work.rows_written, work.make_room)
        except WorkerDied as death:
            outcome = self._consequence(work, death)
        except Exception as error:  # whatever it is, the request that caused it must hear of it and not wait
            outcome = error
        self._working_bytes -= work.working_bytes
        del self._running[work]
        work.worker = None
        if worker.is_alive:
            self._deaths_in_a_row = 0
            self._put_back(work.lane, worker)
        if isinstance(outcome, WorkerDied):
            self._queues[work.lane].put(work, work.cpu_seconds, work.queued_at_seconds)
        else:
            work.settle(outcome)
        self._dispatch()

    def _consequence(self, work: Work, death: WorkerDied) -> Exception:
        """What a worker's death means for the work it held; the death itself where that is tried again."""
        if work.is_abandoned or self._is_closing:
            return Cancelled("the caller went away")
        if death.code == -signal.SIGXCPU:
            return cpu_exhausted(self.settings.max_cpu_seconds)
        work.lost_count += 1
        logger.warning(
            "%s; the request it held is %s", death, "tried again" if work.lost_count < _TRIES else "given up"
        )
        if work.lost_count < _TRIES:
            return death
        return WorkerLost(f"{_TRIES} workers in a row died of this request; it is not tried again")

    def _put_back(self, lane: Lane, worker: Worker) -> None:
        """A worker is free: keep it, or replace it where it has served its time."""
        if worker.job_count < self.settings.max_jobs_a_worker and worker.grown_bytes < _GROWN_BYTES:
            self._idle[lane].append(worker)
            return
        self._workers[lane].discard(worker)
        worker.end_reason = "recycled"
        worker.retire()
        self._spawn(self._fill())
