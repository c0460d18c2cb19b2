"""Several engines that take the same prompts, used as one.

    async with connect_endpoints("engine-a:8001,engine-b:8001", EngineOptions("vlm_transformers")) as engine:
        async for step in engine.generate(request, timeout_seconds=60):
            ...

Two endpoints are picked at random, and the request goes to the one with fewer requests in flight. It may be sent to another one
as long as no token has come, when the first cannot answer (`EngineUnavailable`) or broke (`EngineFailed`); never when it found
the request wrong (`EngineRejected`), never past the caller's deadline, and not when the retries of all requests together have run
out. Which endpoints take part is decided by `engine_client.breaker`, from probes in the background and from what requests met.

A target that a name service resolves to many addresses is one endpoint here, and one connection: name each engine.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import NoReturn, Self

from engine_client.breaker import Attempt, Breaker, EndpointHealth, EndpointPolicy, RetryBudget
from engine_client.capabilities import EngineCapabilities, common_capabilities
from engine_client.client import PROBE_TIMEOUT_SECONDS, EngineClient, HoldsItems, Metadata
from engine_client.contract.tensors import ITEM_HASH, Array
from engine_client.endpoint import Endpoint, EndpointState
from engine_client.errors import (
    EngineDeadlineExceeded,
    EngineError,
    EngineFailed,
    EngineMismatch,
    EngineOverloaded,
    EngineRejected,
    EngineUnavailable,
)
from engine_client.release import Release
from engine_client.shm import SharedRegion
from engine_client.types import EngineInfo, EngineRequest, EngineStep

AFFINITY_MARGIN = 2
"""An engine that holds the items may have so many requests more than twice those of the emptiest."""


class Endpoints:
    """An `EngineClient` over several; also an async context manager that closes itself and them.

    Args:
        engines: By a name for people and metrics, such as the address. They are closed along with this.
        policy: Limits and periods.
        chance: Random numbers for endpoints and jitter; seed it for a repeatable run.
        clock: Seconds that only ever grow.
    Raises:
        ValueError: there are no engines, or they have no pixel type in common.
    """

    def __init__(
        self,
        engines: Mapping[str, EngineClient],
        policy: EndpointPolicy | None = None,
        *,
        chance: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not engines:
            raise ValueError("engines is empty; give at least one endpoint")
        self._capabilities = common_capabilities([engine.capabilities for engine in engines.values()])
        self._policy = policy or EndpointPolicy()
        self._chance = chance or random.Random()
        self._clock = clock
        self._endpoints = tuple(
            Endpoint(name, engine, Breaker(self._policy, clock, self._chance)) for name, engine in engines.items()
        )
        self._budget = RetryBudget(self._policy)
        self._watch: asyncio.Task[None] | None = None
        self._probed_at = -math.inf
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def states(self) -> tuple[EndpointState, ...]:
        """Every endpoint as it is now, in the order given."""
        return tuple(endpoint.state for endpoint in self._endpoints)

    @property
    def capabilities(self) -> EngineCapabilities:
        """What every one of the engines takes."""
        return self._capabilities

    def share(self, region: SharedRegion, *, is_required: bool = False) -> None:
        """See `EngineClient.share`."""
        for endpoint in self._endpoints:
            endpoint.engine.share(region, is_required=is_required)

    def holds(self, item_hashes: Array) -> bool:
        """See `HoldsItems.holds`: whether one of those that may get requests does, and all can be asked."""
        engines = [endpoint.engine for endpoint in self._endpoints]
        return all(isinstance(engine, HoldsItems) for engine in engines) and any(
            endpoint.breaker.is_open and endpoint.holds(item_hashes) for endpoint in self._endpoints
        )

    async def generate(
        self, request: EngineRequest, *, timeout_seconds: float | None = None, metadata: Metadata = ()
    ) -> AsyncGenerator[EngineStep, None]:
        """See `EngineClient.generate`. What goes wrong after a token has come is the caller's to repeat."""
        deadline = None if timeout_seconds is None else self._clock() + timeout_seconds
        tried: list[Endpoint] = []
        # Held once more than by the engines asked: one that fails lets go of the arrays, and the next still needs them.
        release = Release(request.on_released)
        let_go = release.hold()
        repeatable: EngineRequest | None = request
        try:
            self._start_watching()
            hashes = None if request.pixels_on_demand is None else request.tensors[ITEM_HASH]
            endpoint = self._choose(tried, hashes) or self._raise_none_left()
            del request
            while True:
                tried.append(endpoint)
                has_answered = False
                seconds_left = None if deadline is None else max(0.0, deadline - self._clock())
                assert repeatable is not None, "nothing is repeated after the first token"
                asked = dataclasses.replace(repeatable, on_released=release.hold())
                if len(tried) >= min(self._policy.max_attempts, len(self._endpoints)):
                    repeatable = None  # nobody else could be asked
                    let_go()
                answer = self._attempt(endpoint, asked, seconds_left, metadata)
                del asked
                try:
                    async with aclosing(answer) as steps:
                        async for step in steps:
                            has_answered = True
                            repeatable = None
                            let_go()
                            yield step
                    return
                except (EngineUnavailable, EngineFailed) as error:
                    is_too_late = deadline is not None and self._clock() >= deadline
                    if has_answered or is_too_late or self._is_closed:
                        raise
                    endpoint = self._choose_after(error, tried)
        finally:
            let_go()

    async def check_ready(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> None:
        """Probe every endpoint whose back-off is over, all at once, and return if one at least would take a prompt.

        Raises:
            EngineUnavailable: none would; it says why of each. EngineMismatch, where that is why of all.
        """
        self._start_watching()
        await self._probe_all(timeout_seconds)
        if not any(endpoint.breaker.is_ready for endpoint in self._endpoints):
            self._raise_none_left()

    async def describe(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> EngineInfo:
        """What the first endpoint that says so is; those that may get requests are asked first."""
        self._start_watching()
        by_health = sorted(self._endpoints, key=lambda endpoint: not endpoint.breaker.is_open)
        errors: list[EngineError] = []
        for endpoint in by_health:
            try:
                return await endpoint.engine.describe(timeout_seconds)
            except EngineError as error:
                errors.append(error)
        raise EngineUnavailable(f"no endpoint says what it is: {'; '.join(map(str, errors))}") from errors[-1]

    async def sampling_features(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> frozenset[str]:
        """What all have that may get requests and say so: any of them may get the next request."""
        self._start_watching()
        asked = [endpoint for endpoint in self._endpoints if endpoint.breaker.is_open] or self._raise_none_left()
        told = await asyncio.gather(
            *(endpoint.engine.sampling_features(timeout_seconds) for endpoint in asked), return_exceptions=True
        )
        features = [one for one in told if not isinstance(one, BaseException)]
        errors = [one for one in told if isinstance(one, BaseException)]
        for error in errors:
            if not isinstance(error, EngineError):
                raise error
        if not features:
            raise EngineUnavailable(f"no endpoint says what it takes: {'; '.join(map(str, errors))}") from errors[-1]
        return frozenset.intersection(*features)

    async def close(self) -> None:
        """See `EngineClient.close`."""
        self._is_closed = True
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await asyncio.gather(*(endpoint.engine.close() for endpoint in self._endpoints))

    # -- sending -------------------------------------------------------------------------------------------------------

    async def _attempt(
        self, endpoint: Endpoint, request: EngineRequest, timeout_seconds: float | None, metadata: Metadata
    ) -> AsyncGenerator[EngineStep, None]:
        """Send the request to this endpoint, and keep account of what becomes of it."""
        breaker = endpoint.breaker
        attempt = breaker.begin()
        endpoint.in_flight_count += 1
        try:
            answer = endpoint.engine.generate(request, timeout_seconds=timeout_seconds, metadata=metadata)
            del request
            async with aclosing(answer) as steps:
                async for step in steps:
                    breaker.saw_step(attempt)
                    yield step
            breaker.completed(attempt)
            endpoint.success_count += 1
            self._budget.earn()
        except (EngineUnavailable, EngineFailed) as error:
            endpoint.failure_count += 1
            self._note_failure(endpoint, attempt, error)
            raise
        except EngineRejected:
            endpoint.rejected_count += 1
            raise
        except EngineDeadlineExceeded as error:
            endpoint.left_count += 1
            breaker.abandoned(attempt, str(error))
            raise
        except (asyncio.CancelledError, GeneratorExit):
            endpoint.left_count += 1
            breaker.abandoned(attempt, "the caller left without an answer")
            raise
        finally:
            endpoint.in_flight_count -= 1
            breaker.released(attempt)
            endpoint.log_health()

    def _note_failure(self, endpoint: Endpoint, attempt: Attempt, error: EngineError) -> None:
        if isinstance(error, EngineOverloaded):
            endpoint.breaker.refused(str(error))
            return
        # The request itself may be what breaks engines; it must not eject the last healthy one.
        others = (other for other in self._endpoints if other is not endpoint)
        may_eject = not isinstance(error, EngineFailed) or any(
            o.breaker.health is EndpointHealth.HEALTHY for o in others
        )
        endpoint.is_mismatched = isinstance(error, EngineMismatch)
        endpoint.breaker.failed(attempt, str(error), is_final=endpoint.is_mismatched, may_eject=may_eject)

    def _choose(self, tried: Collection[Endpoint], item_hashes: Array | None = None) -> Endpoint | None:
        """The emptier of two drawn by lot; None where all were tried or are out.

        Where items are given, it is one that holds them, unless all of those have far more requests than the emptiest.
        Then another one gets the pixels, and holds them from then on: an item that many ask for is soon held by many.

        Two suffice to keep the fullest far below that of one draw, and unlike "the emptiest of all" they do not send
        every client to the endpoint that has just come back (M. Mitzenmacher, The Power of Two Choices, 2001).
        """
        open_ones = [endpoint for endpoint in self._endpoints if endpoint.breaker.is_open and endpoint not in tried]
        if not open_ones:
            return None
        if item_hashes is not None:
            most = 2 * min(endpoint.in_flight_count for endpoint in open_ones) + AFFINITY_MARGIN
            open_ones = [
                one for one in open_ones if one.in_flight_count <= most and one.holds(item_hashes)
            ] or open_ones
        drawn = self._chance.sample(open_ones, min(2, len(open_ones)))
        return min(drawn, key=lambda endpoint: endpoint.in_flight_count)

    def _choose_after(self, error: EngineError, tried: Collection[Endpoint]) -> Endpoint:
        """Where to send the request after that; raises where it is not to be sent again."""
        if len(tried) >= self._policy.max_attempts:
            raise error
        endpoint = self._choose(tried)
        if endpoint is None and type(error) is EngineUnavailable:
            self._raise_none_left(error)
        if endpoint is None or not self._budget.spend():
            raise error
        endpoint.retry_count += 1
        return endpoint

    def _raise_none_left(self, cause: EngineError | None = None) -> NoReturn:
        troubles = [endpoint.trouble for endpoint in self._endpoints]
        if all(endpoint.is_mismatched for endpoint in self._endpoints):
            raise EngineMismatch("what is sent from here", troubles) from cause
        raise EngineUnavailable(f"no endpoint is left for this request: {'; '.join(troubles)}") from cause

    # -- probing -------------------------------------------------------------------------------------------------------

    def _start_watching(self) -> None:
        """On first use, because the task belongs to the event loop that is running then."""
        if self._is_closed:
            raise EngineUnavailable("the endpoints are closed")
        if self._watch is None:
            self._watch = asyncio.create_task(self._keep_watch(), name="engine endpoints' probes")

    async def _keep_watch(self) -> None:
        while True:
            if self._clock() - self._probed_at >= self._policy.probe_period_seconds:
                await self._probe_all(self._policy.probe_timeout_seconds)
            await asyncio.sleep(self._policy.probe_period_seconds)

    async def _probe_all(self, timeout_seconds: float) -> None:
        self._probed_at = self._clock()
        asked = [endpoint for endpoint in self._endpoints if endpoint.breaker.needs_probe]
        await asyncio.gather(*(endpoint.probe(timeout_seconds) for endpoint in asked))
