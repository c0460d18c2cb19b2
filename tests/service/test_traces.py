"""Spans of real calls, as a collector receives them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator

import grpc.aio
import psutil
import pytest
import pytest_asyncio
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from engine_client import EngineFailed
from engine_client.testing import FakeEngine
from preprocessor.config import SettingError, TraceSettings
from preprocessor.models.family import Model
from preprocessor.service import otlp, server
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import moving_shapes_clip, photo
from tests.service.collector import Collector, collecting, flush
from tests.service.conftest import Caller, chat, image, serving, video
from tests.waiting import PATIENCE_SECONDS

TRACE_ID, CALLER_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = (("traceparent", f"00-{TRACE_ID}-{CALLER_SPAN}-01"), ("tracestate", "vendor=1"))
UNSAMPLED = (("traceparent", f"00-{TRACE_ID}-{CALLER_SPAN}-00"),)
PREPARE, GENERATE = "preprocessor.v1.Preprocessor/Prepare", "preprocessor.v1.Preprocessor/Generate"
SECRET = "the-duke-of-the-prompt"


@pytest_asyncio.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as one:
        yield one


async def prepare(caller: Caller, spec: pb.PrepareSpec, metadata: tuple[tuple[str, str], ...] = SAMPLED) -> None:
    async def messages() -> AsyncIterator[pb.PrepareRequest]:
        yield pb.PrepareRequest(spec=spec)

    async for _ in caller.stub.Prepare(messages(), metadata=metadata, timeout=PATIENCE_SECONDS):
        pass


async def generate(caller: Caller, spec: pb.PrepareSpec) -> None:
    async def messages() -> AsyncIterator[pb.GenerateRequest]:
        parameters = pb.GenerationParameters(max_tokens=2)
        yield pb.GenerateRequest(spec=pb.GenerateSpec(prompt=spec, parameters=parameters))

    async for _ in caller.stub.Generate(messages(), metadata=SAMPLED, timeout=PATIENCE_SECONDS):
        pass


def clip_prompt() -> pb.PrepareSpec:
    clip = moving_shapes_clip(seconds=2, width=96, height=64)
    return chat(video("clip", clip), image("photo", photo(90, 60)), SECRET)


async def test_stage_spans_are_children_of_the_call_s_span_and_that_of_the_caller_s(
    model: Model, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One clock for all: each end of each span is otherwise put into the wall clock's terms by itself, between two readings of two
    # clocks, and a busy machine may stop a process there.
    offset = time.time_ns() - time.monotonic_ns()
    monkeypatch.setattr(otlp, "_epoch_ns", lambda seconds: offset + int(seconds * 1e9))
    monkeypatch.setattr("opentelemetry.sdk.trace.time_ns", lambda: offset + int(time.monotonic() * 1e9))
    before = time.monotonic_ns() + offset
    async with serving(model, trace=TraceSettings(collector.address)) as caller:
        await prepare(caller, clip_prompt())
        await flush(caller.server.traces)
        worker_ids = {process.pid for process in psutil.Process().children(recursive=True)}
    after = time.monotonic_ns() + offset
    [call] = collector.named(PREPARE)
    assert call.span.trace_id.hex() == TRACE_ID
    assert call.span.parent_span_id.hex() == CALLER_SPAN
    assert call.span.kind == Span.SPAN_KIND_SERVER
    assert call.attributes["rpc.grpc.status_code"] == "OK"
    assert call.resource["service.name"] == "vlm-preprocessor"
    stages = [one for one in collector.spans if one is not call]
    assert {one.span.parent_span_id for one in stages} == {call.span.span_id}
    assert {one.span.trace_id for one in collector.spans} == {call.span.trace_id}
    here, there = {"receive", "queue", "send"}, {"plan", "tokenize", "decode", "resize", "patch"}
    assert {one.span.name for one in stages} == here | there
    for one in stages:
        assert before <= call.span.start_time_unix_nano + _ROUNDING_NS
        assert call.span.start_time_unix_nano <= one.span.start_time_unix_nano + _ROUNDING_NS
        assert (
            one.span.start_time_unix_nano <= one.span.end_time_unix_nano <= call.span.end_time_unix_nano + _ROUNDING_NS
        )
        assert one.attributes["process.pid"] in ({os.getpid()} if one.span.name in here else worker_ids)
    assert call.span.end_time_unix_nano <= after + _ROUNDING_NS
    [plan], [decode] = collector.named("plan"), collector.named("decode")
    assert plan.span.end_time_unix_nano <= decode.span.start_time_unix_nano + _ROUNDING_NS


_ROUNDING_NS = 10_000  # stages tell when they began as when they ended less what they took, in floats


def test_span_times_follow_the_wall_clock() -> None:
    before, began = time.time_ns(), time.monotonic()
    told = otlp._epoch_ns(began)
    after, elapsed_ns = time.time_ns(), int((time.monotonic() - began) * 1e9)
    assert before - elapsed_ns - _ROUNDING_NS <= told <= after + _ROUNDING_NS


async def test_the_engine_gets_the_trace_with_its_own_span_as_parent(model: Model, collector: Collector) -> None:
    engine = FakeEngine([11, 12])
    async with serving(model, engine, trace=TraceSettings(collector.address)) as caller:
        await generate(caller, chat("hello"))
        await flush(caller.server.traces)
    [call], [asked] = collector.named(GENERATE), collector.named("engine")
    assert asked.span.kind == Span.SPAN_KIND_CLIENT
    assert asked.span.parent_span_id == call.span.span_id
    [along] = engine.metadata
    assert dict(along) == {"traceparent": f"00-{TRACE_ID}-{asked.span.span_id.hex()}-01", "tracestate": "vendor=1"}
    assert collector.named("first_token")
    assert not collector.named("generate"), "the engine's span shows it"


async def test_server_faults_are_span_errors_and_caller_errors_are_not(model: Model, collector: Collector) -> None:
    engine = FakeEngine(error=EngineFailed("it broke"))
    async with serving(model, engine, trace=TraceSettings(collector.address)) as caller:
        with pytest.raises(grpc.aio.AioRpcError):
            await generate(caller, chat("hello"))
        with pytest.raises(grpc.aio.AioRpcError):
            await prepare(caller, chat(image("photo", b"x")))
        await flush(caller.server.traces)
    [broken], [wrong] = collector.named(GENERATE), collector.named(PREPARE)
    assert broken.span.status.code == Status.STATUS_CODE_ERROR
    assert broken.attributes["error.type"] == "ENGINE_FAILED"
    assert wrong.span.status.code == Status.STATUS_CODE_UNSET
    assert (wrong.attributes["error.type"], wrong.attributes["rpc.grpc.status_code"]) == (
        "NOT_MEDIA",
        "INVALID_ARGUMENT",
    )


async def test_the_caller_s_sampling_decision_has_priority_over_the_sample_ratio(
    model: Model, collector: Collector
) -> None:
    async with serving(model, trace=TraceSettings(collector.address, sample_ratio=0.0)) as caller:
        await prepare(caller, chat("no"), UNSAMPLED)
        await prepare(caller, chat("no"), ())
        await prepare(caller, chat("yes"), SAMPLED)
        await flush(caller.server.traces)
    assert len(collector.named(PREPARE)) == 1


async def test_no_span_contains_request_content(model: Model, collector: Collector) -> None:
    async with serving(model, FakeEngine([11]), trace=TraceSettings(collector.address)) as caller:
        await generate(caller, clip_prompt())
        await flush(caller.server.traces)
    assert collector.named(GENERATE)
    assert not [one.span for one in collector.spans if SECRET in str(one.span)]


async def test_a_stop_exports_completed_spans(model: Model, collector: Collector) -> None:
    async with serving(model, trace=TraceSettings(collector.address)) as caller:
        await prepare(caller, chat("hello"))
    assert collector.named(PREPARE)


async def test_calls_succeed_if_the_collector_is_unreachable(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp, "_CLOSE_SECONDS", 0.1)
    async with serving(model, trace=TraceSettings("http://127.0.0.1:9")) as caller:  # RFC 863's port; nobody listens
        await prepare(caller, chat("hello"))
        await prepare(caller, chat("hello"))


def test_a_trace_endpoint_without_the_otel_extra_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "preprocessor.service.otlp", None)  # as an import that fails
    with pytest.raises(SettingError, match=r"--trace-endpoint.*vlm-preprocessor\[otel\]"):
        server._create_traces(TraceSettings("http://127.0.0.1:4317"))
