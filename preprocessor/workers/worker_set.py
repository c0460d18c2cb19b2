"""The workers of one pool: which exist, which are idle, and which replace those that end.

Each lane has its number of workers. One that dies is replaced at once. If workers keep dying before they have run anything,
each is replaced later than the one before. One that has run its number of tasks, or holds too much memory, is replaced when it is
idle. Each is examined every second; see `usage`. Where callers change, a lane has one worker more, which has run nothing: forking
one while a task waits would take from the task's time.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from preprocessor.config import retained_bytes
from preprocessor.models.loaded import LoadedModel
from preprocessor.workers.arena import Arena
from preprocessor.workers.fork_server import ForkServer
from preprocessor.workers.sandbox import WorkerLimits
from preprocessor.workers.task import Lane, Worker
from preprocessor.workers.thread import ThreadWorker

logger = logging.getLogger(__name__)

_LONG_LANE_NICENESS = 10  # about a tenth of the CPU time of what it competes with; sched(7)
_GROWN_BYTES = 512 << 20  # a worker that holds more than this is replaced
_MAX_BACKOFF_SECONDS = 1.0
_EXAMINATION_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSetSettings:
    """See `config.ServeSettings` for the options behind these."""

    worker_count: int
    worker_memory_bytes: int
    max_jobs_a_worker: int
    is_in_process: bool
    is_isolation_required: bool = False


class WorkerSet:
    """Starts, lends and replaces workers.

    Args:
        on_idle: Called when there are new idle workers.
        on_end: Called with why a worker ended: "lost", "killed", "recycled", "caller_changed" or "violation".
        on_violation: Called with the kind of what a worker did that it may not.
        fork_server: One that runs already and holds the model; its owner closes it. None starts one.
    """

    def __init__(
        self,
        model: LoadedModel,
        arena: Arena,
        settings: WorkerSetSettings,
        on_idle: Callable[[], None],
        on_end: Callable[[str], None],
        on_violation: Callable[[str], None],
        fork_server: ForkServer | None,
    ) -> None:
        self._model = model
        self._arena = arena
        self._settings = settings
        self._on_idle = on_idle
        self._on_end = on_end
        self._on_violation = on_violation
        self._fork_server = fork_server
        self._owns_fork_server = fork_server is None
        self._workers: dict[Lane, set[Worker]] = {lane: set() for lane in Lane}
        self._idle: dict[Lane, list[Worker]] = {lane: [] for lane in Lane}
        self._spares: dict[Lane, Worker] = {}
        self._filling = asyncio.Lock()
        self._to_examine: set[Worker] = set()  # once they are idle
        self._renewing: set[Worker] = set()  # whose place `renew` fills
        self._tasks: set[asyncio.Task[None]] = set()
        self._deaths_in_a_row = 0
        self._is_closing = False

    @property
    def count(self) -> int:
        """Workers that exist now."""
        return sum(map(len, self._workers.values()))

    @property
    def is_whole(self) -> bool:
        """Whether every lane has its number of workers."""
        return self.count == len(Lane) * self._settings.worker_count

    def idle_count(self, lane: Lane) -> int:
        return len(self._idle[lane])

    def ready_count(self, lane: Lane, scope: str) -> int:
        """Idle workers that may run the scope's tasks without being renewed."""
        return sum(worker.is_for(scope) for worker in self._idle[lane])

    async def start(self) -> None:
        """Start the workers; returns once they can run tasks.

        Raises:
            RuntimeError: The fork server cannot be started.
        """
        if self._settings.is_in_process:
            self._fork_server = None
        elif self._fork_server is None:
            self._fork_server = ForkServer(self._model)
            await self._fork_server.start()
        if self._fork_server is not None:
            self._spawn(self._keep_fork_server(self._fork_server))
            self._spawn(self._keep_examining())
        await self._fill()

    def take(self, lane: Lane, scope: str) -> Worker:
        """Remove and return an idle worker: of those that may run the scope's tasks, the one that ran a task last.

        Its memory is mapped and in caches. If none may, the one that has been idle for longest is returned, to be renewed.
        """
        idle = self._idle[lane]
        for position in range(len(idle) - 1, -1, -1):
            if idle[position].is_for(scope):
                return idle.pop(position)
        return idle.pop(0)

    async def renew(self, lane: Lane, worker: Worker) -> Worker:
        """End a worker, without waiting for it, and return a new one in its place.

        Raises:
            OSError: None can be forked; the old one stays, or is replaced if it has ended meanwhile.
        """
        spare = self._spares.pop(lane, None)
        self._renewing.add(worker)
        try:
            fresh = await self._new_worker(lane) if spare is None else spare
        except OSError:
            if not worker.is_alive:
                self._workers[lane].discard(worker)
                self._spawn(self._fill_with_retries())
            raise
        finally:
            self._renewing.discard(worker)
        self._spawn(self._make_spare(lane))
        self._workers[lane].discard(worker)
        worker.end_reason = "caller_changed"
        worker.kill()
        worker.retire()
        self._keep(lane, fresh)
        return fresh

    def put_back(self, lane: Lane, worker: Worker) -> None:
        """A worker has run a task: keep it as idle, or replace it if it has run enough or holds too much."""
        if not worker.is_alive:
            worker.retire()  # closes our end of its channel
            return
        self._deaths_in_a_row = 0
        if worker in self._to_examine:
            self._to_examine.discard(worker)
            worker.examine()
        if worker.task_count < self._settings.max_jobs_a_worker and self._may_stay(worker):
            self._idle[lane].append(worker)
        else:
            self._let_go(lane, worker)

    def _may_stay(self, worker: Worker) -> bool:
        return worker.is_alive and worker.grown_bytes < _GROWN_BYTES

    def _let_go(self, lane: Lane, worker: Worker) -> None:
        """End a worker that has no task, or has been killed; another one takes its place."""
        if worker.is_alive:  # else it is replaced when it has ended
            worker.end_reason = "recycled"
            worker.kill()
            self._workers[lane].discard(worker)
            self._spawn(self._fill_with_retries())
        worker.retire()

    async def _keep_examining(self) -> None:
        """Have each worker examined every second. How much memory it holds counts once it is idle."""
        while True:
            await asyncio.sleep(_EXAMINATION_SECONDS)
            self._to_examine.clear()
            for lane, workers in self._workers.items():
                for worker in workers:
                    worker.examine()
                self._to_examine |= workers - set(self._idle[lane])
                for worker in [worker for worker in self._idle[lane] if not self._may_stay(worker)]:
                    self._idle[lane].remove(worker)
                    self._let_go(lane, worker)

    async def close(self) -> None:
        """Kill every worker."""
        self._is_closing = True
        for task in self._tasks:
            task.cancel()
        for worker in itertools.chain(self._spares.values(), *self._workers.values()):
            worker.kill()
            worker.retire()
        if self._fork_server is not None and self._owns_fork_server:
            self._fork_server.close()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _fill(self) -> None:
        """Bring every lane to its number of workers."""
        async with self._filling:
            for lane, workers in self._workers.items():
                while len(workers) < self._settings.worker_count and not self._is_closing:
                    worker = await self._new_worker(lane)
                    self._keep(lane, worker)
                    self._idle[lane].append(worker)
        self._on_idle()

    async def _fill_with_retries(self) -> None:
        """`_fill`, repeated while the system has no descriptors or memory for a worker."""
        while not self._is_closing:
            try:
                await self._fill()
            except OSError as error:
                logger.error("no worker can be started; trying again: %s", error)
                await asyncio.sleep(_MAX_BACKOFF_SECONDS)
            else:
                return

    async def _make_spare(self, lane: Lane) -> None:
        """Have a worker ready for the next change of callers."""
        if lane in self._spares or self._is_closing:
            return
        try:
            spare = await self._new_worker(lane)
        except OSError as error:  # the next change forks its own
            logger.debug("no worker can be started ahead: %s", error)
            return
        if lane in self._spares or self._is_closing:
            spare.kill()
            spare.retire()
            return
        self._spares[lane] = spare
        spare.on_exit(lambda: self._on_spare_exit(lane, spare))

    def _on_spare_exit(self, lane: Lane, spare: Worker) -> None:
        if self._spares.get(lane) is spare:
            del self._spares[lane]
            spare.retire()  # closes our end of its channel

    def _keep(self, lane: Lane, worker: Worker) -> None:
        """Count a new worker among those of its lane, until it ends."""
        self._workers[lane].add(worker)
        worker.on_exit(lambda: self._on_worker_exit(lane, worker))

    async def _new_worker(self, lane: Lane) -> Worker:
        if self._fork_server is None:
            return ThreadWorker(self._arena, self._model)
        limits = WorkerLimits(
            memory_bytes=self._settings.worker_memory_bytes,
            niceness=_LONG_LANE_NICENESS if lane is Lane.LONG else 0,
            is_isolation_required=self._settings.is_isolation_required,
            kept_bytes=retained_bytes(self._arena.size_bytes) // (len(Lane) * self._settings.worker_count),
        )
        return await self._fork_server.fork(self._arena, limits, self._on_violation)

    def _on_worker_exit(self, lane: Lane, worker: Worker) -> None:
        """A worker has ended: replace it, unless it was retired and has been replaced."""
        if self._is_closing:
            return
        self._on_end(worker.end_reason)
        if worker not in self._workers[lane] or worker in self._renewing:
            return
        self._workers[lane].discard(worker)
        if worker in self._idle[lane]:
            self._idle[lane].remove(worker)
            worker.retire()  # closes our end of its channel, which nobody reads
        self._deaths_in_a_row += 1
        self._spawn(self._refill(self._deaths_in_a_row))

    async def _refill(self, deaths_in_a_row: int) -> None:
        if deaths_in_a_row > 2 * self._settings.worker_count:
            await asyncio.sleep(min(_MAX_BACKOFF_SECONDS, 0.01 * deaths_in_a_row))
        if self._fork_server is not None and not self._fork_server.lost.is_set():
            await self._fill_with_retries()

    async def _keep_fork_server(self, fork_server: ForkServer) -> None:
        """Start another fork server whenever it ends, and try again if that fails."""
        while True:
            await fork_server.lost.wait()
            fork_server = ForkServer(self._model)
            try:
                await fork_server.start()
            except (RuntimeError, OSError):
                logger.exception("the fork server does not start; trying again")
                fork_server.lost.set()  # one that never started does not set it by itself
                await asyncio.sleep(_MAX_BACKOFF_SECONDS)
                continue
            self._fork_server, self._owns_fork_server = fork_server, True
            await self._fill_with_retries()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
