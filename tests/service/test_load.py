"""The load ratio for autoscaling, counts of frames, and limits on label values."""

from __future__ import annotations

import asyncio
import math

import pytest

from preprocessor.models.family import Model
from preprocessor.pipeline.cost import estimate
from preprocessor.service.metrics import MAX_REASON_COUNT, STAGES, Metrics
from preprocessor.types.timing import Timings
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.workers.task import Task
from tests.media import moving_shapes_clip, repeated_clip
from tests.service.conftest import chat, salted, serving, video
from tests.waiting import eventually

CLIP = repeated_clip(moving_shapes_clip(seconds=5, options=(("g", "30"),)), 4)


def whole(**sampling: object) -> pb.PrepareSpec:
    return chat(video("clip", CLIP, sampling=pb.Sampling(**sampling)))  # type: ignore[arg-type]


async def test_the_load_ratio_is_expected_core_seconds_per_core(model: Model) -> None:
    async with serving(model, worker_count=1) as caller:
        pool = caller.server.pool
        assert (await caller.samples())[("preprocessor_load_ratio",)] == 0
        spec = whole(every_frame=pb.EveryFrame())
        calls = [asyncio.create_task(caller.prepare(salted(spec, number))) for number in range(3)]
        await eventually(lambda: pool.queued_count > 0 and pool.running_count > 0)
        samples = await caller.samples(under_way=True)
        waiting = [entry for queue in pool._queues.values() for entry in queue._heap]
        expected_seconds = sum(entry[2] for entry in waiting) + sum(work.cpu_seconds for work in pool._running)
        assert samples[("preprocessor_load_ratio",)] > 0
        assert pool.expected_seconds == pytest.approx(expected_seconds)
        for call in calls:
            await call
        assert (await caller.samples())[("preprocessor_load_ratio",)] == 0


async def test_a_clip_split_over_workers_counts_no_more_load_than_a_whole_one(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preprocessor.workers.pool.MOST_THREADS", 1)
    async with serving(model, worker_count=2) as caller:
        pool = caller.server.pool
        seen: list[tuple[int, float, float]] = []
        begin = pool._begin

        def watched(task: Task) -> None:
            begin(task)
            parts = [one for one in pool._running if one.tensor is not None]
            if len(parts) > 1:
                payload = parts[0].payload
                whole_seconds = estimate(payload.plan, payload.media).cpu_seconds  # type: ignore[union-attr]
                seen.append((len(parts), sum(part.cpu_seconds for part in parts), whole_seconds))

        pool._begin = watched  # type: ignore[method-assign]
        await caller.prepare(whole(every_frame=pb.EveryFrame()))
    assert seen
    for _, of_parts, of_the_whole in seen:
        assert of_parts == pytest.approx(of_the_whole)


async def test_frames_are_counted_as_used_decoded_or_skipped(model: Model) -> None:
    async with serving(model) as caller:
        await caller.prepare(whole(fps=1))
        samples = await caller.samples()
    used, decoded, skipped = (
        samples[(f"preprocessor_frames_{kind}_total",)] for kind in ("used", "decoded", "skipped")
    )
    assert used == 20
    assert decoded + skipped == 600
    assert used < decoded < 600, "reference frames are decoded too, the others are not"


async def test_abandoned_tasks_are_counted_by_state(model: Model) -> None:
    async with serving(model, worker_count=1) as caller:
        pool = caller.server.pool
        running = [caller.stub.Prepare() for _ in range(3)]
        for number, call in enumerate(running):
            await call.write(pb.PrepareRequest(spec=salted(whole(every_frame=pb.EveryFrame()), number)))
            await call.done_writing()
        await eventually(lambda: pool.queued_count > 0 and pool.running_count > 0)
        for call in running:
            call.cancel()
        await eventually(lambda: pool.running_count == pool.queued_count == pool.pending_count == 0)
        samples = await caller.samples()
    states = {state: samples["preprocessor_abandoned_work_total", state] for state in ("queued", "running")}
    assert states["queued"] + states["running"] >= 2
    assert samples["preprocessor_requests_total", "CANCELLED", "Prepare"] == 3


def test_labels_stay_bounded_whatever_a_worker_reports() -> None:
    metrics, timings = Metrics(), Timings()
    for number in range(1000):
        timings.add(f"stage-{number}", 1.0)
        metrics.end_call("Prepare", "INTERNAL", f"REASON_{number}", 0.1, Timings())
    timings.add("decode", math.nan, math.inf)
    metrics.end_call("Prepare", "OK", "", 0.1, timings)
    families = {family.name: family for family in metrics.registry.collect()}
    stages = {sample.labels["stage"] for sample in families["preprocessor_stage_duration_seconds"].samples}
    assert stages == {*STAGES, "other"}
    reasons = {sample.labels["reason"] for sample in families["preprocessor_errors"].samples}
    assert len(reasons) == MAX_REASON_COUNT + 1
    assert "other" in reasons
    total = metrics.registry.get_sample_value("preprocessor_stage_duration_seconds_sum", {"stage": "decode"})
    assert total == 0, "a sum never recovers from a NaN"
