"""Rows that are made while files arrive equal those made afterwards, take nothing that others need, and leave nothing behind."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import io
import random
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest, PreprocessorError
from preprocessor.models.family import Model
from preprocessor.types.request import (
    ChatPrompt,
    FileData,
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
from preprocessor.workers.early_work import EarlyEnd, EarlyWork
from preprocessor.workers.pixel_run import Origin, PixelRun
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.resources import RequestResources
from preprocessor.workers.upload_buffer import UploadBuffer
from tests.media import damaged, index_in_front, moving_shapes_clip, photo
from tests.unit.workers.conftest import MIB, open_pool
from tests.unit.workers.test_cached_pixels import get, without_memory
from tests.waiting import PATIENCE_SECONDS, eventually


def made_clip(codec: str = "libx264", group: int = 15, **others: Any) -> bytes:
    """8 s, 120 frames, some of which are shown in another order than they lie in the file; its index is at the end."""
    options = (("x264-params", f"keyint={group}:bframes=2:b-adapt=0:scenecut=0"),)
    return moving_shapes_clip(
        **{
            "seconds": 8,
            "rate": 15,
            "width": 240,
            "height": 176,
            "codec": codec,
            "grain": 30,
            "options": options,
            **others,
        }
    )


PLAIN = made_clip()
IN_FRONT = index_in_front(PLAIN)


def clip(data: bytes = IN_FRONT, key: str = "clip", fps: float = 2.0, **others: Any) -> Media:
    return Media(key, Modality.VIDEO, data, sampling=Sampling(fps=fps), **others)


HALVES = clip(index_in_front(made_clip(group=60)), fps=15.0)
PHOTO = Media("photo", Modality.IMAGE, photo(320, 240))


def request_of(*media: Media, **others: Any) -> PreparationRequest:
    return PreparationRequest(
        ChatPrompt((Message("user", tuple(MediaPart(one.key) for one in media)),)), media, **others
    )


@pytest_asyncio.fixture
async def pool(model: Model) -> AsyncIterator[WorkerPool]:
    async with open_pool(model=model, cache_bytes=64 * MIB) as one:
        yield one
        await assert_nothing_left(one)


async def assert_nothing_left(pool: WorkerPool) -> None:
    await eventually(lambda: not pool.used_bytes and not pool.flights)
    assert not pool.early_works
    assert (pool.running_count, pool.queued_count, pool.pending_count) == (0, 0, 0)
    assert pool.rows.leased_bytes == pool.rows.kept_bytes == pool.cache.size_bytes
    assert pool.files.leased_bytes == 0


class Upload:
    """One request whose files arrive as the test sends them.

    Attributes:
        run: Its pixels, once `finish` was called.
    """

    run: PixelRun

    def __init__(self, resources: RequestResources, request: PreparationRequest, are_sizes_known: bool) -> None:
        self.resources = resources
        self._request = request
        self._buffers: dict[str, UploadBuffer] = {}
        self.early: EarlyWork = resources.begin_early({one.key for one in request.media}, self._filled, Limits())
        for medium in request.media:
            buffer = self._buffers[medium.key] = UploadBuffer(resources)
            resources.watch_upload(medium.key, buffer)
            if are_sizes_known:
                buffer.announce(len(medium.data))

    def _filled(self, files: Mapping[str, FileData]) -> PreparationRequest:
        media = tuple(dataclasses.replace(one, data=files.get(one.key, b"")) for one in self._request.media)
        return dataclasses.replace(self._request, media=media)

    async def send(self, share: float, *keys: str, chunk_bytes: int = 1 << 16) -> None:
        """Let that part of the files arrive, of all media or of some."""
        for medium in self._request.media:
            buffer = self._buffers[medium.key]
            if keys and medium.key not in keys:
                continue
            stop = int(len(medium.data) * share)
            while buffer.size_bytes < stop:
                await buffer.write(medium.data[buffer.size_bytes : min(stop, buffer.size_bytes + chunk_bytes)])
                self.resources.note_arrival()
                await asyncio.sleep(0)
            if share == 1:
                await buffer.finish()
                self.resources.note_arrival()

    async def made(self, row_count: int = 1) -> None:
        """Wait until so many rows are made early, and all others that can be made of what has arrived."""
        await eventually(lambda: self.early.row_count >= row_count and self.early._task is None)

    async def finish(self) -> npt.NDArray[Any]:
        """Let all of it arrive; returns a copy of the pixels."""
        await self.send(1.0)
        request = self._filled({key: await buffer.finish() for key, buffer in self._buffers.items()})
        planned = await self.resources.plan(request, Limits())
        assert planned.pixels is not None
        self.run = self.resources.pixels(request.media, planned.pixels)
        array, next_row = await self.run.begun(), 0
        async for first_row, row_count in self.run.finished_rows():
            assert first_row == next_row
            next_row += row_count
        assert next_row == planned.pixels.row_count
        await self.run.report()
        return array.copy()


@asynccontextmanager
async def uploading(
    pool: WorkerPool, *media: Media, are_sizes_known: bool = True, **others: Any
) -> AsyncIterator[Upload]:
    async with RequestResources(pool, time.monotonic() + PATIENCE_SECONDS, Timings()) as resources:
        yield Upload(resources, request_of(*media, **others), are_sizes_known)


def expected(model: Model, *media: Media, **others: Any) -> npt.NDArray[Any]:
    prepared = pipeline.prepare(model, request_of(*media, **others))
    assert prepared.plan.pixels is not None
    return prepared.tensors[prepared.plan.pixels.name]


# -- the same rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [1.0, 8.0])
@pytest.mark.parametrize("form", [None, PixelForm.BF16])
async def test_rows_made_while_a_clip_arrives_equal_those_made_afterwards(
    pool: WorkerPool, model: Model, fps: float, form: PixelForm | None
) -> None:
    medium = clip(fps=fps)
    async with uploading(pool, medium, pixel_form=form) as upload:
        for share in (0.3, 0.5, 0.8):
            before = upload.early.row_count
            await upload.send(share)
            await upload.made(before + 1)
        rows = await upload.finish()
        assert upload.run.early_row_count > len(rows) / 2
        assert upload.run.early_row_count < len(rows)
    np.testing.assert_array_equal(rows, expected(model, medium, pixel_form=form))
    assert pool.counters.early_counts == {EarlyEnd.USED.value: 1}


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx265", (("x265-params", "keyint=15:open-gop=1:log-level=none"),)),
        ("libvpx-vp9", (("g", "15"), ("cpu-used", "8"), ("deadline", "realtime"))),
        ("libsvtav1", (("g", "15"), ("preset", "12"))),
    ],
)
async def test_other_codecs(pool: WorkerPool, model: Model, codec: str, options: tuple[tuple[str, str], ...]) -> None:
    data = index_in_front(made_clip(codec, options=options))
    async with uploading(pool, clip(data)) as upload:
        await upload.send(0.7)
        await upload.made()
        rows = await upload.finish()
        assert upload.run.early_row_count > 0
    np.testing.assert_array_equal(rows, expected(model, clip(data)))


async def test_threads_in_place_of_processes(model: Model) -> None:
    async with open_pool(model=model, is_in_process=True) as pool:
        async with uploading(pool, clip()) as upload:
            await upload.send(0.7)
            await upload.made()
            rows = await upload.finish()
            assert upload.run.early_row_count > 0
        await assert_nothing_left(pool)
    np.testing.assert_array_equal(rows, expected(model, clip()))


async def test_a_clip_that_is_turned(pool: WorkerPool, model: Model) -> None:
    turned = made_clip(turn_degrees=90)
    medium = clip(index_in_front(turned))
    async with uploading(pool, medium) as upload:
        await upload.send(0.7)
        await upload.made()
        rows = await upload.finish()
    np.testing.assert_array_equal(rows, expected(model, medium))
    assert pool.counters.early_counts == {EarlyEnd.USED.value: 1}


async def test_several_media_of_one_request(pool: WorkerPool, model: Model) -> None:
    media = (PHOTO, clip(key="first"), clip(index_in_front(made_clip(seed=1)), "second"))
    async with uploading(pool, *media) as upload:
        await upload.send(1.0, "photo", "first")
        await upload.send(0.6, "second")
        await upload.made()
        rows = await upload.finish()
        assert upload.run.early_row_count > len(expected(model, *media[:2]))
    np.testing.assert_array_equal(rows, expected(model, *media))


@pytest.mark.parametrize("seed", range(4))
async def test_chunks_of_any_size(pool: WorkerPool, model: Model, seed: int) -> None:
    chance = random.Random(seed)
    async with uploading(pool, clip()) as upload:
        share = 0.26
        while share < 1:
            await upload.send(share, chunk_bytes=chance.choice((1000, 50_000, 1 << 20)))
            if chance.random() < 0.5:
                await asyncio.sleep(chance.random() / 20)
            share += chance.random() / 5
        rows = await upload.finish()
    np.testing.assert_array_equal(rows, expected(model, clip()))


# -- what cannot be begun early ----------------------------------------------------------------------------------------


def fragmented() -> bytes:
    buffer = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    with av.open(io.BytesIO(PLAIN), "r") as source, av.open(buffer, "w", format="mp4", options=options) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "medium",
    [
        clip(PLAIN),
        clip(fragmented()),
        clip(IN_FRONT + b"\0\0\0\x10free" + bytes(8)),
        clip(made_clip(container="matroska")),
        PHOTO,
    ],
    ids=["index at the end", "fragmented", "a box behind the media", "Matroska", "image"],
)
async def test_other_files_are_begun_when_they_are_whole(pool: WorkerPool, model: Model, medium: Media) -> None:
    async with uploading(pool, medium) as upload:
        await upload.send(0.9)
        await asyncio.sleep(0.1)
        rows = await upload.finish()
        assert upload.run.early_row_count == 0
    np.testing.assert_array_equal(rows, expected(model, medium))
    assert not pool.counters.early_counts


async def test_a_clip_whose_size_nobody_has_said(pool: WorkerPool, model: Model) -> None:
    async with uploading(pool, clip(), are_sizes_known=False) as upload:
        await upload.send(0.9)
        await asyncio.sleep(0.1)
        np.testing.assert_array_equal(await upload.finish(), expected(model, clip()))
    assert not pool.counters.early_counts


async def test_damaged_frames_that_are_replaced_are_no_early_work(pool: WorkerPool, model: Model) -> None:
    medium = clip(damaged(IN_FRONT, 40), on_damage=OnDamage.REPEAT)
    async with uploading(pool, medium) as upload:
        await upload.send(0.9)
        await eventually(lambda: upload.early in pool.early_works)
        rows = await upload.finish()
        assert upload.run.early_row_count == 0
    np.testing.assert_array_equal(rows, expected(model, medium))


# -- when the guess is wrong -------------------------------------------------------------------------------------------


async def test_a_keyframe_that_is_none(pool: WorkerPool, model: Model) -> None:
    """The index marks it, and only its bytes tell that no decoder can begin there."""
    medium = clip(damaged(IN_FRONT, 105))
    whole = await outcome_of(asyncio.to_thread(expected, model, medium))
    async with uploading(pool, medium) as upload:
        await upload.send(0.7)
        await upload.made()
        assert_same(await outcome_of(upload.finish()), whole)
        assert upload.run.early_row_count == 0
    assert pool.counters.early_counts == {EarlyEnd.OTHER_PLAN.value: 1}


async def test_open_groups_of_pictures(pool: WorkerPool, model: Model) -> None:
    """The index marks pictures with a recovery point as keyframes, at which decoding does not begin."""
    options = (("x264-params", "keyint=15:bframes=2:b-adapt=0:scenecut=0:open-gop=1"),)
    medium = clip(index_in_front(made_clip(options=options)))
    async with uploading(pool, medium) as upload:
        await upload.send(0.9)
        await eventually(lambda: upload.early in pool.early_works and not pool.running_count)
        rows = await upload.finish()
    np.testing.assert_array_equal(rows, expected(model, medium))


@pytest.mark.parametrize("packet", [3, 100])
async def test_a_damaged_clip_gives_the_same_error(pool: WorkerPool, model: Model, packet: int) -> None:
    medium = clip(damaged(IN_FRONT, *range(packet, packet + 12)), fps=15.0)
    with pytest.raises(PreprocessorError) as whole:
        expected(model, medium)
    async with uploading(pool, medium) as upload:
        await upload.send(0.7)
        await eventually(lambda: upload.early in pool.early_works)
        with pytest.raises(PreprocessorError) as early:
            await upload.finish()
    assert (early.value.reason, early.value.message) == (whole.value.reason, whole.value.message)


@pytest.mark.parametrize("shift", [1 << 20, -(1 << 10)], ids=["beyond the file", "before the packets"])
async def test_an_index_that_lies(pool: WorkerPool, model: Model, shift: int) -> None:
    medium = clip(with_shifted_offsets(IN_FRONT, shift))
    whole = await outcome_of(asyncio.to_thread(expected, model, medium))
    async with uploading(pool, medium) as upload:
        await upload.send(0.9)
        await asyncio.sleep(0.1)
        early = await outcome_of(upload.finish())
    assert_same(early, whole)


async def test_a_file_with_another_digest_than_announced(pool: WorkerPool) -> None:
    async with uploading(pool, clip(content_sha256=hashlib.sha256(b"another").digest())) as upload:
        await upload.send(0.7)
        await upload.made()
        with pytest.raises(InvalidRequest) as caught:
            await upload.finish()
    assert caught.value.reason == "DIGEST_MISMATCH"
    assert pool.counters.early_counts == {EarlyEnd.UNUSED.value: 1}


def with_shifted_offsets(data: bytes, shift: int) -> bytes:
    spoiled = bytearray(data)
    start = data.index(b"stco") - 4
    (count,) = struct.unpack_from(">I", data, start + 12)
    for place in range(start + 16, start + 16 + 4 * count, 4):
        (offset,) = struct.unpack_from(">I", data, place)
        if place > start + 16 + 2 * count:  # of the second half
            struct.pack_into(">I", spoiled, place, offset + shift)
    return bytes(spoiled)


def assert_same(ours: Any, whole: Any) -> None:
    """Rows or errors."""
    if isinstance(whole, PreprocessorError):
        assert isinstance(ours, PreprocessorError)
        assert (ours.reason, ours.message) == (whole.reason, whole.message)
    else:
        np.testing.assert_array_equal(ours, whole)


async def outcome_of(awaited: Awaitable[Any]) -> Any:
    try:
        return await awaited
    except PreprocessorError as error:
        return error


# -- the caller, the cache and other requests --------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
async def test_an_upload_that_ends_in_the_midst(pool: WorkerPool, share: float) -> None:
    async with uploading(pool, clip()) as upload:
        await upload.send(share)
        if share > 0.25:
            await upload.made()
    await assert_nothing_left(pool)
    assert sum(pool.counters.early_counts.values()) == (share > 0.25)


async def test_rows_that_are_cached_are_taken_from_the_cache(pool: WorkerPool, model: Model) -> None:
    await get(pool, request_of(clip()))
    async with uploading(pool, clip()) as upload:
        await upload.send(0.9)
        await upload.made()
        rows = await upload.finish()
        assert upload.run.origin is Origin.CACHED
    np.testing.assert_array_equal(rows, expected(model, clip()))
    assert pool.counters.early_counts == {EarlyEnd.UNUSED.value: 1}


async def test_rows_that_were_made_early_are_cached_and_joined(pool: WorkerPool, model: Model) -> None:
    async with uploading(pool, clip()) as upload:
        await upload.send(0.9)
        await upload.made()
        rows, joined = await asyncio.gather(upload.finish(), get(pool, request_of(clip())))
    np.testing.assert_array_equal(rows, joined[2])
    assert (await get(pool, request_of(clip())))[0] is Origin.CACHED
    np.testing.assert_array_equal(rows, expected(model, clip()))


async def test_a_part_is_stopped_for_a_task_that_waits_for_its_worker(pool: WorkerPool, model: Model) -> None:
    async with uploading(pool, HALVES) as upload:
        await begin_part(pool, upload)
        await get(pool, request_of(PHOTO))  # begins before anything that the part's worker says is read
        assert upload.early.row_count == 0
        rows = await upload.finish()
    np.testing.assert_array_equal(rows, expected(model, HALVES))


async def test_rows_give_way_to_a_task_that_waits_for_memory(pool: WorkerPool, model: Model) -> None:
    async with uploading(pool, clip()) as upload:
        await upload.send(0.9)
        await upload.made()
        await eventually(lambda: not pool.running_count)
        with without_memory(pool):
            other = asyncio.create_task(get(pool, request_of(PHOTO)))
            await eventually(lambda: not pool.early_works)
        await other
        assert pool.counters.early_counts == {EarlyEnd.GAVE_WAY.value: 1}
        rows = await upload.finish()
        assert upload.run.early_row_count == 0
    np.testing.assert_array_equal(rows, expected(model, clip()))


async def test_nothing_is_begun_while_others_wait(pool: WorkerPool, model: Model) -> None:
    with without_memory(pool):
        other = asyncio.create_task(get(pool, request_of(PHOTO)))
        await eventually(lambda: pool.queued_count == 1)
        async with uploading(pool, clip()) as upload:
            await upload.send(0.9)
            await asyncio.sleep(0.1)
            assert not pool.running_count
    await other
    assert not pool.counters.early_counts


async def test_a_worker_that_is_killed_costs_nothing_but_its_part(pool: WorkerPool, model: Model) -> None:
    async with uploading(pool, HALVES) as upload:
        await begin_part(pool, upload)
        task = upload.early._task
        assert task is not None and task._worker is not None
        task._worker.kill()
        await eventually(lambda: upload.early._task is None)
        rows = await upload.finish()
    np.testing.assert_array_equal(rows, expected(model, HALVES))


async def test_a_storm_of_uploads(model: Model) -> None:
    """Slow, fast, broken off, damaged, repeated, with little memory and few workers: rows are right, and nothing is left."""
    chance = random.Random(7)
    media = [clip(), clip(fps=7.0), HALVES, clip(PLAIN), clip(damaged(IN_FRONT, 100), fps=15.0)]
    outcomes = [await outcome_of(asyncio.to_thread(expected, model, medium)) for medium in media]

    async def one(pool: WorkerPool, number: int) -> None:
        index = number % len(media)
        is_left = chance.random() < 0.3
        async with uploading(pool, media[index], cache_salt=str(chance.randrange(12))) as upload:
            share = 0.0
            while share < 0.95:
                share = min(0.95, share + chance.random() / 2)
                await upload.send(share)
                await asyncio.sleep(chance.random() / 20)
            if is_left:
                return
            assert_same(await outcome_of(upload.finish()), outcomes[index])

    async with open_pool(model=model, cache_bytes=16 * MIB, memory_budget_bytes=160 * MIB, worker_count=2) as pool:
        await asyncio.gather(*(one(pool, number) for number in range(24)))
        await assert_nothing_left(pool)


async def begin_part(pool: WorkerPool, upload: Upload) -> None:
    """Have a worker begin the first half of `HALVES`, without waiting for anything that it says."""
    await upload.send(0.26)
    await eventually(lambda: upload.early in pool.early_works and not pool.running_count)
    with without_memory(pool):
        await upload.send(0.7)
    assert pool.running_count == 0
    upload.resources.note_arrival()
    assert pool.running_count == 1
