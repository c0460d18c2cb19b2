"""Which rows are reported as finished, and when: the first at once, then in whole messages, and the rest by the task's end."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.models.family import Model
from preprocessor.types.plan import Plan
from preprocessor.types.request import ChatPrompt, Media, MediaPart, Message, Modality, PreparationRequest, Sampling
from preprocessor.types.timing import Timings
from preprocessor.wire.tensors import MAX_ROWS_BYTES
from preprocessor.workers.arena import Arena
from preprocessor.workers.payloads import PixelPayload
from preprocessor.workers.pixel_run import FlightRun
from preprocessor.workers.pool import PoolSettings, WorkerPool
from preprocessor.workers.resources import RequestResources
from preprocessor.workers.upload_buffer import UploadBuffer
from tests.fork_servers import fork_server_of
from tests.media import moving_shapes_clip
from tests.plans import pixels_of
from tests.waiting import PATIENCE_SECONDS

MIB = 1 << 20


@pytest.fixture(scope="module")
def request_of_a_clip(model: Model) -> PreparationRequest:
    """19 MB of rows and a keyframe a second: several messages, and worth cutting into parts."""
    data = moving_shapes_clip(seconds=8, width=512, height=384, options=(("g", "30"),))
    medium = Media("clip", Modality.VIDEO, data, sampling=Sampling(fps=4))
    return PreparationRequest(ChatPrompt((Message("user", (MediaPart("clip"),)),)), (medium,))


def test_the_first_rows_are_reported_at_once_then_whole_messages_and_the_last_rows_are_not(
    model: Model, request_of_a_clip: PreparationRequest
) -> None:
    plan = pipeline.plan(model, request_of_a_clip, Limits())
    assert isinstance(plan, Plan)
    arena = Arena.create(64 * MIB)
    reported: list[tuple[int, int]] = []

    PixelPayload(request_of_a_clip.media, pixels_of(plan), 0, range(pixels_of(plan).row_count)).run(
        model, arena, lambda: None, lambda first_row, row_count: reported.append((first_row, row_count))
    )

    rows_a_message = MAX_ROWS_BYTES // pixels_of(plan).feature_count
    assert len(reported) >= 3
    assert reported[0][0] == 0
    assert [first for first, _ in reported[1:]] == [first + count for first, count in reported[:-1]]
    assert reported[0][1] == pixels_of(plan).items[0].rows.group_rows
    assert all(count % rows_a_message < 2 and count >= rows_a_message for _, count in reported[1:])
    assert sum(reported[-1]) < pixels_of(plan).row_count


@pytest.mark.parametrize("worker_count", [1, 4])
async def test_rows_are_reported_in_order_and_are_final(
    model: Model, request_of_a_clip: PreparationRequest, worker_count: int
) -> None:
    expected = pipeline.prepare(model, request_of_a_clip).tensors["pixel_patches"]
    settings = PoolSettings(
        worker_count=worker_count,
        max_queued_count=10,
        memory_budget_bytes=512 * MIB,
        worker_memory_bytes=2048 * MIB,
        max_cpu_seconds=60.0,
        max_jobs_a_worker=100,
        is_in_process=False,
    )
    pool = WorkerPool(model, settings, fork_server=await fork_server_of(model))
    await pool.start()
    try:
        async with RequestResources(pool, time.monotonic() + PATIENCE_SECONDS, Timings()) as resources:
            file = UploadBuffer(resources)
            await file.write(request_of_a_clip.media[0].data)
            media = (dataclasses.replace(request_of_a_clip.media[0], data=await file.finish()),)
            plan = await resources.plan(dataclasses.replace(request_of_a_clip, media=media), Limits())
            assert isinstance(plan, Plan)
            run = resources.pixels(media, pixels_of(plan))
            assert isinstance(run, FlightRun)
            array, next_row = await run.begun(), 0
            async for first_row, row_count in run.finished_rows():
                assert first_row == next_row
                next_row += row_count
                np.testing.assert_array_equal(array[first_row:next_row], expected[first_row:next_row])
            assert next_row == pixels_of(plan).row_count
            assert (len(run.tasks) > 1) == (worker_count > 1)
    finally:
        await pool.close()
