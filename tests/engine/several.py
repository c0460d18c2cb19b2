"""Fake engines behind `Endpoints`, and a lot that always draws the first."""

from __future__ import annotations

import random

import numpy as np

from engine_client import EndpointPolicy, Endpoints, EndpointState, EngineError, EngineRequest, SamplingParameters
from engine_client.testing import FakeEngine

CALM = EndpointPolicy(probe_period_seconds=60.0)
"""One round of probes at the start, and then none: what happens is the requests' doing."""


def request() -> EngineRequest:
    return EngineRequest("r", {"input_ids": np.array([1], np.int32)}, SamplingParameters(max_tokens=100))


def broken(error: EngineError, after_tokens: int = 0) -> FakeEngine:
    return FakeEngine([1, 2, 3], error=error, fail_at_step=after_tokens)


async def tokens(endpoints: Endpoints, timeout_seconds: float | None = None) -> list[int]:
    steps = endpoints.generate(request(), timeout_seconds=timeout_seconds)
    return [token_id async for step in steps for token_id in step.token_ids]


def by_name(endpoints: Endpoints) -> dict[str, EndpointState]:
    return {state.name: state for state in endpoints.states()}


class Ordered(random.Random):
    """Draws the first of a list, so that a test knows whom a request goes to."""

    def sample(self, population, k, *, counts=None):  # type: ignore[no-untyped-def]
        return list(population)[:k]


def in_order(policy: EndpointPolicy = CALM, /, **engines: FakeEngine) -> Endpoints:
    return Endpoints(engines, policy, chance=Ordered())
