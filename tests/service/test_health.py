"""Probes, metrics, health and reflection, as Kubernetes, Prometheus and grpcurl see them."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from engine_client.testing import FakeEngine
from preprocessor.models.family import Model
from preprocessor.service.metrics import METHODS
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import photo
from tests.service.conftest import Caller, chat, image, serving
from tests.service.refusals import refusal_of
from tests.waiting import PATIENCE_SECONDS, eventually

SERVICE = "preprocessor.v1.Preprocessor"


async def health_of(caller: Caller, service: str = "") -> str:
    answer = await health_pb2_grpc.HealthStub(caller.channel).Check(health_pb2.HealthCheckRequest(service=service))
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


async def test_a_running_server_is_live_and_ready(caller: Caller) -> None:
    assert (await caller.get("/livez"))[0] == 200
    assert (await caller.get("/readyz"))[0] == 200
    assert await health_of(caller) == "SERVING"
    assert await health_of(caller, SERVICE) == "SERVING"


async def test_an_engine_outage_makes_only_generate_unready(model: Model) -> None:
    async with serving(model, FakeEngine(is_available=False)) as caller:
        assert (await caller.get("/livez"))[0] == 200
        status, why = await caller.get("/readyz?method=Generate")
        assert status == 503
        assert why.startswith("engine: ")
        assert await caller.get("/readyz") == (200, f"ok, but not for Generate: {why}")
        for method in ("Prepare", "CountTokens", "GetModel"):
            assert await caller.get(f"/readyz?method={method}") == (200, "ok\n")
        served = {method: await health_of(caller, f"{SERVICE}.{method}") for method in METHODS}
        assert served == dict.fromkeys(METHODS, "SERVING") | {"Generate": "NOT_SERVING"}
        assert await health_of(caller, SERVICE) == await health_of(caller) == "SERVING"
        samples = await caller.samples()
        assert samples["preprocessor_method_ready", "Generate"] == 0
        assert samples["preprocessor_method_ready", "Prepare"] == samples[("preprocessor_ready",)] == 1


async def test_without_an_engine_all_but_generate_is_served(caller: Caller) -> None:
    assert await health_of(caller, f"{SERVICE}.Generate") == "NOT_SERVING"
    status, why = await caller.get("/readyz?method=Generate")
    assert (status, "--engine" in why) == (503, True)
    assert await caller.get("/readyz") == (200, "ok\n")


async def test_readiness_of_an_unknown_method_is_not_found(caller: Caller) -> None:
    status, why = await caller.get("/readyz?method=Complete")
    assert status == 404
    assert all(method in why for method in METHODS)


async def test_a_recovered_engine_makes_the_replica_ready_again(model: Model) -> None:
    engine = FakeEngine(is_available=False)
    async with serving(model, engine) as caller:
        engine.is_available = True
        await caller.server.health.refresh()
        assert (await caller.get("/readyz?method=Generate"))[0] == 200
        assert await health_of(caller, f"{SERVICE}.Generate") == "SERVING"


async def test_draining_makes_the_replica_unready(model: Model) -> None:
    async with serving(model) as caller:
        await caller.server.health.drain()
        assert await caller.get("/readyz") == (503, "draining\n")
        assert await health_of(caller, SERVICE) == "NOT_SERVING"


async def test_a_call_under_way_outlives_the_start_of_a_stop(model: Model) -> None:
    async with serving(model) as caller:
        call = caller.stub.Prepare()
        await call.write(pb.PrepareRequest(spec=chat(image("photo"))))
        await eventually(lambda: caller.server.metrics.in_flight.labels("Prepare")._value.get() == 1)
        stopping = asyncio.create_task(caller.server.__aexit__(None, None, None))
        await eventually(lambda: bool(caller.server.health.trouble))
        data = photo(90, 60)
        await call.write(pb.PrepareRequest(chunk=pb.MediaChunk(key="photo", data=data, last=True)))
        kinds = [response.WhichOneof("message") async for response in call]
        await stopping
    assert kinds == ["header", "rows", "report"]


async def test_metrics_count_calls_by_method_and_code(model: Model) -> None:
    async with serving(model) as caller:
        await caller.prepare(chat(image("photo", photo(90, 60))))
        with pytest.raises(Exception, match="NOT_MEDIA"):
            await caller.prepare(chat(image("photo", b"x")))
        samples = await caller.samples()
    assert samples["preprocessor_requests_total", "OK", "Prepare"] == 1
    assert samples["preprocessor_requests_total", "INVALID_ARGUMENT", "Prepare"] == 1
    assert samples["preprocessor_stage_duration_seconds_count", "decode"] == 1
    assert samples[("preprocessor_workers",)] == 2
    assert samples["preprocessor_media_total", "image"] == 1


async def test_reflection_lists_the_services_and_their_file(caller: Caller) -> None:
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    stub = reflection_pb2_grpc.ServerReflectionStub(caller.channel)
    listing, file = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]
    assert {SERVICE, "grpc.health.v1.Health"} <= {one.name for one in listing.list_services_response.service}
    described = FileDescriptorProto.FromString(file.file_descriptor_response.file_descriptor_proto[0])
    assert [method.name for method in described.service[0].method] == ["Prepare", "Generate", "CountTokens", "GetModel"]


async def test_a_stop_keeps_connections_open_until_calls_end(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocessor.service.server._FLUSH_SECONDS", 0.1)
    async with serving(model, worker_count=1, drain_seconds=40.0) as caller:
        upload = caller.stub.CountTokens(timeout=PATIENCE_SECONDS)
        await upload.write(pb.CountTokensRequest(spec=chat("What is this?", image())))
        await eventually(lambda: caller.server.metrics.open_call_count() == 1)
        retiring = asyncio.create_task(caller.server.retire())
        await eventually(lambda: caller.server.health.trouble == "draining")
        late = await refusal_of(caller.stub.GetModel(pb.GetModelRequest(), timeout=PATIENCE_SECONDS))
        assert (late.code, late.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert not retiring.done()
        await upload.write(pb.CountTokensRequest(chunk=pb.MediaChunk(key="photo", data=photo(100, 80), last=True)))
        await upload.done_writing()
        assert (await upload).token_count > 0
        await asyncio.wait_for(retiring, PATIENCE_SECONDS)


async def test_a_stop_without_calls_does_not_wait(model: Model) -> None:
    async with serving(model, worker_count=1, drain_seconds=1e6) as caller:
        await asyncio.wait_for(caller.server.retire(), PATIENCE_SECONDS)
