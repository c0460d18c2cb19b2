"""The metrics of each engine endpoint, scraped as by Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import grpc
import pytest

from engine_client import (
    EndpointPolicy,
    Endpoints,
    EngineClient,
    EngineError,
    EngineFailed,
    EngineRejected,
    EngineUnavailable,
)
from engine_client.testing import FakeEngine
from preprocessor.client import CallFailed
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.engine.several import CALM, Ordered
from tests.service.conftest import Caller, chat, serving
from tests.waiting import eventually

HELLO = chat("hello")
ENGINE = "preprocessor_engine_"


def several(policy: EndpointPolicy = CALM, **engines: EngineClient) -> Endpoints:
    return Endpoints(engines, policy, chance=Ordered())


async def requests(caller: Caller) -> Mapping[tuple[str, ...], float]:
    """Requests by endpoint and outcome, without zeros."""
    samples = await caller.samples()
    return {key[1:]: value for key, value in samples.items() if key[0] == ENGINE + "requests_total" and value}


async def test_a_retried_request_is_counted_at_both_endpoints(model: Model) -> None:
    broken = FakeEngine(error=EngineUnavailable("gone"))
    async with serving(model, several(a=broken, b=FakeEngine([1, 2]))) as caller:
        await caller.generate(HELLO)
        assert await requests(caller) == {("a", "failed"): 1, ("b", "answered"): 1}
        samples = await caller.samples()
    assert (samples[ENGINE + "retries_total", "a"], samples[ENGINE + "retries_total", "b"]) == (0, 1)


@pytest.mark.parametrize(
    ("error", "outcome"), [(EngineRejected("too long"), "rejected"), (EngineFailed("broke"), "failed")]
)
async def test_rejected_and_failed_requests_are_counted_separately(
    model: Model, error: EngineError, outcome: str
) -> None:
    async with serving(model, several(a=FakeEngine(error=error))) as caller:
        with pytest.raises(CallFailed):
            await caller.generate(HELLO)
        assert await requests(caller) == {("a", outcome): 1}


async def test_a_request_is_in_flight_until_its_caller_leaves(model: Model) -> None:
    endpoints = several(a=FakeEngine([1, 2], gate=asyncio.Event()))
    async with serving(model, endpoints) as caller:
        call = caller.stub.Generate(iter([pb.GenerateRequest(spec=pb.GenerateSpec(prompt=HELLO))]))
        await eventually(lambda: endpoints.states()[0].in_flight_count == 1)
        assert (await caller.samples(under_way=True))[ENGINE + "requests_in_flight", "a"] == 1
        call.cancel()
        await eventually(lambda: endpoints.states()[0].in_flight_count == 0)
        assert (await caller.samples())[ENGINE + "requests_in_flight", "a"] == 0
        assert await requests(caller) == {("a", "left"): 1}
    assert await call.code() is grpc.StatusCode.CANCELLED


async def test_an_ejected_endpoint_shows_in_metrics(model: Model) -> None:
    policy = EndpointPolicy(probe_period_seconds=60.0, max_failures=1, min_backoff_seconds=60.0, max_backoff_seconds=60)
    broken = FakeEngine(error=EngineUnavailable("gone"))
    async with serving(model, several(policy, a=broken, b=FakeEngine([1]))) as caller:
        await caller.generate(HELLO)
        samples = await caller.samples()
    standings = {key[1:]: value for key, value in samples.items() if key[0] == ENGINE + "standing"}
    assert standings == {
        ("a", "ejected"): 1,
        ("a", "trial"): 0,
        ("a", "healthy"): 0,
        ("b", "ejected"): 0,
        ("b", "trial"): 0,
        ("b", "healthy"): 1,
    }
    assert (samples[ENGINE + "ejections_total", "a"], samples[ENGINE + "ejections_total", "b"]) == (1, 0)


async def test_a_service_without_an_engine_has_no_endpoint_metrics(caller: Caller) -> None:
    counts = {f"{ENGINE}held_items_{kind}" for kind in ("total", "created")}
    assert {key[0] for key in await caller.samples() if key[0].startswith(ENGINE)} == {ENGINE + "ready", *counts}
