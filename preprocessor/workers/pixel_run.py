"""One request's pixel tensor, whether workers write it for this request or for another one, or it is cached."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import numpy.typing as npt

from preprocessor.errors import PreprocessorError
from preprocessor.pipeline import cost
from preprocessor.types.plan import PixelPlan, Substitution
from preprocessor.types.request import Media
from preprocessor.types.result import PixelReport
from preprocessor.types.timing import Timings
from preprocessor.vision.patches import PIXEL_DTYPES
from preprocessor.workers.early_work import EarlyWork
from preprocessor.workers.pixel_flight import PixelFlight
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.ranges import Lease
from preprocessor.workers.request_tasks import RequestTasks
from preprocessor.workers.row_cache import ItemKey, is_contiguous, item_keys, keys_of_source, substitutions_of
from preprocessor.workers.task import Task, lane_of


class Origin(enum.Enum):
    """Where a request's pixels come from."""

    MADE = "made"
    """Workers write them for this request; rows of some items may be copied from the cache."""
    JOINED = "joined"
    """Workers were writing them for another request already."""
    CACHED = "cached"


class FlightRun:
    """Rows that workers write.

    Args:
        request_tasks: Those of the request. It counts among those that wait for workers until all rows are written.
        plan: Of the request.
        deadline_seconds: Of the request, on `time.monotonic`'s clock.
        origin: MADE if the request has begun the flight, or JOINED.
    """

    def __init__(
        self,
        flight: PixelFlight,
        request_tasks: RequestTasks,
        plan: PixelPlan,
        deadline_seconds: float,
        origin: Origin,
    ) -> None:
        self.origin = origin
        self._flight = flight
        self._own_keys = {theirs.key: own.key for theirs, own in zip(flight.plan.items, plan.items, strict=True)}
        self._request_tasks = request_tasks
        self._is_waiting = self._is_holding = True
        flight.join(deadline_seconds)

    @property
    def cached_item_count(self) -> int:
        """Items that were not made for this request."""
        return self._flight.cached_item_count if self.origin is Origin.MADE else len(self._flight.plan.items)

    @property
    def early_row_count(self) -> int:
        """Rows that were made for this request before all of its files had arrived."""
        return self._flight.early_row_count if self.origin is Origin.MADE else 0

    @property
    def tasks(self) -> list[Task]:
        """The parts that the tensor is cut into."""
        return self._flight.tasks

    async def begun(self) -> npt.NDArray[Any]:
        """Wait until the tensor has its memory; returns it, [row_count, feature_count].

        Raises:
            Whatever ended the task before it started.
        """
        with _naming(self._own_keys):
            await self._flight.begun()
        return self._flight.array

    async def finished_rows(self) -> AsyncIterator[tuple[int, int]]:
        """(first row, row count) of finished rows, in order, as they are finished, until all are.

        Raises:
            Whatever `pipeline.write_pixels` raises; if several parts fail, the error of the first.
        """
        row = 0
        while row < self._flight.plan.row_count:
            with _naming(self._own_keys):
                row_count = await self._flight.rows_from(row)
            yield row, row_count
            row += row_count

    async def report(self) -> PixelReport:
        """Wait until all rows are written. The time that they took is told to the request that began them.

        Raises:
            Whatever `pipeline.write_pixels` raises.
        """
        is_own = self.origin is Origin.MADE
        with _naming(self._own_keys):
            report = await self._flight.report(self._request_tasks.result if is_own else _result)
        self._request_tasks.end()
        return report if is_own else PixelReport(Timings(), report.substitutions)

    def stop_waiting(self) -> None:
        """The request wants no more rows. Calling this twice is fine."""
        if self._is_waiting:
            self._is_waiting = False
            self._flight.stop_waiting()

    def release(self) -> None:
        """The request reads the tensor no longer. Calling this twice is fine."""
        self.stop_waiting()
        if self._is_holding:
            self._is_holding = False
            self._flight.leave()


class CachedRun:
    """Rows that are finished; as `FlightRun`."""

    origin = Origin.CACHED
    early_row_count = 0

    def __init__(
        self, lease: Lease, array: npt.NDArray[Any], item_count: int, substitutions: tuple[Substitution, ...]
    ) -> None:
        self.cached_item_count = item_count
        self._lease = lease
        self._array = array
        self._substitutions = substitutions

    async def begun(self) -> npt.NDArray[Any]:
        return self._array

    async def finished_rows(self) -> AsyncIterator[tuple[int, int]]:
        yield 0, len(self._array)

    async def report(self) -> PixelReport:
        return PixelReport(Timings(), self._substitutions)

    def stop_waiting(self) -> None:
        pass

    def release(self) -> None:
        self._lease.release()


PixelRun = FlightRun | CachedRun

# Of a flight's time, what the items that are waited for take: where it is less, making them again ends sooner.
_LEAST_SHARE_OF_A_FLIGHT = 0.5


