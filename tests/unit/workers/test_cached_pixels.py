"""Requests with the same media: cached rows, and rows that workers write for another request, equal those made alone."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.errors import Cancelled, CorruptMedia
from preprocessor.models.family import Model
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    OnDamage,
    PixelForm,
    PreparationRequest,
    Sampling,
)
from preprocessor.types.timing import Timings
from preprocessor.workers import task
from preprocessor.workers.memory_admission import wanted_bytes
from preprocessor.workers.pixel_run import FlightRun, Origin, PixelRun
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.resources import RequestResources
from preprocessor.workers.upload_buffer import UploadBuffer
from tests.media import moving_shapes_clip, photo, repeated_clip
from tests.unit.workers.conftest import MIB, open_pool
from tests.waiting import PATIENCE_SECONDS, eventually

CLIP = Media("clip", Modality.VIDEO, moving_shapes_clip(seconds=4, width=320, height=240), sampling=Sampling(fps=2))
PHOTO = Media("photo", Modality.IMAGE, photo(320, 240))
OTHER = Media("other", Modality.IMAGE, photo(240, 320))
LONG_CLIP = Media(
    "clip",
    Modality.VIDEO,
    repeated_clip(moving_shapes_clip(seconds=5, width=374, height=374, options=(("g", "30"),)), 8),
    sampling=Sampling(fps=8),
)


@pytest_asyncio.fixture
async def pool(model: Model) -> AsyncIterator[WorkerPool]:
    async with open_pool(model=model, cache_bytes=64 * MIB) as one:
        yield one
        await eventually(lambda: not one.used_bytes and not one.flights)
        assert one.rows.leased_bytes == one.rows.kept_bytes == one.cache.size_bytes
        assert one.files.leased_bytes == 0


def request_of(*media: Media, form: PixelForm | None = None) -> PreparationRequest:
    parts = tuple(MediaPart(medium.key) for medium in media)
    return PreparationRequest(ChatPrompt((Message("user", parts),)), media, pixel_form=form)


class Reader:
    """One request as an async context manager: its files are there and it is planned.

    Attributes:
        run: Its pixels, once `begin` was called.
    """

    run: PixelRun

    def __init__(
        self,
        pool: WorkerPool,
        request: PreparationRequest,
        scope: str = "",
    ) -> None:
        self._request = request
        self.resources = RequestResources(pool, time.monotonic() + PATIENCE_SECONDS, Timings(), scope)

    async def __aenter__(self) -> Reader:
        await self.resources.__aenter__()
        self._media: list[Media] = []
        for medium in self._request.media:
            buffer = UploadBuffer(self.resources)
            await buffer.write(medium.data)
            self._media.append(dataclasses.replace(medium, data=await buffer.finish()))
        self._plan = await self.resources.plan(dataclasses.replace(self._request, media=tuple(self._media)), Limits())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.resources.__aexit__(None, None, None)

    def begin(self) -> Origin:
        """Ask for the pixels; nothing else runs meanwhile."""
        assert self._plan.pixels is not None
        self.run = self.resources.pixels(self._media, self._plan.pixels)
        return self.run.origin

    async def begin_after_others(self) -> Origin:
        """Ask for the pixels when nobody else makes most of them any more."""
        assert self._plan.pixels is not None
        await self.resources.await_same_items(self._media, self._plan.pixels)
        return self.begin()

    async def read(self) -> npt.NDArray[Any]:
        """A copy of the pixels."""
        assert self._plan.pixels is not None
        array, next_row = await self.run.begun(), 0
        async for first_row, row_count in self.run.finished_rows():
            assert first_row == next_row
            next_row += row_count
        assert next_row == self._plan.pixels.row_count
        await self.run.report()
        return array.copy()


async def get(pool: WorkerPool, request: PreparationRequest, scope: str = "") -> tuple[Origin, int, npt.NDArray[Any]]:
    """Where the pixels of a request come from, how many of its items were not made for it, and its pixels."""
    async with Reader(pool, request, scope) as reader:
        origin = reader.begin()
        pixels = await reader.read()
        return origin, reader.run.cached_item_count, pixels


@contextmanager
def without_memory(pool: WorkerPool) -> Iterator[None]:
    """No task gets memory meanwhile; those that wait for it start afterwards."""
    free_bytes = pool.rows.size_bytes - pool.counters.row_bytes
    pool.counters.add_working(free_bytes)
    try:
        yield
    finally:
        pool.counters.remove_working(free_bytes)
        pool.released()


def expected(model: Model, request: PreparationRequest) -> npt.NDArray[Any]:
    prepared = pipeline.prepare(model, request)
    assert prepared.plan.pixels is not None
    return prepared.tensors[prepared.plan.pixels.name]


@pytest.mark.parametrize("form", [None, PixelForm.BF16, PixelForm.FP32])
async def test_the_second_request_gets_the_same_pixels_and_no_worker_makes_them(
    pool: WorkerPool, model: Model, form: PixelForm | None
) -> None:
    request = request_of(CLIP, PHOTO, form=form)
    assert (await get(pool, request))[:2] == (Origin.MADE, 0)
    origin, cached_item_count, pixels = await get(pool, request)
    assert (origin, cached_item_count) == (Origin.CACHED, 2)
    np.testing.assert_array_equal(pixels, expected(model, request))


async def test_items_of_a_request_are_cached_for_others_alone(pool: WorkerPool, model: Model) -> None:
    await get(pool, request_of(CLIP, PHOTO, OTHER))
    for media in ((CLIP,), (PHOTO,), (PHOTO, OTHER)):
        origin, _, pixels = await get(pool, request_of(*media))
        assert origin is Origin.CACHED
        np.testing.assert_array_equal(pixels, expected(model, request_of(*media)))


@pytest.mark.parametrize("form", [None, PixelForm.FP16])
async def test_cached_items_are_copied_beside_new_ones(pool: WorkerPool, model: Model, form: PixelForm | None) -> None:
    await get(pool, request_of(CLIP, form=form))
    await get(pool, request_of(OTHER, form=form))
    request = request_of(OTHER, PHOTO, CLIP, dataclasses.replace(OTHER, key="again"), form=form)
    origin, cached_item_count, pixels = await get(pool, request)
    assert (origin, cached_item_count) == (Origin.MADE, 3)
    np.testing.assert_array_equal(pixels, expected(model, request))


@pytest.mark.parametrize("form", [PixelForm.BF16, PixelForm.FP16, PixelForm.FP32])
async def test_normalized_rows_are_made_of_cached_uint8_rows(pool: WorkerPool, model: Model, form: PixelForm) -> None:
    await get(pool, request_of(CLIP, PHOTO))
    request = request_of(PHOTO, OTHER, CLIP, form=form)
    origin, cached_item_count, pixels = await get(pool, request)
    assert (origin, cached_item_count) == (Origin.MADE, 2)
    np.testing.assert_array_equal(pixels, expected(model, request))
    assert (await get(pool, request))[0] is Origin.CACHED


async def test_uint8_rows_are_not_made_of_normalized_ones(pool: WorkerPool, model: Model) -> None:
    await get(pool, request_of(CLIP, form=PixelForm.FP32))
    _, cached_item_count, pixels = await get(pool, request_of(CLIP))
    assert cached_item_count == 0
    np.testing.assert_array_equal(pixels, expected(model, request_of(CLIP)))


async def test_other_settings_and_another_scope_never_meet_an_entry(pool: WorkerPool) -> None:
    request = request_of(CLIP)
    await get(pool, request, "someone")
    others = [
        (request, "another"),
        (dataclasses.replace(request, cache_salt="salt"), "someone"),
        (dataclasses.replace(request, video_decoder="opencv"), "someone"),
        (request_of(CLIP, form=PixelForm.FP32), "someone"),
        (request_of(dataclasses.replace(CLIP, sampling=Sampling(fps=1))), "someone"),
        (request_of(dataclasses.replace(CLIP, on_damage=OnDamage.REPEAT)), "someone"),
        (request_of(dataclasses.replace(CLIP, max_pixels=64 * 64 * 4)), "someone"),
    ]
    for other, scope in others:
        assert (await get(pool, other, scope))[0] is Origin.MADE
    assert (await get(pool, request, "someone"))[0] is Origin.CACHED


async def test_requests_at_the_same_time_are_made_once(pool: WorkerPool, model: Model) -> None:
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(Reader(pool, request_of(CLIP, PHOTO))) for _ in range(6)]
        origins = [reader.begin() for reader in readers]
        assert origins == [Origin.MADE, *[Origin.JOINED] * 5]
        assert (pool.running_count, pool.pending_count) == (1, 6)
        for pixels in await asyncio.gather(*(reader.read() for reader in readers)):
            np.testing.assert_array_equal(pixels, expected(model, request_of(CLIP, PHOTO)))
        assert pool.pending_count == 0


async def test_the_work_goes_on_after_the_request_that_began_it_has_left(pool: WorkerPool, model: Model) -> None:
    async with Reader(pool, request_of(CLIP)) as joined:
        async with Reader(pool, request_of(CLIP)) as first:
            assert (first.begin(), joined.begin()) == (Origin.MADE, Origin.JOINED)
            await first.run.begun()
        np.testing.assert_array_equal(await joined.read(), expected(model, request_of(CLIP)))


async def test_nobody_joins_work_that_nobody_wanted_any_more(pool: WorkerPool, model: Model) -> None:
    async with Reader(pool, request_of(CLIP)) as later, Reader(pool, request_of(CLIP)) as third:
        async with Reader(pool, request_of(CLIP)) as first:
            first.begin()
            await first.run.begun()
        assert pool.running_count == 1  # its worker was told to stop, and has not stopped yet
        assert (later.begin(), third.begin()) == (Origin.MADE, Origin.JOINED)
        for reader in (later, third):
            np.testing.assert_array_equal(await reader.read(), expected(model, request_of(CLIP)))


async def test_the_first_request_leaves_before_the_work_begins(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts that the work is cut into then hold its files, until the last one has ended."""
    monkeypatch.setattr("preprocessor.workers.pool.MOST_THREADS", 1)  # so that it is cut, and not made by threads
    async with open_pool(model=model, cache_bytes=64 * MIB, worker_count=2, memory_budget_bytes=512 * MIB) as pool:
        request = request_of(LONG_CLIP)
        async with Reader(pool, request) as joined:
            first = await Reader(pool, request).__aenter__()
            with without_memory(pool):
                assert (first.begin(), joined.begin()) == (Origin.MADE, Origin.JOINED)
                await first.__aexit__()
                assert pool.queued_count == 1
            assert isinstance(joined.run, FlightRun)
            np.testing.assert_array_equal(await joined.read(), expected(model, request))
            assert len(joined.run.tasks) == 2
        await eventually(lambda: not pool.used_bytes and not pool.flights)
        assert pool.files.leased_bytes == 0


