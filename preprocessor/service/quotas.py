"""Quotas of each caller: calls per second, uploaded bytes per second, concurrent calls.

Rates are token buckets that hold ten seconds' worth. The size of an upload is known only when it ends, so it may make the
bucket negative; further calls are refused until it is positive again. No upload is interrupted, and the mean rate holds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from preprocessor.config import AccessSettings
from preprocessor.errors import Overloaded

BURST_SECONDS = 10.0
_MAX_IDLE_ACCOUNTS = 4096


@dataclass(slots=True)
class Bucket:
    """A token bucket that holds `BURST_SECONDS` of its rate.

    Attributes:
        rate: Tokens per second; infinite for no limit.
        level: Tokens available; may be negative.
    """

    rate: float
    filled_at_seconds: float
    level: float = field(init=False)

    def __post_init__(self) -> None:
        self.level = self.capacity

    @property
    def capacity(self) -> float:
        return max(1.0, self.rate * BURST_SECONDS)

    def fill(self, now_seconds: float) -> None:
        if math.isfinite(self.rate):
            self.level = min(self.capacity, self.level + (now_seconds - self.filled_at_seconds) * self.rate)
        self.filled_at_seconds = now_seconds

    def seconds_until(self, level: float) -> float:
        """Time until the level is reached, counted from the last `fill`."""
        return max(0.0, (level - self.level) / self.rate)


class Account:
    """The usage of one caller.

    Attributes:
        name: The caller's name from its token, certificate, proxy or address; empty for exempt methods.
        open_count: Its calls that have not ended.
    """

    def __init__(self, name: str, settings: AccessSettings, clock: Callable[[], float]) -> None:
        now = clock()
        self.name = name
        self.open_count = 0
        self._max_open_count = settings.max_calls_a_caller or math.inf
        self._calls = Bucket(settings.max_calls_per_second or math.inf, now)
        self._bytes = Bucket(settings.max_bytes_per_second or math.inf, now)
        self._clock = clock

    def begin_call(self) -> None:
        """Count a call; it is open until `end_call`.

        Raises:
            Overloaded: `TOO_MANY_CALLS`, `CALL_RATE_EXCEEDED` or `BYTE_RATE_EXCEEDED`.
        """
        self._fill()
        if self.open_count >= self._max_open_count:
            raise Overloaded(
                f"{self.name} has {self.open_count} calls open, the most that are allowed; wait until one ends",
                reason="TOO_MANY_CALLS",
            )
        if self._calls.level < 1:
            raise Overloaded(
                f"more than {self._calls.rate:g} calls per second; call less often",
                reason="CALL_RATE_EXCEEDED",
                retry_after_seconds=self._calls.seconds_until(1),
            )
        if self._bytes.level <= 0:
            raise Overloaded(
                f"more than {self._bytes.rate:g} uploaded bytes per second; send less, or less often",
                reason="BYTE_RATE_EXCEEDED",
                retry_after_seconds=self._bytes.seconds_until(1),
            )
        self._calls.level -= 1
        self.open_count += 1

    def end_call(self) -> None:
        self.open_count -= 1

    def add_bytes(self, size_bytes: int) -> None:
        """Count received bytes."""
        self._fill()
        self._bytes.level -= size_bytes

    @property
    def is_forgettable(self) -> bool:
        """Whether it equals a new account."""
        self._fill()
        return not self.open_count and all(bucket.level == bucket.capacity for bucket in (self._calls, self._bytes))

    def _fill(self) -> None:
        now = self._clock()
        self._calls.fill(now)
        self._bytes.fill(now)


class Accounts:
    """The account of each caller. Accounts that equal a new one are removed when there are too many."""

    def __init__(self, settings: AccessSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._accounts: dict[str, Account] = {}
        self._sweep_at_count = _MAX_IDLE_ACCOUNTS

    def of(self, name: str) -> Account:
        account = self._accounts.get(name)
        if account is None:
            if len(self._accounts) >= self._sweep_at_count:
                self._accounts = {name: one for name, one in self._accounts.items() if not one.is_forgettable}
                self._sweep_at_count = max(_MAX_IDLE_ACCOUNTS, 2 * len(self._accounts))
            account = self._accounts[name] = Account(name, self._settings, self._clock)
        return account


_CALLER: ContextVar[Account] = ContextVar("caller")


def current_caller() -> Account:
    """The caller that the running handler serves."""
    return _CALLER.get()


def serve_caller(account: Account) -> None:
    """Set the caller that the running handler serves."""
    _CALLER.set(account)
