"""The worker pool: which work runs when, on whom, in what memory, and what becomes of it.

Rules that hold here:

* Everything runs on one event loop, and nothing here computes: jobs do, elsewhere.
* Work starts when a worker of its lane is idle *and* its memory fits the budget, which `memory_admission` decides.
  Waiting work is ordered by `queue`.
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
import itertools
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from preprocessor.errors import Cancelled, DeadlineExceeded, LimitExceeded, Overloaded, WorkerLost
from preprocessor.models.loaded import LoadedModel
from preprocessor.workers.arena import Arena, Ranges, shared_memory_full
from preprocessor.workers.channel import Command
from preprocessor.workers.heap import give_back_freed_memory
from preprocessor.workers.memory_admission import MemoryAdmission, wanted_bytes
from preprocessor.workers.payloads import PixelPayload
from preprocessor.workers.process import ForkServer, WorkerDied
from preprocessor.workers.queue import TaskQueue
from preprocessor.workers.task import Lane, Task, Worker
from preprocessor.workers.worker import cpu_exhausted
from preprocessor.workers.worker_set import WorkerSet, WorkerSetSettings

logger = logging.getLogger(__name__)

CANCEL_GRACE_SECONDS = 0.1

_TRIES = 2
_FILES_SHARE = 4  # one part in so many of the budget holds files, the rest pixels and working memory
_RETAINED_BYTES_A_WORKER = 256 << 20  # pages that stay warm: a tensor at work, and some on their way out
_IDLE_TRIM_SECONDS = 10.0
_MIN_PART_SECONDS = 0.1  # opening the file again costs a few milliseconds a part


@dataclass(frozen=True, slots=True)
class PoolSettings(WorkerSetSettings):
    """See `config.ServeSettings` for the options behind these."""

    max_queued_count: int
    memory_budget_bytes: int
    max_cpu_seconds: float


class WorkerPool:
    """Runs CPU work in processes of its own. Requests use it through a `resources.RequestResources`.

    Args:
        on_worker_end, zygote: As `WorkerSet`'s.
        arena: Of the size of the budget; None makes one.
    Attributes:
        files, rows: Ranges of the arena for files, and for pixels and other results.
        pending_count: Requests that wait for a worker or have one.
        abandoned_counts: Work whose caller went away, by where it was: "queued" or "running".
        uploading_bytes: Bytes of files that have arrived and are not in the arena yet.
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
        self.pending_count = 0
        self.uploading_bytes = 0
        self.abandoned_counts = {"queued": 0, "running": 0}
        budget = settings.memory_budget_bytes
        self.arena = arena or Arena.create(budget)
        retained_bytes = min(budget // 4, settings.worker_count * _RETAINED_BYTES_A_WORKER)
        self.files = Ranges(self.arena, 0, budget // _FILES_SHARE, retained_bytes // 8)
        self.rows = Ranges(self.arena, budget // _FILES_SHARE, self.arena.size_bytes, retained_bytes)
        self.worker_set = WorkerSet(model, self.arena, settings, self._dispatch, on_worker_end, fork_server)
        self._task_ids = itertools.count(1)
        self._queues: dict[Lane, TaskQueue[Task]] = {lane: TaskQueue() for lane in Lane}
        self._running: dict[Task, asyncio.Task[None]] = {}
        self._memory = MemoryAdmission(self.rows)
        self._is_closing = False
        self._trim: asyncio.TimerHandle | None = None

    @property
    def queued_count(self) -> int:
        """Work that waits for a worker or for memory."""
        return sum(map(len, self._queues.values()))

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def used_bytes(self) -> int:
        """The part of the budget that requests hold."""
        return self.uploading_bytes + self.files.leased_bytes + self.rows.leased_bytes + self._memory.working_bytes

    @property
    def fullness(self) -> float:
        """The part taken, 0 to 1, of the memory for files or of that for pixels and work, whichever is fuller."""
        file_bytes = self.uploading_bytes + self.files.leased_bytes
        return max(file_bytes / self.files.size_bytes, (self.used_bytes - file_bytes) / self.rows.size_bytes)

    @property
    def expected_seconds(self) -> float:
        """CPU seconds that all work here, waiting or running, is expected to take from its beginning to its end."""
        waiting = sum(queue.cpu_seconds for queue in self._queues.values())
        return waiting + sum(task.cpu_seconds for task in self._running)

    async def start(self) -> None:
        """See `WorkerSet.start`."""
        await self.worker_set.start()

    async def close(self) -> None:
        """End every worker, and with it all work. Closing twice is fine."""
        if self._is_closing:
            return
        self._is_closing = True
        if self._trim is not None:
            self._trim.cancel()
        for queue in self._queues.values():
            while (waiting := queue.take(lambda _: True)) is not None:
                waiting.settle(Cancelled("the service stops"))
        for task in list(self._running):
            self.abandon(task)
        await self.worker_set.close()
        if self._running:
            await asyncio.wait(self._running.values())
        self.arena.close()

    # -- what a claim asks for -----------------------------------------------------------------------------------------

    def submit(self, task: Task) -> None:
        """Queue work, to start as soon as it may.

        Raises:
            LimitExceeded: `MEMORY_BUDGET_EXCEEDED`: it would not fit even into an idle pool.
            Overloaded: `WAIT_EXCEEDS_DEADLINE`: so much waits before it that its deadline would pass.
        """
        if wanted_bytes(task) > self.rows.size_bytes:
            raise LimitExceeded(
                f"the request needs {wanted_bytes(task) >> 20} MiB of memory, and this deployment gives one request at most "
                f"{self.rows.size_bytes >> 20}; ask for fewer frames or a smaller max_pixels",
                reason="MEMORY_BUDGET_EXCEEDED",
            )
        queue = self._queues[task.lane]
        wait_seconds = queue.seconds_ahead(task.cpu_seconds, task.queued_at_seconds) / self.settings.worker_count
        if wait_seconds > task.deadline_seconds - task.queued_at_seconds:
            raise Overloaded(
                f"about {wait_seconds:.1f} s of work wait before this request, which is more than its deadline leaves; try "
                "again later, or another replica",
                reason="WAIT_EXCEEDS_DEADLINE",
                retry_after_seconds=wait_seconds,
            )
        queue.put(task, task.cpu_seconds, task.queued_at_seconds)
        self._dispatch()

    def abandon(self, task: Task) -> None:
        """Nobody wants this any more: end it soon. `task.done` says when it has ended."""
        if task.done.done() or task.is_abandoned:
            return
        task.is_abandoned = True
        self.abandoned_counts["queued" if task.worker is None else "running"] += 1
        if task.worker is None:
            self._queues[task.lane].remove(task)
            task.settle(Cancelled("the caller went away"))
            self._dispatch()
            return
        self.arena.control[task.worker.slot] = task.task_id
        asyncio.get_running_loop().call_later(CANCEL_GRACE_SECONDS, self._kill, task, task.worker)

    def released(self) -> None:
        """Memory was given back: see what fits now."""
        self._dispatch()
        if not self.used_bytes and self._trim is None and not self._is_closing:
            self._trim = asyncio.get_running_loop().call_later(_IDLE_TRIM_SECONDS, self._drop_pages)

    def _drop_pages(self) -> None:
        """After a while without work, keep no page that work has touched."""
        self._trim = None
        if not self.used_bytes:
            self.files.drop_free_pages()
            self.rows.drop_free_pages()
            give_back_freed_memory()

    def _kill(self, task: Task, worker: Worker) -> None:
        if task.worker is worker and not self._is_closing:
            worker.end_reason = "killed"
            worker.kill()

    # -- from the queue to a worker ------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        if self._is_closing:
            return
        for lane, queue in self._queues.items():
            while self.worker_set.idle_count(lane):
                task = queue.take(self._memory.may_start)
                if task is None:
                    break
                if task.deadline_seconds <= time.monotonic():
                    task.settle(DeadlineExceeded("the deadline passed while the request waited for a worker"))
                    continue
                for part in self._parts(task):
                    self._begin(part)

    def _parts(self, task: Task) -> list[Task]:
        """The work, cut over the idle workers where the cores behind them have nothing else to do."""
        if task.cut is None or self.queued_count:
            return [task]
        part_count = min(
            self.worker_set.idle_count(task.lane),
            self.settings.worker_count - self.running_count,
            int(task.cpu_seconds / _MIN_PART_SECONDS),
            self._memory.free_bytes // max(1, task.working_bytes),
        )
        return [task, *task.cut(part_count)] if part_count > 1 else [task]

    def _begin(self, task: Task) -> None:
        task.worker = self.worker_set.take(task.lane)
        task.task_id = next(self._task_ids)
        task.started_at_seconds = task.started_at_seconds or time.monotonic()
        if isinstance(task.payload, PixelPayload) and task.tensor is not None and task.tensor.lease is not None:
            task.payload = dataclasses.replace(task.payload, offset=task.tensor.lease.offset)
        self._memory.working_bytes += task.working_bytes
        if self._memory.working_bytes + self.rows.retained_bytes > self.rows.size_bytes:
            self.rows.drop_free_pages()  # warm pages are a courtesy of memory that nobody needs
        self._running[task] = asyncio.get_running_loop().create_task(
            self._carry_out(task, task.worker), context=task.context
        )

    async def _carry_out(self, task: Task, worker: Worker) -> None:
        command = Command(task.task_id, task.deadline_seconds, self.settings.max_cpu_seconds, task.payload)
        outcome: Any
        try:
            outcome = await worker.run(command, task.rows_written, task.lease_result)
        except WorkerDied as death:
            outcome = self._consequence(task, death)
        except Exception as error:  # whatever it is, the request that caused it must hear of it and not wait
            outcome = error
        self._memory.working_bytes -= task.working_bytes
        del self._running[task]
        task.worker = None
        self.worker_set.put_back(task.lane, worker)
        if isinstance(outcome, WorkerDied):
            self._queues[task.lane].put(task, task.cpu_seconds, task.queued_at_seconds)
        else:
            task.settle(outcome)
        self._dispatch()

    def _consequence(self, task: Task, death: WorkerDied) -> Exception:
        """What a worker's death means for the work it held; the death itself where that is tried again."""
        if task.is_abandoned or self._is_closing:
            return Cancelled("the caller went away")
        if death.code == -signal.SIGXCPU:
            return cpu_exhausted(self.settings.max_cpu_seconds)
        if death.code == -signal.SIGBUS and self.arena.is_full():
            logger.warning("%s, as /dev/shm is full: it has less room than --memory-budget, or others fill it", death)
            return shared_memory_full()
        task.lost_count += 1
        logger.warning(
            "%s; the request it held is %s", death, "tried again" if task.lost_count < _TRIES else "given up"
        )
        if task.lost_count < _TRIES:
            return death
        return WorkerLost(f"{_TRIES} workers in a row died of this request; it is not tried again")
