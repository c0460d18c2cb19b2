"""What came of a load: nothing is counted twice, left out, or moved by adding processes up."""

from __future__ import annotations

import pickle
import random

import pytest

from preprocessor.traffic.load import ANSWERED, Ask, Ending
from preprocessor.traffic.tally import Latencies, Tally

ASK = Ask("any", ())


def ending(
    due: float, ended: float, *, began: float | None = None, outcome: str = ANSWERED, code: str = "OK"
) -> Ending:
    began = due if began is None else began
    return Ending(ASK, due, began, (began + ended) / 2, ended, outcome, code, 100, 10, 1, 3, 2)


def tally_of(*endings: Ending, start: float = 10, stop: float = 20) -> Tally:
    tally = Tally(start, stop)
    for one in endings:
        tally.add(one)
    return tally


def test_percentiles_are_within_a_thousandth_of_the_sorted_samples() -> None:
    source = random.Random(3)
    seconds = sorted(source.lognormvariate(-2, 1.5) for _ in range(20_000))
    latencies = Latencies()
    for one in seconds:
        latencies.add(one)
    for percent in (50, 90, 99, 99.9):
        exact = seconds[round(len(seconds) * percent / 100) - 1]
        assert latencies.at_percent_ms(percent) == pytest.approx(exact * 1e3, rel=2e-3)
    assert latencies.mean_ms() == pytest.approx(sum(seconds) / len(seconds) * 1e3, rel=2e-3)


@pytest.mark.parametrize(("seconds", "ms"), [(0.0, 0.001), (-1.0, 0.001), (1e6, 3.6e6)])
def test_what_is_out_of_range_counts_as_the_nearest(seconds: float, ms: float) -> None:
    latencies = Latencies()
    latencies.add(seconds)
    assert latencies.count == 1
    assert latencies.at_percent_ms(100) == pytest.approx(ms, rel=1e-3)


def test_a_histogram_crosses_to_another_process_whole() -> None:
    latencies = Latencies()
    for one in range(1, 500):
        latencies.add(one / 1000)
    copied = pickle.loads(pickle.dumps(latencies))
    assert copied.count == 499
    assert [copied.at_percent_ms(p) for p in (1, 50, 99)] == [latencies.at_percent_ms(p) for p in (1, 50, 99)]
    assert pickle.loads(pickle.dumps(Latencies())).at_percent_ms(50) == 0


def test_a_request_sent_late_is_that_much_later() -> None:
    tally = tally_of(ending(11, 14, began=13))
    assert tally.latency.at_percent_ms(100) == pytest.approx(3000, rel=1e-3)
    assert tally.first_message.at_percent_ms(100) == pytest.approx(2500, rel=1e-3)
    assert (tally.late_count, tally.worst_late_seconds) == (1, 2)


def test_what_was_due_outside_the_window_has_no_latency_but_its_answer_is_one_of_the_window() -> None:
    tally = tally_of(ending(9, 12), ending(15, 25), ending(20, 21), ending(5, 6))
    assert tally.due_count == tally.answered_count == tally.latency.count == 1
    assert tally.ended_count == 1
    assert tally.answers_per_second == 0.1


def test_a_refusal_is_counted_by_status_and_reason_and_has_no_latency() -> None:
    refused = ending(11, 12, outcome="QUEUE_FULL", code="RESOURCE_EXHAUSTED")
    tally = tally_of(refused, refused, ending(11, 12))
    assert tally.endings == {("RESOURCE_EXHAUSTED", "QUEUE_FULL"): 2}
    assert (tally.due_count, tally.answered_count, tally.latency.count) == (3, 1, 1)
    assert (tally.received_bytes, tally.row_count, tally.token_count) == (100, 10, 1)
    assert (tally.item_count, tally.cached_item_count) == (3, 2)


def test_several_processes_add_up_to_what_one_would_have_counted() -> None:
    endings = [ending(10 + i / 100, 10 + i / 50, began=10 + i / 80) for i in range(800)]
    endings += [ending(12, 13, outcome="QUEUE_FULL", code="RESOURCE_EXHAUSTED")] * 3
    whole, *parts = (tally_of(*endings[a::b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    parts[0].merge(parts[1])
    assert parts[0].latency.encoded() == whole.latency.encoded()
    for name in ("due_count", "answered_count", "ended_count", "late_count", "worst_late_seconds", "endings",
                 "received_bytes", "row_count", "token_count", "item_count", "cached_item_count"):  # fmt: skip
        assert getattr(parts[0], name) == getattr(whole, name), name
