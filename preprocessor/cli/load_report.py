"""What came of a load, as a line while it runs, as a table, and as JSON."""

from __future__ import annotations

from typing import Any

from preprocessor.cli.output import columns
from preprocessor.traffic.load import Load
from preprocessor.traffic.tally import PERCENTS, Latencies, Tally


def describe_load(load: Load) -> str:
    """One line: what was asked, how, and for how long."""
    method = load.asks[0].method.rpartition("/")[2]
    if load.rate_per_second:
        arrivals = "evenly spaced" if load.arrivals_seed is None else "Poisson arrivals"
        loop = f"open loop, {load.rate_per_second:g} requests/s, {arrivals}, at most {load.concurrency} open"
    else:
        loop = f"closed loop, {load.concurrency} callers"
    media = "" if load.new_media_share else ", the same media each time"
    rows = ", rows by shared memory" if load.is_by_shared_memory else ""
    return f"{method}, {load.asks[0].name}{media}{rows}; {loop}; {load.seconds:g} s after {load.warm_up_seconds:g} s of warm-up"


def progress_line(tally: Tally, now_seconds: float) -> str:
    """Where a load stands at that moment of the monotonic clock."""
    passed_seconds = now_seconds - tally.window_start_seconds
    if passed_seconds < 0:
        return f"warming up, {-passed_seconds:.0f} s"
    passed_seconds = min(passed_seconds, tally.seconds)
    rate = tally.ended_count / passed_seconds if passed_seconds else 0.0
    line = (
        f"{passed_seconds:.0f} of {tally.seconds:.0f} s: {tally.answered_count} answered, {tally.endings.total()} not, "
        f"{rate:.2f}/s"
    )
    if not tally.latency.count:
        return line
    p50, p99 = (tally.latency.at_percent_ms(percent) for percent in (50, 99))
    return f"{line}, p50 {p50:,.1f} ms, p99 {p99:,.1f} ms"


def report_table(load: Load, tally: Tally) -> str:
    """For people. Without latencies where nothing was answered."""
    rates = [("requests", "count", "per second")]
    if load.rate_per_second:
        rates.append(("due", str(tally.due_count), _per_second(tally, tally.due_count)))
    rates.append(("answered", str(tally.answered_count), _per_second(tally, tally.answered_count)))
    for (code, outcome), count in sorted(tally.endings.items()):
        named = outcome if outcome == code or not code else f"{code} {outcome}"
        rates.append((named, str(count), _per_second(tally, count)))
    rates.append(("answers within the time", str(tally.ended_count), _per_second(tally, tally.ended_count)))
    lines = [*columns(rates), ""]
    if tally.latency.count:
        lines += [*_latency_lines(tally), ""]
    lines.append(_volume(tally))
    if load.rate_per_second and tally.late_count:
        lines.append(
            f"{tally.late_count} requests were sent late, by {tally.worst_late_seconds * 1e3:,.0f} ms at most; "
            "their latencies count from when they were due"
        )
    return "\n".join(lines)


def _latency_lines(tally: Tally) -> list[str]:
    rows = [("ms", "whole answer", "first message"), ("mean", *_row(tally, Latencies.mean_ms))]
    for percent in PERCENTS:
        label = "most" if percent == 100 else f"p{percent:g}"
        rows.append((label, *_row(tally, lambda one, percent=percent: one.at_percent_ms(percent))))
    return columns(rows)


def figures(load: Load, tally: Tally) -> dict[str, Any]:
    """The `--json` object."""
    return {
        "method": load.asks[0].method.rpartition("/")[2],
        "workload": load.asks[0].name,
        "repeats_media": not load.new_media_share,
        "loop": "open" if load.rate_per_second else "closed",
        "concurrency": load.concurrency,
        "arrivals": "even" if load.arrivals_seed is None else "poisson",
        "seconds": tally.seconds,
        "warm_up_seconds": load.warm_up_seconds,
        "offered_per_second": load.rate_per_second or None,
        "answered_per_second": tally.answers_per_second,
        "due_count": tally.due_count,
        "answered_count": tally.answered_count,
        "failed": [
            {"status": code, "outcome": outcome, "count": count}
            for (code, outcome), count in sorted(tally.endings.items())
        ],
        "late_count": tally.late_count,
        "worst_late_ms": tally.worst_late_seconds * 1e3,
        "latency_ms": _latencies(tally.latency),
        "first_message_ms": _latencies(tally.first_message),
        "received_bytes": tally.received_bytes,
        "row_count": tally.row_count,
        "token_count": tally.token_count,
        "item_count": tally.item_count,
        "cached_item_count": tally.cached_item_count,
        "client_cpu_seconds": tally.client_cpu_seconds,
    }


def _latencies(latencies: Latencies) -> dict[str, Any]:
    """Numbers, or null where nothing was answered."""
    is_known = latencies.count > 0
    return {
        "mean": latencies.mean_ms() if is_known else None,
        **{f"p{percent:g}": latencies.at_percent_ms(percent) if is_known else None for percent in PERCENTS},
        "hdr_histogram_us": latencies.encoded() if is_known else "",
    }


def _row(tally: Tally, of: Any) -> tuple[str, str]:
    return f"{of(tally.latency):,.1f}", f"{of(tally.first_message):,.1f}"


def _per_second(tally: Tally, count: int) -> str:
    return f"{count / tally.seconds:.2f}"


def _volume(tally: Tally) -> str:
    parts = [f"{tally.received_bytes:,} bytes received"]
    if tally.row_count:
        parts.append(f"{tally.row_count:,} rows")
    if tally.token_count:
        parts.append(f"{tally.token_count:,} tokens")
    if tally.item_count:
        parts.append(f"pixels of {tally.cached_item_count:,} of {tally.item_count:,} items cached")
    parts.append(f"{tally.client_cpu_seconds:.2f} s of CPU taken by the callers")
    return ", ".join(parts)
