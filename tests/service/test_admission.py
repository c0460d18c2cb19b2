"""Admission: what a fully used service does with another request, and that completed requests release everything."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest

from engine_client.testing import FakeEngine
from preprocessor.client import CallFailed
from preprocessor.errors import LimitExceeded, WorkerLost
from preprocessor.models.family import Model
from preprocessor.service.status import status_of
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.workers.task import SHORT_SECONDS, Task
from tests.media import moving_shapes_clip, photo, repeated_clip
from tests.service.conftest import Caller, chat, image, salted, serving, video
from tests.waiting import eventually

MIB = 1 << 20
CLIP = moving_shapes_clip(seconds=4, width=374, height=374)
LONG_CLIP = moving_shapes_clip(seconds=60, width=160, height=120)
GROUPED_CLIP = repeated_clip(moving_shapes_clip(seconds=5, width=374, height=374, options=(("g", "30"),)), 8)


def is_idle(caller: Caller) -> bool:
    pool = caller.server.pool
    return (pool.pending_count, pool.queued_count, pool.running_count, pool.used_bytes) == (0, 0, 0, 0)


async def test_a_request_larger_than_the_budget_is_refused_with_a_reason_of_its_own(model: Model) -> None:
    async with serving(model, memory_budget_bytes=64 * MIB) as caller:
        whole = chat(video("clip", LONG_CLIP, sampling=pb.Sampling(every_frame=pb.EveryFrame())))
        failed = await caller.refusal(whole)
        assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MEMORY_BUDGET_EXCEEDED")
        assert failed.retry_after_seconds is None
        await eventually(lambda: is_idle(caller))


async def test_a_file_that_does_not_fit_the_memory_is_refused_with_retry_info(model: Model) -> None:
    async with serving(model, memory_budget_bytes=64 * MIB) as caller:
        failed = await caller.refusal(chat(video("clip")), {"clip": bytes(17 * MIB)})
        assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MEMORY_BUDGET_FULL")
        assert failed.retry_after_seconds == 1.0
        await eventually(lambda: is_idle(caller))


async def test_requests_that_do_not_fit_the_memory_together_run_one_after_another(model: Model) -> None:
    spec = chat(video("clip", CLIP, sampling=pb.Sampling(fps=8)))
    async with serving(model, memory_budget_bytes=80 * MIB) as caller:
        expected = (await caller.prepare(spec)).tensors["pixel_patches"]
        assert 2 * expected.nbytes + 2 * 20 * MIB > caller.server.pool.rows.size_bytes
        for result in await asyncio.gather(*(caller.prepare(salted(spec, number)) for number in range(6))):
            assert np.array_equal(result.tensors["pixel_patches"], expected)
        await eventually(lambda: is_idle(caller))


async def test_a_caller_that_does_not_read_blocks_no_other_caller(model: Model) -> None:
    async with serving(model, worker_count=1) as caller:
        slow = caller.stub.Prepare(iter([pb.PrepareRequest(spec=chat(video("clip", CLIP)))]))
        await anext(aiter(slow))
        await caller.prepare(chat(image("photo", photo(50, 50)), video("clip", CLIP)))
        slow.cancel()
        await eventually(lambda: is_idle(caller))


async def test_the_memory_of_pixels_is_free_while_the_engine_answers(model: Model) -> None:
    go_on = asyncio.Event()

    class Slow(FakeEngine):
        async def generate(self, *arguments: object, **options: object):  # type: ignore[no-untyped-def]
            async for step in super().generate(*arguments, **options):  # type: ignore[arg-type]
                yield step
                await go_on.wait()

    async with serving(model, Slow(token_ids=(11, 12, 13))) as caller:
        answer = asyncio.create_task(caller.generate(chat(video("clip", CLIP)), max_tokens=3))
        await eventually(lambda: caller.server.pool.running_count > 0)
        await eventually(lambda: is_idle(caller))
        assert not answer.done()
        go_on.set()
        assert (await answer)[-1].completion.completion_token_count == 3


async def test_photos_overtake_a_queue_of_long_videos(model: Model) -> None:
    long = chat(video("clip", moving_shapes_clip(), sampling=pb.Sampling(every_frame=pb.EveryFrame())))
    async with serving(model, worker_count=1) as caller:
        pool = caller.server.pool
        videos = [asyncio.create_task(caller.prepare(salted(long, number))) for number in range(3)]
        await eventually(lambda: pool.running_count > 0 and pool.queued_count == 2)
        for _ in range(3):
            await caller.prepare(chat(image("photo", photo(100, 80))))
        assert pool.queued_count > 0, f"the videos have ended; each must take more than {SHORT_SECONDS} s"
        results = await asyncio.gather(*videos)
        assert len({result.tensors["pixel_patches"].tobytes() for result in results}) == 1


async def test_one_clip_on_an_idle_service_is_cut_into_parts_for_its_workers(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocessor.workers.pool.MOST_THREADS", 1)
    spec = chat(video("clip", GROUPED_CLIP, sampling=pb.Sampling(fps=8)))
    async with serving(model, worker_count=2) as caller, serving(model, worker_count=1) as single:
        pool, running = caller.server.pool, set()
        begin = pool._begin

        def watched(task: Task) -> None:
            begin(task)
            running.add(pool.running_count)

        pool._begin = watched  # type: ignore[method-assign]
        divided, whole = await caller.prepare(spec), await single.prepare(spec)
        assert max(running) == 2
        assert np.array_equal(divided.tensors["pixel_patches"], whole.tensors["pixel_patches"])


async def test_a_damaged_clip_fails_the_same_way_split_or_whole(model: Model) -> None:
    third = len(GROUPED_CLIP) // 3
    spoilt = GROUPED_CLIP[:third] + bytes(4000) + GROUPED_CLIP[third + 4000 :]
    spec = chat(video("clip", spoilt, sampling=pb.Sampling(fps=8)))
    async with serving(model, worker_count=2) as caller, serving(model, worker_count=1) as single:
        failures = []
        for one in (caller, single):
            with pytest.raises(CallFailed) as caught:
                await one.prepare(spec)
            failures.append((caught.value.reason, caught.value.message))
        assert failures[0] == failures[1]
        assert failures[0][0] == "UNDECODABLE_FRAME"
        await eventually(lambda: is_idle(caller))


def test_worker_lost_has_no_status_that_gateways_retry() -> None:
    assert status_of(WorkerLost("two died"))[:2] == (grpc.StatusCode.INTERNAL, "WORKER_LOST")
    assert status_of(LimitExceeded("x", reason="CPU_SECONDS_EXCEEDED"))[0] is grpc.StatusCode.INVALID_ARGUMENT
