"""What one request holds of the pool: memory for its files, its tasks, and its pixels.

Leaving the context releases all of it. Memory is released only when no worker uses it any more, and no engine that it was
retained for. So leaving the context while tasks run returns at once, and the rest happens in the background.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set
from types import TracebackType
from typing import Self

from preprocessor.config import Limits
from preprocessor.types.plan import PixelPlan, Plan
from preprocessor.types.request import FileData, Media, PreparationRequest
from preprocessor.types.timing import Timings
from preprocessor.workers.arena import Arena
from preprocessor.workers.early_work import ArrivingUpload, EarlyWork
from preprocessor.workers.pixel_run import Origin, PixelRun, await_same_items, begin_run
from preprocessor.workers.plan_lookup import PlanLookup
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.ranges import Lease
from preprocessor.workers.refusals import file_memory_full
from preprocessor.workers.request_tasks import RequestTasks


class RequestResources:
    """An async context manager, one a request.

    Args:
        deadline_seconds: On `time.monotonic`'s clock; a task that has not started by then does not start.
        timings: Gets the time spent waiting for workers, as the stage "queue".
        cache_scope: Requests of one scope share what is cached, and processes.
    """

    def __init__(self, pool: WorkerPool, deadline_seconds: float, timings: Timings, cache_scope: str = "") -> None:
        self._pool = pool
        self._deadline_seconds = deadline_seconds
        self._cache_scope = cache_scope
        self._run: PixelRun | None = None
        self._early: EarlyWork | None = None
        self._scope = scope = cache_scope if pool.settings.has_workers_a_caller else ""
        self._tasks = RequestTasks(pool, deadline_seconds, timings, self._lease_result, scope)
        self._uploading_bytes = 0
        self._is_retained = False
        self._leases: list[Lease] = []
        self._digests: dict[int, bytes] = {}  # of files, by their offset
        self._exit_callbacks: list[Callable[[], None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tasks.end()
        for callback in self._exit_callbacks:
            callback()
        self._pool.counters.remove_uploading(self._uploading_bytes)
        self._drop_early()
        self._tasks.abandon()
        if self._run is not None:
            self._run.stop_waiting()
        self.release()

    @property
    def cache_scope(self) -> str:
        """Requests of one scope share what is made of media."""
        return self._cache_scope

    @property
    def arena(self) -> Arena:
        """Where its files and its pixels lie."""
        return self._pool.arena

    # -- files ---------------------------------------------------------------------------------------------------------

    def on_exit(self, callback: Callable[[], None]) -> None:
        """Have this called when the context is left, however that happens."""
        self._exit_callbacks.append(callback)

    def expect_upload(self, size_bytes: int) -> None:
        """Count bytes of a file that have arrived and are not in the arena yet.

        Raises:
            Overloaded: `MEMORY_BUDGET_FULL`.
        """
        self.check_memory(size_bytes)
        self._pool.make_file_room(size_bytes)
        self._pool.counters.add_uploading(size_bytes)
        self._uploading_bytes += size_bytes

    def lease_file(self, size_bytes: int, received_bytes: int) -> Lease:
        """Lease a range of the arena for a file.

        Args:
            received_bytes: The part of it that `expect_upload` has counted, which is counted no longer.
        Raises:
            Overloaded: `MEMORY_BUDGET_FULL`.
        """
        self.check_memory(size_bytes - received_bytes)
        self._pool.make_file_room(size_bytes - received_bytes)
        lease = self._pool.lease_file(size_bytes)
        if lease is None:
            raise file_memory_full(self._pool.files.size_bytes)
        self._leases.append(lease)
        self._pool.counters.remove_uploading(received_bytes)
        self._uploading_bytes -= received_bytes
        return lease

    def check_memory(self, size_bytes: int) -> None:
        """Check that files of this size would fit now; nothing is reserved for them.

        Raises:
            Overloaded: `MEMORY_BUDGET_FULL`.
        """
        if self._pool.counters.file_bytes + size_bytes > self._pool.files.size_bytes:
            raise file_memory_full(self._pool.files.size_bytes)

    def cached_file(self, content_sha256: bytes) -> memoryview | None:
        """A file of an earlier request of the same scope; None if it is not here."""
        found = self._pool.file_cache.find((self._cache_scope, content_sha256))
        if found is None:
            return None
        self._leases.append(found.lease.share())
        self._digests[found.lease.offset] = content_sha256
        return self.arena.view(found.lease.offset, found.size_bytes)

    @property
    def are_files_kept(self) -> bool:
        """Whether files may stay for later requests, which need their digests."""
        return self._pool.plan_cache.is_on

    def note_digest(self, lease: Lease, content_sha256: bytes) -> None:
        """The file in that range has this digest."""
        self._digests[lease.offset] = content_sha256

    def named_file(self, uuid: str, cache_salt: str) -> memoryview | None:
        """The file that the caller last sent under a uuid; None if it is not here."""
        content_sha256 = self._pool.known_uuids.find(self._cache_scope, cache_salt, uuid)
        if content_sha256 is None:
            self._pool.file_cache.miss_count += 1
            return None
        return self.cached_file(content_sha256)

    def begin_early(
        self, keys: Set[str], fill: Callable[[Mapping[str, FileData]], PreparationRequest], limits: Limits
    ) -> EarlyWork:
        """Let workers that are idle begin while the files of these media arrive. The model must plan from headers.

        Args:
            fill: As `EarlyWork`'s.
        """

        def known(medium: Media) -> Media:
            return dataclasses.replace(medium, file_sha256=self._digest_of(medium))

        self._early = EarlyWork(self._pool, self._tasks, keys, fill, limits, known)
        return self._early

    def watch_upload(self, key: str, file: ArrivingUpload) -> None:
        """The file of that medium is about to arrive."""
        if self._early is not None:
            self._early.watch(key, file)

    def note_arrival(self) -> None:
        """More of a file has arrived."""
        if self._early is not None:
            self._early.advance()

    def _drop_early(self) -> None:
        if self._early is not None:
            self._early.drop()

    def keep_files(self, request: PreparationRequest) -> None:
        """Keep the files of a planned request for later ones."""
        leases = {lease.offset: lease for lease in self._leases}
        for medium in request.media:
            digest = self._digest_of(medium)
            if digest is None:
                continue
            assert isinstance(medium.data, memoryview)
            lease = leases[self.arena.offset_of(medium.data)]
            self._pool.file_cache.add((self._cache_scope, digest), lease, len(medium.data))
            if medium.uuid is not None:
                self._pool.known_uuids.add(self._cache_scope, request.cache_salt, medium.uuid, digest)

    def _digest_of(self, medium: Media) -> bytes | None:
        """The digest of a file of this request, where it is known."""
        data = medium.data
        return self._digests.get(self.arena.offset_of(data)) if isinstance(data, memoryview) and data else None

    # -- tasks ---------------------------------------------------------------------------------------------------------

    async def plan(self, request: PreparationRequest, limits: Limits) -> Plan:
        """`pipeline.plan` on a worker.

        Args:
            request: With its files as `UploadBuffer.finish` returned them.
        Raises:
            Overloaded: `QUEUE_FULL`, or as `WorkerPool.submit`.
            Whatever `pipeline.plan` raises.
        """
        self._tasks.begin()
        if self._early is not None:
            self._early.end_upload()
        media = tuple(dataclasses.replace(one, file_sha256=self._digest_of(one)) for one in request.media)
        request = dataclasses.replace(request, media=media)
        model = self._pool.model
        fingerprint = model.fingerprint if model.plans_from_headers(request) else None
        lookup = PlanLookup(self._pool.plan_cache, self._cache_scope, fingerprint, request, limits)
        payload = lookup.payload()
        load = model.planning_workload(payload.request, self._pool.rows.size_bytes // 2)
        # What others find out while the task waits is known when it starts.
        task = self._tasks.create(
            payload, load.cpu_seconds, load.working_bytes, payload_at_start=lookup.payload, on_result=lookup.keep
        )
        self._tasks.submit(task)
        planned: Plan
        planned, _, _ = await self._tasks.result(task)
        if self._early is not None:
            await self._early.settle()
        if planned.pixels is None:
            self._drop_early()
            self._tasks.end()
        return planned

    def skip_pixels(self) -> None:
        """The request needs no pixels, as far as is known, and so no more workers."""
        self._drop_early()
        self._tasks.end()

    async def await_same_items(self, media: Sequence[Media], plan: PixelPlan) -> None:
        """Wait while workers write items of a plan for other requests; then ask for its `pixels`.

        Raises:
            PreprocessorError: What is wrong with a file of these items.
        """
        if self._early is None or not self._early.row_count:
            self._drop_early()  # the others may wait for its memory
            scope, deadline_seconds = self._cache_scope, self._deadline_seconds
            await await_same_items(self._pool, tuple(media), plan, scope, deadline_seconds)

    def pixels(self, media: Sequence[Media], plan: PixelPlan) -> PixelRun:
        """The pixels of a plan: cached ones, or those that workers write for another request, or begin to make them.

        Raises:
            LimitExceeded, Overloaded: As `WorkerPool.submit`; after `skip_pixels` also `QUEUE_FULL`.
        """
        self._tasks.begin()
        self._run = begin_run(
            self._pool, self._tasks, tuple(media), plan, self._cache_scope, self._deadline_seconds, self._early
        )
        self._drop_early()
        if self._run.origin is Origin.CACHED:
            self._tasks.end()
        return self._run

    # -- release -------------------------------------------------------------------------------------------------------

    def retain(self) -> Callable[[], None]:
        """Hold all memory for another reader, such as an engine, even after the context is left.

        Returns:
            What the reader calls when it has read everything; it releases all memory.
        """
        self._is_retained = True

        def release_retained() -> None:
            self._is_retained = False
            self.release()

        return release_retained

    def release(self) -> None:
        """Release all memory as soon as nobody uses it."""
        self._tasks.on_done(self._release_if_unused)
        self._release_if_unused()

    def _release_if_unused(self) -> None:
        if self._is_retained:
            return
        if self._run is not None:
            self._run.release()
        if self._tasks.are_done:
            leases, self._leases = self._leases, []
            for lease in leases:
                lease.release()
        self._pool.released()

    def _lease_result(self, size_bytes: int) -> int | None:
        """See `Task.lease_result`."""
        lease = self._pool.lease_rows(size_bytes, self._scope)
        if lease is None:
            return None
        self._leases.append(lease)
        return lease.offset
