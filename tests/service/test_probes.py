"""Health and readiness as kubelets and load balancers see them, through all state changes of a real service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from engine_client import EngineUnavailable
from engine_client.testing import FakeEngine
from preprocessor.models.family import Model
from preprocessor.service.health import CHECK_SECONDS, SERVICE_NAME, Cause, Health, health_name
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import moving_shapes_clip
from tests.service.conftest import Caller, chat, serving, video
from tests.waiting import PATIENCE_SECONDS, eventually

READY = (200, "ok\n")


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the service check engine and memory continuously."""
    monkeypatch.setattr("preprocessor.service.health.CHECK_SECONDS", 0.05)


async def status_changes(caller: Caller, service: str) -> AsyncIterator[str]:
    """The status updates of `Watch`."""
    call = health_pb2_grpc.HealthStub(caller.channel).Watch(health_pb2.HealthCheckRequest(service=service))
    async for answer in call:
        yield health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


async def following(watches: Sequence[AsyncIterator[str]]) -> str:
    """The next update of each."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        [status] = {await anext(changes) for changes in watches}
    return status


async def test_health_watches_report_engine_outages_for_generate_and_draining_for_all(
    model: Model, brisk: None
) -> None:
    engine = FakeEngine()
    async with serving(model, engine) as caller:
        generating = [status_changes(caller, health_name("Generate"))]
        preparing = [status_changes(caller, name) for name in ("", SERVICE_NAME, health_name("Prepare"))]
        assert await following(generating) == await following(preparing) == "SERVING"
        engine.is_available = False
        assert await following(generating) == "NOT_SERVING"  # the service looks by itself
        status, why = await caller.get("/readyz?method=Generate")
        assert (status, why.startswith("engine: ")) == (503, True)
        assert (await caller.get("/livez"))[0] == 200, "an engine's outage must not restart its clients"
        engine.is_available = True
        assert await following(generating) == "SERVING"
        assert await caller.get("/readyz?method=Generate") == READY
        await caller.server.health.drain()
        assert await following([*generating, *preparing]) == "NOT_SERVING", "the outage was none of the others' news"


async def test_the_replica_is_unready_until_lost_workers_are_replaced(model: Model) -> None:
    async with serving(model, worker_count=1) as caller:
        worker_set = caller.server.pool.worker_set
        workers = [worker for lane in worker_set._workers.values() for worker in lane]
        worker_set._filling = lock = asyncio.Lock()
        async with lock:  # nobody takes their place meanwhile
            for worker in workers:
                worker.kill()
            await eventually(lambda: worker_set.count == 0)
            assert await caller.get("/readyz") == (503, "no worker process is running\n")
            assert (await caller.get("/livez"))[0] == 200
        await eventually(lambda: worker_set.is_whole)
        assert await caller.get("/readyz") == READY


async def test_a_budget_that_stays_full_makes_the_replica_unready_until_memory_is_free(
    model: Model, brisk: None
) -> None:
    """A caller that reads nothing holds the pixels of a clip, which fill the budget."""
    clip = moving_shapes_clip(seconds=4, width=160, height=120)
    spec = chat(video("clip", clip, sampling=pb.Sampling(every_frame=pb.EveryFrame())))
    async with serving(model, memory_budget_bytes=64 << 20, budget_full_seconds=0.1) as caller:
        health, pool = caller.server.health, caller.server.pool
        lease = pool.rows.lease(int(pool.rows.size_bytes * 0.96))
        assert lease is not None
        await eventually(lambda: Cause.BUDGET in health.causes)
        status, why = await caller.get("/readyz")
        assert (status, why.startswith("the memory budget has been full for")) == (503, True)
        assert (await caller.samples())["preprocessor_unready", "budget"] == 1
        lease.release()
        await eventually(lambda: not health.causes)
        assert await caller.get("/readyz") == READY
        await caller.prepare(spec)


async def test_a_briefly_full_budget_keeps_the_replica_ready(model: Model) -> None:
    now = 0.0
    async with serving(model, memory_budget_bytes=64 << 20) as caller:
        pool = caller.server.pool
        health = Health(None, pool, budget_full_seconds=10.0, clock=lambda: now)
        for seconds_later, is_full, is_ready in ((0, True, True), (9, True, True), (0.5, False, True), (9, True, True)):
            now += seconds_later
            lease = pool.rows.lease(int(pool.rows.size_bytes * 0.96)) if is_full else None
            await health.refresh()
            assert (not health.causes) is is_ready
            if lease is not None:
                lease.release()
        lease = pool.files.lease(int(pool.files.size_bytes * 0.96))
        assert lease is not None
        await health.refresh()
        now += 10
        assert list(health.causes) == [Cause.BUDGET], "files have memory of their own, which may be full by itself"
        lease.release()


async def test_readiness_reports_every_cause(model: Model) -> None:
    async with serving(model, FakeEngine(is_available=False)) as caller:
        await caller.server.health.drain()
        assert await caller.get("/readyz") == (503, "draining\n")
        status, why = await caller.get("/readyz?method=Generate")
        assert status == 503
        assert [line.partition(":")[0] for line in why.splitlines()] == ["draining", "engine"]
        samples = await caller.samples()
    causes = {cause.value: samples["preprocessor_unready", cause.value] for cause in Cause}
    assert causes == {"draining": 1, "engine": 1, "fronts": 0, "workers": 0, "budget": 0}
    assert samples[("preprocessor_ready",)] == 0


async def test_the_health_of_an_unknown_service_is_not_found(caller: Caller) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_pb2_grpc.HealthStub(caller.channel).Check(health_pb2.HealthCheckRequest(service="preprocessor"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_health_is_refreshed_more_often_than_a_kubelet_probes() -> None:
    assert CHECK_SECONDS < 10  # Kubernetes' default periodSeconds


async def test_an_engine_outage_is_logged_once(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    class Fickle(FakeEngine):
        """An engine whose error message differs each time, like one that counts the seconds to its next check."""

        asked_count = 0

        async def check_ready(self, timeout_seconds: float = 2.0) -> None:
            self.asked_count += 1
            raise EngineUnavailable(f"asked {self.asked_count} times")

    with caplog.at_level("INFO", "preprocessor.service.health"):
        async with serving(model, Fickle()) as caller:
            for _ in range(5):
                await caller.server.health.refresh()
    lines = [record.getMessage() for record in caplog.records]
    assert [line for line in lines if line.startswith("engine: ")] == ["engine: asked 1 times"]
