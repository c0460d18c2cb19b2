"""When a call that was refused is made again. Neither sleeps nor calls: both clients do that in their own way."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

from preprocessor.client.errors import CallFailed

RETRY_SECONDS = 30.0
"""How long a call that was refused for lack of capacity is made again, unless the caller says otherwise."""

RemainingSeconds = Callable[[], float | None]
"""Tells the seconds until the deadline of a call; None where there is none."""


class Retries:
    """The attempts at one call.

    Args:
        retry_seconds: No attempt begins later than this after the first; 0 makes one attempt.
        timeout_seconds: Deadline of all attempts together, waits included; None sets none.
    """

    def __init__(self, retry_seconds: float, timeout_seconds: float | None) -> None:
        now = time.monotonic()
        self._last_attempt_at = now + retry_seconds
        self._deadline = math.inf if timeout_seconds is None else now + timeout_seconds

    @property
    def remaining_seconds(self) -> float | None:
        """Until the deadline; None where there is none."""
        return None if self._deadline == math.inf else max(0.0, self._deadline - time.monotonic())

    def delay_after(self, failure: CallFailed) -> float | None:
        """Seconds to wait before the next attempt; None where the service asks for none, or there is no time for one."""
        if failure.retry_after_seconds is None:
            return None
        seconds = with_jitter(failure.retry_after_seconds)
        return None if time.monotonic() + seconds > min(self._last_attempt_at, self._deadline) else seconds


def with_jitter(seconds: float) -> float:
    """A wait between that long and twice as long, so that callers who were refused together do not come back together."""
    return random.uniform(seconds, 2 * seconds)
