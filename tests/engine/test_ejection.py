"""Which of several engines take part, by what their requests and probes meet. Engines are fakes here."""

from __future__ import annotations

import asyncio

import pytest

from engine_client import (
    EndpointHealth,
    EndpointPolicy,
    EngineFailed,
    EngineMismatch,
    EngineOverloaded,
    EngineUnavailable,
)
from engine_client.testing import FakeEngine
from tests.engine.several import CALM, broken, by_name, in_order, tokens
from tests.waiting import eventually


async def test_an_endpoint_that_keeps_failing_gets_no_more_requests() -> None:
    dead = broken(EngineUnavailable("gone"))
    async with in_order(a=dead, b=FakeEngine([5])) as endpoints:
        for _ in range(10):
            assert await tokens(endpoints) == [5]
        assert by_name(endpoints)["a"].health is EndpointHealth.EJECTED
    assert len(dead.requests) == CALM.max_failures


async def test_when_none_is_left_the_caller_hears_the_trouble_of_each() -> None:
    engines = {name: broken(EngineUnavailable(f"{name} is on fire")) for name in ("one", "two")}
    async with in_order(**engines) as endpoints:
        for _ in range(CALM.max_failures):
            with pytest.raises(EngineUnavailable, match="two is on fire"):
                await tokens(endpoints)
        with pytest.raises(
            EngineUnavailable,
            match=r"no endpoint is left.*one \(ejected.*one is on fire; two \(ejected.*two is on fire",
        ):
            await tokens(endpoints)
        with pytest.raises(EngineUnavailable, match="no endpoint is left"):
            await endpoints.check_ready()
    assert all(len(engine.requests) == CALM.max_failures for engine in engines.values())


async def test_a_request_that_breaks_engines_does_not_take_out_the_last() -> None:
    engines = {name: broken(EngineFailed("this prompt breaks me")) for name in "abc"}
    async with in_order(**engines) as endpoints:
        for _ in range(20):
            with pytest.raises(EngineFailed):
                await tokens(endpoints)
        assert sorted(state.health for state in endpoints.states()) == ["ejected", "ejected", "healthy"]


async def test_a_full_engine_is_not_ejected() -> None:
    async with in_order(a=broken(EngineOverloaded("full")), b=FakeEngine([5])) as endpoints:
        for _ in range(10):
            assert await tokens(endpoints) == [5]
        assert by_name(endpoints)["a"].health is EndpointHealth.HEALTHY


async def test_an_engine_of_another_model_is_out_at_once_and_the_other_answers() -> None:
    wrong = broken(EngineMismatch("engine a", ["patch_size of the engine is 14, of this side 16"]))
    async with in_order(a=wrong, b=FakeEngine([5])) as endpoints:
        assert await tokens(endpoints) == [5]
        assert by_name(endpoints)["a"].health is EndpointHealth.EJECTED


async def test_when_every_engine_is_of_another_model_each_caller_hears_that() -> None:
    engines = {name: broken(EngineMismatch(f"engine {name}", ["patch_size is 14, not 16"])) for name in ("one", "two")}
    async with in_order(**engines) as endpoints:
        for _ in range(3):
            with pytest.raises(EngineMismatch, match="two does not fit: patch_size"):
                await tokens(endpoints)
    assert [len(engine.requests) for engine in engines.values()] == [1, 1]


async def test_one_engine_of_another_model_and_one_that_is_gone_are_unavailable() -> None:
    engines = {"one": broken(EngineMismatch("engine one", ["patch_size"])), "two": broken(EngineUnavailable("gone"))}
    async with in_order(**engines) as endpoints:
        for _ in range(CALM.max_failures + 1):
            with pytest.raises(EngineUnavailable) as raised:
                await tokens(endpoints)
    assert raised.value.reason == "ENGINE_UNAVAILABLE"


async def test_an_ejected_endpoint_returns_by_a_probe_and_a_request() -> None:
    policy = EndpointPolicy(
        probe_period_seconds=0.01, probe_timeout_seconds=1.0, min_backoff_seconds=0.02, max_backoff_seconds=0.02
    )
    one = FakeEngine([1], is_available=False)
    async with in_order(policy, one=one) as endpoints:
        with pytest.raises(EngineUnavailable):
            await endpoints.check_ready()
        await eventually(lambda: by_name(endpoints)["one"].health is EndpointHealth.EJECTED)
        one.is_available = True
        await eventually(lambda: by_name(endpoints)["one"].health is EndpointHealth.TRIAL)
        await endpoints.check_ready()
        assert await tokens(endpoints) == [1]
        assert by_name(endpoints)["one"].health is EndpointHealth.HEALTHY


async def test_an_engine_that_is_ready_and_fails_every_request_is_not_fully_back_by_probes_alone() -> None:
    policy = EndpointPolicy(
        probe_period_seconds=0.01, probe_timeout_seconds=1.0, min_backoff_seconds=0.02, max_backoff_seconds=0.02
    )
    dead = broken(EngineUnavailable("the model's process has died"))
    async with in_order(policy, dead=dead, alive=FakeEngine([5])) as endpoints:
        for _ in range(3):
            await eventually(lambda: by_name(endpoints)["dead"].health is not EndpointHealth.EJECTED)
            while by_name(endpoints)["dead"].health is not EndpointHealth.EJECTED:
                assert await tokens(endpoints) == [5]
    assert len(dead.requests) == policy.max_failures + 2  # then one on trial each time


async def test_a_probe_that_says_nothing_is_a_failed_one_and_a_broken_one_does_not_end_the_watch() -> None:
    class Mute(FakeEngine):
        async def check_ready(self, timeout_seconds: float = 1.0) -> None:
            await asyncio.Event().wait()

    class Buggy(FakeEngine):
        async def check_ready(self, timeout_seconds: float = 1.0) -> None:
            raise ZeroDivisionError("a bug")

    policy = EndpointPolicy(probe_period_seconds=0.01, probe_timeout_seconds=0.01, max_failures=2)
    async with in_order(policy, mute=Mute(), buggy=Buggy(), good=FakeEngine([5])) as endpoints:
        await tokens(endpoints)  # the first use starts the watch
        await eventually(lambda: [state.health for state in endpoints.states()[:2]] == [EndpointHealth.EJECTED] * 2)
        states = by_name(endpoints)
        await endpoints.check_ready()
    assert "no answer to a probe in 0.01 s" in states["mute"].last_error
    assert "a bug" in states["buggy"].last_error
    assert states["good"].health is EndpointHealth.HEALTHY
