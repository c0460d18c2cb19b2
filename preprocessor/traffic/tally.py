"""The results of a load, counted in constant memory.

Latencies go into an HDR histogram (the library `hdrhistogram`, Gil Tene's design). It keeps every value from a microsecond to an
hour within 0.1 %, adds histograms of several processes exactly, and has an encoding that other tools read. Raw samples would need
memory for the whole run to give p99.9, and percentiles of several processes cannot be averaged.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hdrh.histogram import HdrHistogram

from preprocessor.traffic.load import Ending

PERCENTS = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0)

_MOST_SECONDS = 3600
_DIGITS = 3


class Latencies:
    """A histogram of seconds; values are clamped to the range from a microsecond to an hour."""

    def __init__(self, encoded: str = "") -> None:
        self._histogram: Any = HdrHistogram(1, _MOST_SECONDS * 1_000_000, _DIGITS)
        if encoded:
            self._histogram.decode_and_add(encoded)

    def __reduce__(self) -> tuple[type[Latencies], tuple[str]]:
        return Latencies, (self.encoded() if self.count else "",)

    @property
    def count(self) -> int:
        return int(self._histogram.get_total_count())

    def add(self, seconds: float) -> None:
        self._histogram.record_value(min(max(1, round(seconds * 1e6)), _MOST_SECONDS * 1_000_000))

    def merge(self, other: Latencies) -> None:
        self._histogram.add(other._histogram)

    def mean_ms(self) -> float:
        return float(self._histogram.get_mean_value()) / 1e3 if self.count else 0.0

    def at_percent_ms(self, percent: float) -> float:
        """The latency at a percentile, in milliseconds; 0 if there is no value."""
        return float(self._histogram.get_value_at_percentile(percent)) / 1e3 if self.count else 0.0

    def encoded(self) -> str:
        """HdrHistogram V2, zlib, base64, in microseconds."""
        return bytes(self._histogram.encode()).decode()


@dataclass(slots=True)
class Tally:
    """Requests of a time window.

    Requests that were due within the window are counted, however late they ended. Only `ended_count` counts responses that ended
    within it, whenever they were due: divided by the window's length it is the service's rate.

    Attributes:
        window_start_seconds, window_stop_seconds: On the monotonic clock.
        due_count: Requests that were due and have ended.
        endings: Counts by (status code, outcome), without the successful ones.
        late_count: Requests of an open loop that were sent more than `LATE_SECONDS` after they were due.
        worst_late_seconds: The longest delay of a request that was sent late.
        received_bytes, row_count, token_count, item_count, cached_item_count: Of successful responses.
        latency: Of successful responses, from when they were due; `first_message`, until the first message of each.
        client_cpu_seconds: CPU time of the callers' processes.
    """

    window_start_seconds: float = 0.0
    window_stop_seconds: float = 0.0
    due_count: int = 0
    answered_count: int = 0
    ended_count: int = 0
    late_count: int = 0
    worst_late_seconds: float = 0.0
    received_bytes: int = 0
    row_count: int = 0
    token_count: int = 0
    item_count: int = 0
    cached_item_count: int = 0
    client_cpu_seconds: float = 0.0
    endings: Counter[tuple[str, str]] = field(default_factory=Counter)
    latency: Latencies = field(default_factory=Latencies)
    first_message: Latencies = field(default_factory=Latencies)

    def add(self, ending: Ending) -> None:
        """Count one request."""
        if ending.is_answered and self.window_start_seconds <= ending.ended_at_seconds < self.window_stop_seconds:
            self.ended_count += 1
        if not self.window_start_seconds <= ending.due_at_seconds < self.window_stop_seconds:
            return
        self.due_count += 1
        late_seconds = ending.began_at_seconds - ending.due_at_seconds
        self.late_count += late_seconds > LATE_SECONDS
        self.worst_late_seconds = max(self.worst_late_seconds, late_seconds)
        if not ending.is_answered:
            self.endings[ending.code, ending.outcome] += 1
            return
        self.answered_count += 1
        self.received_bytes += ending.received_bytes
        self.row_count += ending.row_count
        self.token_count += ending.token_count
        self.item_count += ending.item_count
        self.cached_item_count += ending.cached_item_count
        self.latency.add(ending.seconds)
        self.first_message.add(ending.first_at_seconds - ending.due_at_seconds)

    def merge(self, other: Tally) -> None:
        """Count what another process counted in the same window."""
        for name in (
            "due_count", "answered_count", "ended_count", "late_count", "received_bytes", "row_count", "token_count",
            "item_count", "cached_item_count", "client_cpu_seconds",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.window_stop_seconds = min(self.window_stop_seconds, other.window_stop_seconds)
        self.worst_late_seconds = max(self.worst_late_seconds, other.worst_late_seconds)
        self.endings += other.endings
        self.latency.merge(other.latency)
        self.first_message.merge(other.first_message)

    @property
    def seconds(self) -> float:
        return self.window_stop_seconds - self.window_start_seconds

    @property
    def answers_per_second(self) -> float:
        return self.ended_count / self.seconds


LATE_SECONDS = 0.01
"""Delays up to this are those of a busy event loop; longer ones mean that too many requests were open."""
