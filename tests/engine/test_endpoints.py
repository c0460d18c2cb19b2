"""Several engines as one: who gets a request, who gets it next, and what the caller sees.

Engines are fakes here; `test_endpoints_triton.py` does the same to real ones.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
import weakref
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from engine_client import (
    EndpointPolicy,
    Endpoints,
    EngineCapabilities,
    EngineDeadlineExceeded,
    EngineError,
    EngineFailed,
    EngineOptions,
    EngineOverloaded,
    EngineRejected,
    EngineRequest,
    EngineStep,
    EngineUnavailable,
    PixelType,
    TritonEngine,
    UnknownScheme,
    connect_endpoints,
    connect_engine,
)
from engine_client.client import Metadata
from engine_client.testing import FakeEngine
from tests.engine.several import CALM, Ordered, broken, by_name, in_order, request, tokens
from tests.waiting import eventually

# -- sending again -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [EngineUnavailable("gone"), EngineFailed("broke"), EngineOverloaded("full")])
async def test_an_engine_that_fails_before_a_token_costs_the_caller_nothing(error: EngineError) -> None:
    async with in_order(a=broken(error), b=FakeEngine([5, 6])) as endpoints:
        assert await tokens(endpoints) == [5, 6]
        states = by_name(endpoints)
    assert (states["a"].failure_count, states["a"].last_error) == (1, str(error))
    assert (states["b"].success_count, states["b"].retry_count) == (1, 1)


@pytest.mark.parametrize("error", [EngineRejected("wrong"), EngineDeadlineExceeded("late")])
async def test_what_no_other_engine_would_mend_is_not_sent_again(error: EngineError) -> None:
    other = FakeEngine([5])
    async with in_order(a=broken(error), b=other) as endpoints:
        with pytest.raises(type(error), match=str(error)):
            await tokens(endpoints)
        assert by_name(endpoints)["a"].failure_count == 0
    assert other.requests == []


async def test_after_a_token_nothing_is_sent_again() -> None:
    other = FakeEngine([5])
    async with in_order(a=broken(EngineUnavailable("gone"), after_tokens=2), b=other) as endpoints:
        with pytest.raises(EngineUnavailable, match="gone") as raised:
            await tokens(endpoints)
    assert raised.value.tokens_received == 2
    assert other.requests == []


async def test_a_request_goes_to_so_many_endpoints_and_to_none_twice() -> None:
    engines = {name: broken(EngineUnavailable(f"{name} is gone")) for name in "abcde"}
    policy = EndpointPolicy(probe_period_seconds=60.0, max_attempts=3)
    async with in_order(policy, **engines) as endpoints:
        with pytest.raises(EngineUnavailable, match="c is gone"):
            await tokens(endpoints)
    assert [len(engine.requests) for engine in engines.values()] == [1, 1, 1, 0, 0]


async def test_an_outage_is_not_amplified_beyond_the_reserve_of_retries() -> None:
    # Failed by what may not eject the last, so that all stay in and every request finds an endpoint.
    engines = {name: broken(EngineOverloaded("full")) for name in "ab"}
    policy = EndpointPolicy(probe_period_seconds=60.0, retry_reserve=5)
    async with in_order(policy, **engines) as endpoints:
        for _ in range(50):
            with pytest.raises(EngineOverloaded):
                await tokens(endpoints)
    assert sum(len(engine.requests) for engine in engines.values()) == 50 + 5


async def test_no_retry_begins_when_the_callers_time_is_over() -> None:
    now = [0.0]

    class TakesItsTime(FakeEngine):
        async def generate(
            self, request: EngineRequest, *, timeout_seconds: float | None = None, metadata: Metadata = ()
        ) -> AsyncGenerator[EngineStep, None]:
            now[0] += 10.0
            raise EngineUnavailable("gone after a while")
            yield

    other = FakeEngine([5])
    engines = {"a": TakesItsTime(), "b": other}
    async with Endpoints(engines, CALM, chance=Ordered(), clock=lambda: now[0]) as endpoints:
        with pytest.raises(EngineUnavailable, match="gone after a while"):
            await tokens(endpoints, timeout_seconds=10.0)
        assert other.requests == []
        assert await tokens(endpoints, timeout_seconds=10.5) == [5]


async def test_the_next_engine_gets_what_is_left_of_the_callers_time_and_the_same_metadata() -> None:
    now, given = [0.0], []

    class Recorder(FakeEngine):
        async def generate(
            self, request: EngineRequest, *, timeout_seconds: float | None = None, metadata: Metadata = ()
        ) -> AsyncGenerator[EngineStep, None]:
            given.append((timeout_seconds, metadata))
            now[0] += 4.0
            async with aclosing(super().generate(request)) as steps:
                async for step in steps:
                    yield step

    engines = {"a": Recorder(error=EngineUnavailable("gone")), "b": Recorder([5])}
    async with Endpoints(engines, CALM, chance=Ordered(), clock=lambda: now[0]) as endpoints:
        along = (("traceparent", "00-1-2-01"),)
        async for _ in endpoints.generate(request(), timeout_seconds=10.0, metadata=along):
            pass
    assert given == [(10.0, along), (6.0, along)]


async def test_arrays_are_let_go_when_the_first_token_has_come() -> None:
    class Forgetful(FakeEngine):
        """Like a real engine, and unlike the fake, it keeps no request."""

        async def generate(
            self, request: EngineRequest, *, timeout_seconds: float | None = None, metadata: Metadata = ()
        ) -> AsyncGenerator[EngineStep, None]:
            del request
            for token_id in (1, 2):
                yield EngineStep((token_id,))

    asked = request()
    array = weakref.ref(asked.tensors["input_ids"])
    async with Endpoints({"a": Forgetful()}, CALM) as endpoints, aclosing(endpoints.generate(asked)) as steps:
        del asked
        await anext(steps)
        assert array() is None


# -- spreading ---------------------------------------------------------------------------------------------------------


class ReadsOn(FakeEngine):
    """Fails, and may go on reading the request's arrays until `read` is called."""

    async def generate(self, request: EngineRequest, **options: object) -> AsyncGenerator[EngineStep, None]:
        assert request.on_released is not None
        self.read = request.on_released
        raise EngineUnavailable("the stream broke")
        yield


