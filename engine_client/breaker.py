"""Whether one endpoint should get requests, from what its requests and probes have shown. No I/O, no clock of its own.

    HEALTHY ──failures in a row──▶ EJECTED ──back-off over and a probe succeeds──▶ TRIAL ──first token──▶ HEALTHY
                                      ▲                                              │
                                      └────────────── it fails, or a probe does ─────┘  the next back-off is longer

- A probe alone does not bring an endpoint back: a server whose model process died still says that it is ready. So a
  ready endpoint gets one request at a time, on trial, until one of them yields a token.
- A successful probe does not reset the count of failed requests, for the same reason: the two are counted apart.
- A caller that leaves without a token may have been impatient, or the engine dead. It counts as a failure when it
  waited long and no token for anybody came from there meanwhile.
- What an answer begun before an ejection does later says nothing about the endpoint on trial, and is not counted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class EndpointHealth(StrEnum):
    """What an endpoint may get."""

    HEALTHY = "healthy"
    """Any request."""
    TRIAL = "trial"
    """One request at a time."""
    EJECTED = "ejected"
    """None."""


@dataclass(frozen=True, slots=True)
class EndpointPolicy:
    """When endpoints leave and return, and how often a request may be tried.

    Raises:
        ValueError: a value is out of the range stated beside it.
    """

    probe_period_seconds: float = 2.0
    """From one round of probes to the next; above 0."""
    probe_timeout_seconds: float = 2.0
    """Silence of a probe that counts as its failure; above 0."""
    max_failures: int = 3
    """Failures in a row that eject, of requests or of probes; at least 1."""
    min_backoff_seconds: float = 1.0
    """After the first ejection; doubles with each that follows without a whole answer between; above 0."""
    max_backoff_seconds: float = 15.0
    """Where the doubling ends; at least `min_backoff_seconds`."""
    backoff_jitter: float = 0.2
    """The part of a back-off that is random, so that many clients do not return together; 0 to 1."""
    min_silence_seconds: float = 2.0
    """How long a caller who leaves without a token must have waited for that to count against the endpoint; at least 0.

    Callers with shorter deadlines than this do not notice a model whose process died: its server stays silent."""
    max_attempts: int = 3
    """Endpoints that one request may be sent to, the first included; at least 1."""
    retry_reserve: int = 100
    """Retries while no request succeeds; bounds the extra load during an outage; at least 0."""
    retries_per_success: float = 0.2
    """Retries that each whole answer adds to that reserve; at least 0."""

    def __post_init__(self) -> None:
        for name in ("probe_period_seconds", "probe_timeout_seconds", "min_backoff_seconds"):
            self._require(name, above=0.0)
        for name in ("max_failures", "max_attempts"):
            self._require(name, at_least=1)
        for name in ("min_silence_seconds", "retry_reserve", "retries_per_success"):
            self._require(name, at_least=0)
        self._require("max_backoff_seconds", at_least=self.min_backoff_seconds)
        if not 0 <= self.backoff_jitter <= 1:
            raise ValueError(f"backoff_jitter is {self.backoff_jitter}; it must be from 0 to 1")

    def _require(self, name: str, *, above: float = -math.inf, at_least: float = -math.inf) -> None:
        value = getattr(self, name)
        if not (math.isfinite(value) and value > above and value >= at_least):
            bound = f"above {above:g}" if above > -math.inf else f"at least {at_least:g}"
            raise ValueError(f"{name} is {value}; it must be a number {bound}")


@dataclass(slots=True, eq=False)
class Attempt:
    """One request at one endpoint; made by `Breaker.begin`, and ended by one of its other methods."""

    started_at: float
    is_trial: bool
    has_answered: bool = False
    """A token has come."""


class Breaker:
    """The health of one endpoint.

    Args:
        policy: Its limits.
        clock: Seconds that only ever grow.
        chance: Random numbers for the jitter.
    """

    def __init__(self, policy: EndpointPolicy, clock: Callable[[], float], chance: random.Random) -> None:
        self._policy = policy
        self._clock = clock
        self._chance = chance
        self._request_failures = 0
        self._probe_failures = 0
        self._backoff_count = 0
        self._return_at = -math.inf
        self._last_sign_of_life_at = -math.inf
        self._trial: Attempt | None = None
        self.health = EndpointHealth.HEALTHY
        self.last_error = ""
        """Of the latest failure; stays when the endpoint has recovered."""
        self.ejection_count = 0

    @property
    def is_open(self) -> bool:
        """Whether a request may be sent there now."""
        return self.health is EndpointHealth.HEALTHY or (self.health is EndpointHealth.TRIAL and self._trial is None)

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests, be it on trial, and its latest probe did not fail."""
        return self.health is not EndpointHealth.EJECTED and self._probe_failures == 0

    @property
    def needs_probe(self) -> bool:
        """False while an ejected endpoint's back-off lasts."""
        return self.health is not EndpointHealth.EJECTED or self.seconds_to_return == 0

    @property
    def seconds_to_return(self) -> float:
        """Until an ejected endpoint may be probed again; else 0."""
        return max(0.0, self._return_at - self._clock()) if self.health is EndpointHealth.EJECTED else 0.0

    def begin(self) -> Attempt:
        """A request is sent there."""
        attempt = Attempt(self._clock(), is_trial=self.health is EndpointHealth.TRIAL)
        if attempt.is_trial:
            self._trial = attempt
        return attempt

    def saw_step(self, attempt: Attempt) -> None:
        """A part of the answer has come."""
        attempt.has_answered = True
        self._last_sign_of_life_at = self._clock()
        if self._is_current_trial(attempt):
            self._trial = None
            self.health = EndpointHealth.HEALTHY
            self._request_failures = self._probe_failures = 0

    def completed(self, attempt: Attempt) -> None:
        """The answer came to its end."""
        if self.health is EndpointHealth.HEALTHY:
            self._request_failures = 0
            self._backoff_count = 0
        self.released(attempt)

    def released(self, attempt: Attempt) -> None:
        """The request ended in a way that says nothing about the endpoint."""
        if self._trial is attempt:
            self._trial = None

    def failed(self, attempt: Attempt, error: str, *, is_final: bool = False, may_eject: bool = True) -> None:
        """The endpoint could not answer.

        Args:
            error: What it said.
            is_final: Every further request would fail the same.
            may_eject: False counts the failure and leaves the endpoint in, since there is no other.
        """
        self.last_error = error
        if self._is_current_trial(attempt):
            self._eject()
        elif self.health is EndpointHealth.HEALTHY and not attempt.is_trial:
            self._request_failures += 1
            if may_eject and (is_final or self._request_failures >= self._policy.max_failures):
                self._eject()
        self.released(attempt)

    def refused(self, error: str) -> None:
        """The endpoint is alive and full: no reason to eject it, which would only fill the others."""
        self.last_error = error

    def abandoned(self, attempt: Attempt, error: str) -> None:
        """The caller left, or its time was over."""
        is_long = self._clock() - attempt.started_at >= self._policy.min_silence_seconds
        if not attempt.has_answered and is_long and self._last_sign_of_life_at < attempt.started_at:
            self.failed(attempt, error)
        elif attempt.has_answered and self.health is EndpointHealth.HEALTHY:
            self._request_failures = 0  # the caller left in mid-answer: the endpoint did answer
        self.released(attempt)

    def probe_succeeded(self) -> None:
        """The endpoint says that it is ready."""
        self._probe_failures = 0
        if self.health is EndpointHealth.EJECTED and self.seconds_to_return == 0:
            self.health = EndpointHealth.TRIAL

    def probe_failed(self, error: str, *, is_final: bool = False) -> None:
        """The endpoint is not ready, or does not say."""
        self.last_error = error
        self._probe_failures += 1
        is_over = is_final or self._probe_failures >= self._policy.max_failures
        if self.health is not EndpointHealth.HEALTHY or is_over:
            self._eject()

    def _eject(self) -> None:
        """Eject the endpoint, or extend its ejection, for longer than the last time."""
        if self.health is EndpointHealth.HEALTHY:
            self.ejection_count += 1
        self.health = EndpointHealth.EJECTED
        self._trial = None
        self._request_failures = self._probe_failures = 0
        # A bounded exponent: 2.0**1024 is an error, and an engine may be down for a night.
        doubled = self._policy.min_backoff_seconds * 2.0 ** min(self._backoff_count, 64)
        self._backoff_count += 1
        longest = min(doubled, self._policy.max_backoff_seconds)
        self._return_at = self._clock() + longest * (1 - self._policy.backoff_jitter * self._chance.random())

    def _is_current_trial(self, attempt: Attempt) -> bool:
        return self.health is EndpointHealth.TRIAL and self._trial is attempt


class RetryBudget:
    """How many retries are left to all endpoints together; whole answers earn new ones."""

    def __init__(self, policy: EndpointPolicy) -> None:
        self._capacity = self._left = float(policy.retry_reserve)
        self._earned = policy.retries_per_success

    def earn(self) -> None:
        """A whole answer has come."""
        self._left = min(self._capacity, self._left + self._earned)

    def spend(self) -> bool:
        """Take one retry; False when none is left."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