def begin_run(
    pool: WorkerPool,
    request_tasks: RequestTasks,
    media: tuple[Media, ...],
    plan: PixelPlan,
    cache_scope: str,
    deadline_seconds: float,
    early: EarlyWork | None = None,
) -> PixelRun:
    """Get the pixels of a plan from the cache, from workers that write them already, or begin to make them.

    Args:
        early: What has been made for the request while its files were arriving.
    Raises:
        LimitExceeded, Overloaded: As `WorkerPool.submit`.
    """
    keys = tuple(item_keys(cache_scope, plan))
    flight = _joinable_flight(pool, keys)
    if flight is not None:
        pool.cache.count_joined(len(keys))
        return FlightRun(flight, request_tasks, plan, deadline_seconds, Origin.JOINED)
    found = pool.cache.find(cache_scope, plan)
    rows = list(found.values())
    if len(rows) == len(plan.items) and is_contiguous(rows) and rows[0].form is plan.form:
        array = pool.arena.array(rows[0].offset, (plan.row_count, plan.feature_count), PIXEL_DTYPES[plan.form])
        return CachedRun(rows[0].share_lease(), array, len(rows), tuple(substitutions_of(found)))

    def end(flight: PixelFlight, is_whole: bool) -> None:
        if pool.flights.get(keys) is flight:  # else another has taken its place, as nobody could join it any more
            del pool.flights[keys]
        if is_whole and flight.lease is not None:
            pool.cache.add(cache_scope, plan, flight.lease, flight.cpu_seconds, flight.substitutions)

    early_rows = None if early is None else early.adopt(plan)
    flight = PixelFlight(
        request_tasks,
        pool.arena,
        media,
        plan,
        {} if early_rows is not None else found,
        find_cached=lambda: pool.cache.peek(cache_scope, plan),
        on_end=end,
        on_release=pool.released,
        abandon=pool.abandon,
        early=early_rows,
    )
    flight.submit()
    if pool.cache.is_on:
        pool.flights[keys] = flight
    return FlightRun(flight, request_tasks, plan, deadline_seconds, Origin.MADE)


def _joinable_flight(pool: WorkerPool, keys: tuple[ItemKey, ...]) -> PixelFlight | None:
    """The flight that makes exactly these items, where a request may join it."""
    flight = pool.flights.get(keys)
    return flight if flight is not None and flight.is_joinable else None


async def await_same_items(
    pool: WorkerPool, media: tuple[Media, ...], plan: PixelPlan, cache_scope: str, deadline_seconds: float
) -> None:
    """Wait while workers write items of a plan for requests that have others beside them; `begin_run` then finds their rows.

    Raises:
        PreprocessorError: What is wrong with a file of these items.
    """
    while (found := _flight_of_items(pool, media, plan, cache_scope)) is not None:
        flight, own_keys = found
        flight.join(deadline_seconds)
        try:
            await flight.ended()
        finally:
            flight.stop_waiting()
            flight.leave()
        error = flight.error
        if isinstance(error, PreprocessorError) and error.metadata.get("media_key") in own_keys:
            with _naming(own_keys):
                raise error


def _flight_of_items(
    pool: WorkerPool, media: tuple[Media, ...], plan: PixelPlan, cache_scope: str
) -> tuple[PixelFlight, dict[str, str]] | None:
    """A flight that makes items of a plan and little else, and the key here of each medium of those items there.

    One that has not started yet and has another lane may start much later than the plan's own task would.
    """
    if _joinable_flight(pool, tuple(item_keys(cache_scope, plan))) is not None:
        return None
    here = pool.cache.peek(cache_scope, plan) if pool.flights else {}
    missing = {
        key: index
        for index, item in enumerate(plan.items)
        if index not in here
        for key in keys_of_source(cache_scope, item, plan.form)
    }
    flights = [
        (keys, flight)
        for keys, flight in pool.flights.items()
        if not missing.keys().isdisjoint(keys) and flight.is_joinable and pool.cache.may_keep(flight.plan.size_bytes)
    ]
    own_seconds = cost.estimate(plan, media).cpu_seconds if flights else 0.0
    for keys, flight in flights:
        same = [(theirs, missing[key]) for theirs, key in zip(flight.plan.items, keys, strict=True) if key in missing]
        same_seconds = own_seconds - cost.estimate(plan, media, {index for _, index in same}).cpu_seconds
        is_soon = flight.lease is not None or lane_of(own_seconds) is lane_of(flight.cpu_seconds)
        if is_soon and same_seconds > _LEAST_SHARE_OF_A_FLIGHT * flight.cpu_seconds:
            return flight, {theirs.key: plan.items[index].key for theirs, index in same}
    return None


async def _result(task: Task) -> PixelReport:
    await asyncio.wait([task.done])
    report: PixelReport = task.done.result()
    return report


@contextlib.contextmanager
def _naming(own_keys: Mapping[str, str]) -> Iterator[None]:
    """Errors about a medium of the request that began a flight name the medium by the key that this request gave it."""
    try:
        yield
    except PreprocessorError as error:
        key = error.metadata.get("media_key", "")
        own_key = own_keys.get(key, key)
        if own_key == key:
            raise
        raise error.about(own_key) from None
