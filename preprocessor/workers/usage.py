"""What the kernel says that a worker uses, and whether our code would. A worker that was taken over may say anything itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from preprocessor.workers.claims import Violation

MOST_WORKER_THREADS = 64
"""Of one worker: those of `pipeline.write_item` and of decoders are far fewer."""

_IDLE_CPU_SECONDS = 1.0  # a worker without a task frees what it held, and waits for one
_LATE_CPU_SECONDS = 10.0  # after the limit of a task: at its limit it ends by itself, soon after that by SIGXCPU
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process uses; proc(5).

    Attributes:
        cpu_seconds: Of all threads since it began, in steps of 10 ms.
        anonymous_bytes, shared_bytes: Resident memory, without pages of files.
    """

    thread_count: int
    cpu_seconds: float
    anonymous_bytes: int
    shared_bytes: int


def read_usage(process_id: int) -> Usage | None:
    """What a process uses now; None: it has ended, or the kernel does not tell."""
    folder = Path(f"/proc/{process_id}")
    try:
        # Both have the process's name, which it may choose.
        times = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        status = dict(
            line.split(":", 1) for line in (folder / "status").read_text(errors="replace").split("\n") if line
        )
        anonymous_bytes, shared_bytes = (int(status[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))
        return Usage(int(times[17]), (int(times[11]) + int(times[12])) / _TICKS_A_SECOND, anonymous_bytes, shared_bytes)
    except (OSError, KeyError):  # a process that has just ended has no memory
        return None


class UsageCheck:
    """The readings of one worker, compared with what its tasks explain."""

    def __init__(self) -> None:
        self._period: tuple[int, bool] | None = None
        self._cpu_start_seconds = 0.0

    def check(self, usage: Usage, task_count: int, cpu_seconds: float | None) -> None:
        """Check a reading.

        Args:
            task_count: Tasks that the worker has done.
            cpu_seconds: What its task may use; None: it has none.
        Raises:
            Violation: None of our code uses that much.
        """
        period = task_count, cpu_seconds is None
        if period != self._period:
            self._period, self._cpu_start_seconds = period, usage.cpu_seconds
        if usage.thread_count > MOST_WORKER_THREADS:
            raise Violation("threads", f"{usage.thread_count} threads")
        most_seconds = _IDLE_CPU_SECONDS if cpu_seconds is None else cpu_seconds + _LATE_CPU_SECONDS
        used_seconds = usage.cpu_seconds - self._cpu_start_seconds
        if used_seconds > most_seconds:
            whose = "without a task" if cpu_seconds is None else "on a task"
            raise Violation("cpu_time", f"{used_seconds:.1f} seconds of CPU {whose}")
