"""Client-side load balancing over a headless Service, with a maximum connection age."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any

import grpc.aio
import pytest

from preprocessor.config import WireSettings
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from tests.deploy.calls import HeldUpload
from tests.deploy.names import name_server
from tests.media import photo
from tests.service.conftest import Caller, serving
from tests.waiting import PATIENCE_SECONDS

# As deploy/README.md shows it.
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": ""},
}
CALLER_OPTIONS = (
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    ("grpc.dns_min_time_between_resolutions_ms", 100),  # gRPC's own 30 s are too long for a test, not for a cluster
    ("grpc.enable_http_proxy", 0),
)


def served_count(replica: Caller) -> int:
    samples = [sample for family in replica.server.metrics.requests.collect() for sample in family.samples]
    return int(sum(sample.value for sample in samples if sample.name.endswith("_total")))


@pytest.mark.parametrize(("age_seconds", "call_count", "is_found"), [(0.5, 3000, True), (3600.0, 100, False)])
async def test_callers_find_a_new_replica_when_their_connections_reach_the_maximum_age(
    model: Model, age_seconds: float, call_count: int, is_found: bool
) -> None:
    """All replicas of a headless Service listen on one port, so here they have addresses of 127.0.0.0/8."""
    async with AsyncExitStack() as stack:
        wire = WireSettings(max_connection_age_seconds=age_seconds)
        settings: dict[str, Any] = {"is_in_process": True, "worker_count": 1, "wire": wire}
        first = await stack.enter_async_context(serving(model, **settings))
        port = first.server.address.rpartition(":")[2]
        names = await stack.enter_async_context(name_server(["127.0.0.1"]))
        target = f"dns://{names.address}/preprocessor-replicas.test:{port}"
        stub = pb_grpc.PreprocessorStub(
            await stack.enter_async_context(grpc.aio.insecure_channel(target, options=CALLER_OPTIONS))
        )
        await stub.GetModel(pb.GetModelRequest(), timeout=PATIENCE_SECONDS)
        second = await stack.enter_async_context(serving(model, address=f"127.0.0.2:{port}", **settings))
        names.hosts = ["127.0.0.1", "127.0.0.2"]
        for _ in range(call_count):
            await stub.GetModel(
                pb.GetModelRequest(), timeout=PATIENCE_SECONDS
            )  # each must succeed, whatever happens to connections
            if served_count(second) >= 10:
                break
            await asyncio.sleep(0.01)
        assert (served_count(second) >= 10) is is_found
        assert served_count(first) > 1


async def test_callers_leave_a_replica_that_says_it_is_not_serving(model: Model) -> None:
    async with AsyncExitStack() as stack:
        settings: dict[str, Any] = {"is_in_process": True, "worker_count": 1}
        first = await stack.enter_async_context(serving(model, **settings))
        port = first.server.address.rpartition(":")[2]
        second = await stack.enter_async_context(serving(model, address=f"127.0.0.2:{port}", **settings))
        names = await stack.enter_async_context(name_server(["127.0.0.1", "127.0.0.2"]))
        target = f"dns://{names.address}/preprocessor-replicas.test:{port}"
        stub = pb_grpc.PreprocessorStub(
            await stack.enter_async_context(grpc.aio.insecure_channel(target, options=CALLER_OPTIONS))
        )
        while not (served_count(first) and served_count(second)):
            await stub.GetModel(pb.GetModelRequest(), timeout=PATIENCE_SECONDS)
        await first.server.health.drain()
        streak = 0
        while streak < 10:  # the health stream tells callers; until then calls are served
            before = served_count(first)
            await stub.GetModel(pb.GetModelRequest(), timeout=PATIENCE_SECONDS)
            streak = 0 if served_count(first) > before else streak + 1
        assert served_count(second) >= 10


async def test_a_call_outlives_the_age_of_its_connection(model: Model) -> None:
    async with serving(model, worker_count=1, wire=WireSettings(max_connection_age_seconds=0.2)) as replica:
        upload = HeldUpload(replica.channel, photo(160, 120))
        await upload.begin()
        ready = grpc.ChannelConnectivity.READY
        if replica.channel.get_state() is ready:  # until the server has said that it is over
            await asyncio.wait_for(replica.channel.wait_for_state_change(ready), PATIENCE_SECONDS)
        assert await upload.finish()