async def test_a_request_that_has_joined_waits_longer_than_the_first(pool: WorkerPool, model: Model) -> None:
    async with Reader(pool, request_of(CLIP)) as joined:
        async with Reader(pool, request_of(CLIP)) as first:
            first.resources._tasks._deadline_seconds = time.monotonic() + 0.1  # it is planned, however long that took
            with without_memory(pool):
                assert (first.begin(), joined.begin()) == (Origin.MADE, Origin.JOINED)
                await asyncio.sleep(0.2)
        np.testing.assert_array_equal(await joined.read(), expected(model, request_of(CLIP)))


async def test_items_that_are_made_for_a_request_with_others_are_not_made_again(pool: WorkerPool, model: Model) -> None:
    first_request, part, more = request_of(CLIP, PHOTO), request_of(CLIP), request_of(OTHER, CLIP, form=PixelForm.FP32)
    async with Reader(pool, first_request) as first, Reader(pool, part) as second, Reader(pool, more) as third:
        first.begin()
        await first.run.begun()
        later = [asyncio.create_task(reader.begin_after_others()) for reader in (second, third)]
        await asyncio.sleep(0)
        assert pool.pending_count == 3
        np.testing.assert_array_equal(await first.read(), expected(model, first_request))
        assert await asyncio.gather(*later) == [Origin.CACHED, Origin.MADE]
        assert (second.run.cached_item_count, third.run.cached_item_count) == (1, 1)
        np.testing.assert_array_equal(await second.read(), expected(model, part))
        np.testing.assert_array_equal(await third.read(), expected(model, more))