async def test_arrays_are_not_let_go_while_an_engine_that_failed_may_still_read_them() -> None:
    released: list[str] = []
    a, b = ReadsOn(), ReadsOn()
    async with in_order(a=a, b=b) as endpoints:
        asked = dataclasses.replace(request(), on_released=lambda: released.append("all"))
        with pytest.raises(EngineUnavailable):
            async for _ in endpoints.generate(asked):
                pass
        assert not released, "both failed, and both may still read"
        b.read()
        assert not released
        a.read()
        assert released == ["all"]


async def test_arrays_of_a_request_that_no_engine_gets_are_let_go() -> None:
    released: list[str] = []
    async with in_order(a=FakeEngine(is_available=False)) as endpoints:
        asked = dataclasses.replace(request(), on_released=lambda: released.append("all"))
        with pytest.raises(EngineUnavailable):
            async for _ in endpoints.generate(asked):
                pass
    assert released == ["all"]


async def test_requests_in_flight_are_spread_evenly() -> None:
    gate = asyncio.Event()
    engines = {name: FakeEngine([1], gate=gate) for name in "abc"}
    async with Endpoints(engines, CALM, chance=random.Random(7)) as endpoints:
        asked = [asyncio.create_task(tokens(endpoints)) for _ in range(90)]
        await eventually(lambda: sum(state.in_flight_count for state in endpoints.states()) == 90)
        counts = [state.in_flight_count for state in endpoints.states()]
        gate.set()
        await asyncio.gather(*asked)
        assert [state.in_flight_count for state in endpoints.states()] == [0, 0, 0]
    assert max(counts) - min(counts) <= 3, counts  # one draw alone spreads wider


async def test_a_slow_engine_gets_what_it_can_take_and_the_fast_one_the_rest() -> None:
    gate = asyncio.Event()
    slow, fast = FakeEngine([1], gate=gate), FakeEngine([2])
    async with Endpoints({"slow": slow, "fast": fast}, CALM, chance=random.Random(7)) as endpoints:
        stuck = asyncio.create_task(tokens(endpoints))
        while not slow.requests:  # the first may go to either
            stuck = stuck if not stuck.done() else asyncio.create_task(tokens(endpoints))
            await asyncio.sleep(0)
        for _ in range(50):
            assert await tokens(endpoints) == [2]
        gate.set()
        assert await stuck == [1]
    assert len(slow.requests) == 1


# -- leaving and closing -----------------------------------------------------------------------------------------------


async def test_closing_the_generator_closes_the_stream_of_the_engine_that_answers() -> None:
    chosen = FakeEngine([1, 2, 3])
    async with in_order(a=broken(EngineUnavailable("gone")), b=chosen) as endpoints:
        async with aclosing(endpoints.generate(request())) as steps:
            await anext(steps)
        assert chosen.cancelled_count == 1
        assert by_name(endpoints)["b"].in_flight_count == 0


