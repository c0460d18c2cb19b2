"""Checks that long work calls, and that raise to end it."""

from __future__ import annotations

import time
from collections.abc import Callable

from preprocessor.errors import LimitExceeded


def keep_going() -> None:
    """A check that never raises."""


def within_cpu_seconds(
    seconds: float,
    check: Callable[[], None],
    key: str,
    used_seconds: Callable[[], float] = time.thread_time,
    thread_count: int = 1,
) -> Callable[[], None]:
    """A check that also ends the work once so much CPU has been used, counted from now.

    Code that never calls the check is ended by the kernel at the request's own limit; see `workers.sandbox`.

    Args:
        used_seconds: CPU used so far: by this thread, or by the process.
        thread_count: How many threads use it at a time, at most.
    Raises, when called:
        LimitExceeded: `FILE_CPU_SECONDS_EXCEEDED`.
        Whatever `check` raises.
    """
    end_seconds, earliest_end_seconds = used_seconds() + seconds, time.monotonic() + seconds / thread_count

    def check_both() -> None:
        check()
        # One thread uses no more CPU than time, and asking for CPU is a system call: most files are never asked.
        if time.monotonic() > earliest_end_seconds and used_seconds() > end_seconds:
            raise LimitExceeded(
                f"{key}: the file needs more than the {seconds:g} CPU seconds that one may use; ask for fewer frames, or "
                "send a smaller file",
                reason="FILE_CPU_SECONDS_EXCEEDED",
                media_key=key,
            )

    return check_both