async def test_items_are_made_for_those_who_wait_when_the_first_has_left(pool: WorkerPool, model: Model) -> None:
    request = request_of(CLIP)
    async with Reader(pool, request) as later:
        async with Reader(pool, request_of(CLIP, PHOTO)) as first:
            first.begin()
            await first.run.begun()
            waiting = asyncio.create_task(later.begin_after_others())
            await asyncio.sleep(0)
        assert await waiting is Origin.CACHED
        np.testing.assert_array_equal(await later.read(), expected(model, request))


async def test_work_that_only_a_request_with_others_waits_for_ends_when_that_leaves(pool: WorkerPool) -> None:
    async with Reader(pool, request_of(CLIP)) as later:
        async with Reader(pool, request_of(CLIP, PHOTO)) as first:
            first.begin()
            await first.run.begun()
            waiting = asyncio.create_task(later.begin_after_others())
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    await eventually(lambda: not pool.running_count)
    assert len(pool.cache) == 0


@pytest.mark.parametrize("is_shared", [True, False])
async def test_who_waits_for_items_gets_an_error_about_these_alone(
    pool: WorkerPool, model: Model, is_shared: bool
) -> None:
    cut_short = dataclasses.replace(PHOTO, data=PHOTO.content[: len(PHOTO.content) // 2])
    mine = dataclasses.replace(cut_short if is_shared else CLIP, key="mine")
    theirs = (
        request_of(cut_short) if is_shared else request_of(CLIP, cut_short)
    )  # what is shared takes most of the time
    async with Reader(pool, theirs) as first, Reader(pool, request_of(mine, OTHER)) as later:
        first.begin()
        await first.run.begun()
        waiting = asyncio.create_task(later.begin_after_others())
        with pytest.raises(CorruptMedia):
            await first.read()
        if is_shared:
            with pytest.raises(CorruptMedia) as caught:
                await waiting
            assert caught.value.metadata["media_key"] == "mine"
        else:
            assert await waiting is Origin.MADE
            np.testing.assert_array_equal(await later.read(), expected(model, request_of(mine, OTHER)))


async def test_nobody_waits_long_for_a_small_part(pool: WorkerPool, model: Model) -> None:
    async with Reader(pool, request_of(CLIP, PHOTO)) as first, Reader(pool, request_of(PHOTO)) as later:
        first.begin()
        await first.run.begun()
        assert await later.begin_after_others() is Origin.MADE
        assert len(pool.flights) == 2
        np.testing.assert_array_equal(await later.read(), expected(model, request_of(PHOTO)))
        await first.read()


@pytest.mark.parametrize("is_same_lane", [True, False])
async def test_a_task_that_waits_is_waited_for_by_those_of_its_lane(
    pool: WorkerPool, model: Model, monkeypatch: pytest.MonkeyPatch, is_same_lane: bool
) -> None:
    request = request_of(CLIP)
    async with Reader(pool, request_of(CLIP, PHOTO)) as first, Reader(pool, request) as later:
        with without_memory(pool):
            first.begin()
            if not is_same_lane:
                monkeypatch.setattr(task, "SHORT_SECONDS", next(iter(pool.flights.values())).cpu_seconds)
            waiting = asyncio.create_task(later.begin_after_others())
            await asyncio.sleep(0)
            assert pool.queued_count == (1 if is_same_lane else 2)
        assert await waiting is (Origin.CACHED if is_same_lane else Origin.MADE)
        np.testing.assert_array_equal(await later.read(), expected(model, request))
        await first.read()


async def test_nobody_waits_for_rows_that_will_not_be_kept(model: Model) -> None:
    async with (
        open_pool(model=model, cache_bytes=1) as pool,
        Reader(pool, request_of(CLIP, PHOTO)) as first,
        Reader(pool, request_of(CLIP)) as later,
    ):
        first.begin()
        await first.run.begun()
        assert await later.begin_after_others() is Origin.MADE


async def test_rows_that_were_made_while_the_task_waited_are_copied(pool: WorkerPool, model: Model) -> None:
    request = request_of(PHOTO, CLIP)
    async with Reader(pool, request_of(CLIP)) as first, Reader(pool, request) as later:
        with without_memory(pool):
            assert (first.begin(), later.begin()) == (Origin.MADE, Origin.MADE)
            assert isinstance(first.run, FlightRun)
            enough_for_the_first = wanted_bytes(first.run.tasks[0])
            pool.counters.remove_working(enough_for_the_first)
            pool.released()
            await first.read()
            assert later.run.cached_item_count == 0
            pool.counters.add_working(enough_for_the_first)
        np.testing.assert_array_equal(await later.read(), expected(model, request))
        assert later.run.cached_item_count == 1


async def test_an_engine_reads_on_while_the_work_goes_on_for_others(pool: WorkerPool, model: Model) -> None:
    async with Reader(pool, request_of(CLIP)) as joined:
        async with Reader(pool, request_of(CLIP)) as first:
            assert (first.begin(), joined.begin()) == (Origin.MADE, Origin.JOINED)
            array = await first.run.begun()
            release = first.resources.retain()
        await joined.read()
    assert pool.used_bytes >= array.nbytes
    np.testing.assert_array_equal(array, expected(model, request_of(CLIP)))
    release()
    assert pool.used_bytes == 0


async def test_the_work_ends_with_the_last_request_that_wants_it(pool: WorkerPool) -> None:
    async with Reader(pool, request_of(CLIP)) as first, Reader(pool, request_of(CLIP)) as joined:
        first.begin()
        joined.begin()
        await first.run.begun()
    await eventually(lambda: not pool.running_count)
    assert len(pool.cache) == 0


async def test_a_worker_that_is_killed_costs_those_who_have_joined_nothing(pool: WorkerPool, model: Model) -> None:
    async with Reader(pool, request_of(CLIP)) as first, Reader(pool, request_of(CLIP)) as joined:
        first.begin()
        joined.begin()
        await first.run.begun()
        assert isinstance(first.run, FlightRun)
        worker = first.run.tasks[0]._worker
        assert worker is not None
        worker.kill()
        for reader in (first, joined):
            np.testing.assert_array_equal(await reader.read(), expected(model, request_of(CLIP)))


async def test_all_who_wait_get_the_error(pool: WorkerPool) -> None:
    cut_short = dataclasses.replace(PHOTO, data=PHOTO.content[: len(PHOTO.content) // 2])
    async with Reader(pool, request_of(cut_short)) as first, Reader(pool, request_of(cut_short)) as joined:
        first.begin()
        joined.begin()
        for reader in (first, joined):
            with pytest.raises(CorruptMedia):
                await reader.read()
    assert len(pool.cache) == 0


async def test_errors_name_the_medium_as_each_request_does(pool: WorkerPool) -> None:
    cut_short = dataclasses.replace(PHOTO, data=PHOTO.content[: len(PHOTO.content) // 2])
    other = dataclasses.replace(cut_short, key="mine")
    async with Reader(pool, request_of(cut_short)) as first, Reader(pool, request_of(other)) as joined:
        assert (first.begin(), joined.begin()) == (Origin.MADE, Origin.JOINED)
        for reader, key in ((joined, "mine"), (first, "photo")):
            with pytest.raises(CorruptMedia) as caught:
                await reader.read()
            assert caught.value.metadata["media_key"] == key
            assert caught.value.message.startswith(f"{key}: ")


async def test_rows_that_were_dropped_while_the_task_waited_are_made(pool: WorkerPool, model: Model) -> None:
    await get(pool, request_of(CLIP))
    request = request_of(PHOTO, CLIP)
    async with Reader(pool, request) as reader:
        with without_memory(pool):
            reader.begin()
            assert reader.run.cached_item_count == 1
            pool.cache.clear()
        np.testing.assert_array_equal(await reader.read(), expected(model, request))
        assert reader.run.cached_item_count == 0


async def test_no_task_waits_for_memory_of_rows_that_it_would_copy(model: Model) -> None:
    clip = dataclasses.replace(CLIP, sampling=Sampling(fps=6))
    request = request_of(PHOTO, clip, form=PixelForm.FP32)
    async with open_pool(model=model, cache_bytes=24 * MIB, memory_budget_bytes=64 * MIB) as pool:
        _, _, cached = await get(pool, request_of(clip, form=PixelForm.FP32))
        assert len(pool.cache) == 1
        async with Reader(pool, request) as reader:
            reader.begin()
            assert isinstance(reader.run, FlightRun)
            wanted = wanted_bytes(reader.run.tasks[0])
            pixels = await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)
        np.testing.assert_array_equal(pixels, expected(model, request))
        assert pixels.nbytes + wanted + cached.nbytes > pool.rows.size_bytes


async def test_cached_rows_give_way_to_requests(pool: WorkerPool) -> None:
    await get(pool, request_of(CLIP))
    filler = pool.rows.lease(pool.rows.size_bytes - pool.rows.leased_bytes)
    assert filler is not None
    assert len(pool.cache) == 1
    lease = pool.lease_rows(MIB)
    assert lease is not None
    assert len(pool.cache) == 0
    lease.release()
    filler.release()


async def test_no_cached_rows_give_way_to_a_result_for_which_there_will_be_no_memory(pool: WorkerPool) -> None:
    await get(pool, request_of(CLIP))
    filler = pool.rows.lease(MIB)
    assert filler is not None
    assert pool.lease_rows(pool.rows.size_bytes) is None
    assert len(pool.cache) == 1
    filler.release()
    assert pool.lease_rows(pool.rows.size_bytes + 1) is None
    assert len(pool.cache) == 1


async def test_requests_that_share_work_end_with_the_pool(model: Model) -> None:
    settings: dict[str, Any] = {"cache_bytes": 64 * MIB, "memory_budget_bytes": 512 * MIB}
    async with AsyncExitStack() as stack, open_pool(model=model, **settings) as pool:
        running = [await stack.enter_async_context(Reader(pool, request_of(LONG_CLIP))) for _ in range(2)]
        queued = [await stack.enter_async_context(Reader(pool, request_of(CLIP, PHOTO))) for _ in range(2)]
        assert [reader.begin() for reader in running] == [Origin.MADE, Origin.JOINED]
        await running[1].run.begun()
        stack.enter_context(without_memory(pool))
        assert [reader.begin() for reader in queued] == [Origin.MADE, Origin.JOINED]
        stack.push_async_callback(expect_cancelled, running + queued)
    assert not pool.flights
    assert (pool.used_bytes, pool.pending_count) == (0, 0)


async def expect_cancelled(readers: list[Reader]) -> None:
    for reader in readers:
        with pytest.raises(Cancelled):
            await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)