async def test_cancelling_a_waiting_caller_cancels_at_the_engine() -> None:
    chosen = FakeEngine([1], gate=asyncio.Event())
    async with in_order(a=chosen) as endpoints:
        task = asyncio.create_task(tokens(endpoints))
        await eventually(lambda: by_name(endpoints)["a"].in_flight_count == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert by_name(endpoints)["a"].in_flight_count == 0
    assert chosen.cancelled_count == 1


async def test_closing_closes_every_engine_and_leaves_no_task() -> None:
    before = asyncio.all_tasks()
    engines = {name: FakeEngine([1]) for name in "ab"}
    endpoints = Endpoints(engines)
    await endpoints.check_ready()
    assert asyncio.all_tasks() - before
    await endpoints.close()
    await endpoints.close()
    assert asyncio.all_tasks() == before
    assert all(engine.is_closed for engine in engines.values())
    for attempt in (tokens(endpoints), endpoints.check_ready(), endpoints.describe()):
        with pytest.raises(EngineUnavailable, match="closed"):
            await attempt


async def test_it_is_ready_while_one_endpoint_is_and_describes_itself_by_one_that_answers() -> None:
    down, up = FakeEngine(is_available=False), FakeEngine([1])
    async with in_order(down=down, up=up) as endpoints:
        await endpoints.check_ready()
        assert (await endpoints.describe()).model_name == "fake"
        up.is_available = False
        with pytest.raises(EngineUnavailable, match=r"unavailable.*unavailable"):
            await endpoints.check_ready()
        with pytest.raises(EngineUnavailable, match="no endpoint says what it is"):
            await endpoints.describe()


# -- making them -------------------------------------------------------------------------------------------------------


async def test_the_features_are_those_that_every_endpoint_has_that_may_get_requests() -> None:
    engines = {
        "a": FakeEngine(features=["min_p", "regex"]),
        "b": FakeEngine(features=["regex", "logprobs"]),
        "down": FakeEngine(features=["grammar"], is_available=False),
    }
    async with in_order(**engines) as endpoints:
        assert await endpoints.sampling_features() == {"regex"}
        engines["a"].is_available = False
        assert await endpoints.sampling_features() == {"regex", "logprobs"}
        engines["b"].is_available = False
        with pytest.raises(EngineUnavailable, match=r"no endpoint"):
            await endpoints.sampling_features()


def test_addresses_are_told_apart_by_commas() -> None:
    endpoints = connect_endpoints("a:8001, b:8001,[::1]:8001")
    assert [state.name for state in endpoints.states()] == ["a:8001", "b:8001", "[::1]:8001"]


@pytest.mark.parametrize("address", ["a:8001", "triton://a:8001", "dns:///a:8001", "unix:/tmp/engine"])
def test_an_address_with_no_scheme_or_tritons_is_tritons(address: str) -> None:
    assert isinstance(connect_engine(address, EngineOptions()), TritonEngine)


def test_an_address_of_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(UnknownScheme, match="tgi:// of tgi://a:8001 is unknown; known: triton://"):
        connect_engine("tgi://a:8001", EngineOptions())


def test_several_engines_take_what_each_of_them_takes() -> None:
    each = [
        EngineCapabilities(
            (PixelType.FP16, PixelType.BF16, PixelType.UINT8), takes_pieces=True, reads_shared_memory=True
        ),
        EngineCapabilities((PixelType.UINT8, PixelType.BF16), takes_pieces=True),
    ]
    endpoints = Endpoints({str(index): FakeEngine(capabilities=one) for index, one in enumerate(each)})
    assert endpoints.capabilities == EngineCapabilities((PixelType.BF16, PixelType.UINT8), takes_pieces=True)


def test_engines_without_a_common_pixel_type_are_refused() -> None:
    each = {
        kind.value: FakeEngine(capabilities=EngineCapabilities((kind,))) for kind in (PixelType.FP16, PixelType.BF16)
    }
    with pytest.raises(ValueError, match="no pixel type in common: fp16; bf16"):
        Endpoints(each)


@pytest.mark.parametrize(
    ("addresses", "complaint"), [("", "none of them empty"), ("a:1,,b:1", "none of them empty"), ("a:1,a:1", "once")]
)
def test_addresses_that_name_no_engine_or_one_twice_are_refused(addresses: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        connect_endpoints(addresses)


def test_no_endpoints_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one endpoint"):
        Endpoints({})
