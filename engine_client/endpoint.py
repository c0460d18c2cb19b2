"""One engine among several: its health, its counts, and how it is probed."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from engine_client.breaker import Breaker, EndpointHealth
from engine_client.client import EngineClient, HoldsItems
from engine_client.contract.tensors import Array
from engine_client.errors import EngineError, EngineMismatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EndpointState:
    """One endpoint at one moment, for metrics and for people. Counts are since the start."""

    name: str
    health: EndpointHealth
    in_flight_count: int
    """Requests there now."""
    success_count: int
    """Whole answers."""
    failure_count: int
    """Requests that it could not answer, or not to the end."""
    rejected_count: int
    """Requests that it found wrong."""
    left_count: int
    """Requests that the caller ended early, for whatever reason, or that reached their deadline."""
    retry_count: int
    """Requests that came here after another endpoint had failed them."""
    ejection_count: int
    last_error: str
    """Of the latest failure, of a request or a probe; empty when there was none. It stays after recovery."""


class Endpoint:
    """One engine and what is known of it."""

    def __init__(self, name: str, engine: EngineClient, breaker: Breaker) -> None:
        self.name = name
        self.engine = engine
        self.breaker = breaker
        self.in_flight_count = self.success_count = self.failure_count = self.retry_count = 0
        self.rejected_count = self.left_count = 0
        self.is_mismatched = False
        """Whether its latest failure was that it takes something else than what is sent."""
        self._logged = breaker.health

    @property
    def state(self) -> EndpointState:
        return EndpointState(
            name=self.name,
            health=self.breaker.health,
            in_flight_count=self.in_flight_count,
            success_count=self.success_count,
            failure_count=self.failure_count,
            rejected_count=self.rejected_count,
            left_count=self.left_count,
            retry_count=self.retry_count,
            ejection_count=self.breaker.ejection_count,
            last_error=self.breaker.last_error,
        )

    def holds(self, item_hashes: Array) -> bool:
        """See `HoldsItems.holds`; false of an engine that cannot be asked."""
        return isinstance(self.engine, HoldsItems) and self.engine.holds(item_hashes)

    def log_health(self) -> None:
        """Log the health once when it has changed."""
        if self.breaker.health is not self._logged:
            self._logged = self.breaker.health
            level = logging.WARNING if self._logged is EndpointHealth.EJECTED else logging.INFO
            logger.log(level, "endpoint %s is %s; last error: %s", self.name, self._logged, self.breaker.last_error)

    @property
    def trouble(self) -> str:
        health = self.breaker.health.value
        if self.breaker.health is EndpointHealth.TRIAL:
            health = "one request tries it out"
        elif self.breaker.seconds_to_return:
            health = f"ejected for {self.breaker.seconds_to_return:.1f} s more"
        return f"{self.name} ({health}): {self.breaker.last_error or 'no error yet'}"

    async def probe(self, timeout_seconds: float) -> None:
        """Ask the engine whether it is ready, and record the answer."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.engine.check_ready(timeout_seconds)
            self.is_mismatched = False
            self.breaker.probe_succeeded()
        except TimeoutError:
            self.breaker.probe_failed(f"no answer to a probe in {timeout_seconds:g} s")
        except EngineError as error:
            self.is_mismatched = isinstance(error, EngineMismatch)
            self.breaker.probe_failed(str(error), is_final=self.is_mismatched)
        except Exception as error:  # a bug in one engine's client must not end the watch over the others
            logger.exception("the probe of %s broke", self.name)
            self.breaker.probe_failed(repr(error))
        self.log_health()
