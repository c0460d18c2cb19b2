"""What `preprocessor bench` prints of a load."""

from __future__ import annotations

import json

from preprocessor.cli.load_report import figures, progress_line, report_table
from preprocessor.traffic.load import ANSWERED, Ask, Ending, Load
from preprocessor.traffic.tally import Tally

ASK = Ask("any", ())
LOAD = Load((ASK,), concurrency=1, seconds=10)


def tally_of(outcome: str, code: str) -> Tally:
    tally = Tally(10.0, 20.0)
    tally.add(Ending(ASK, 11.0, 11.0, 11.2, 11.5, outcome, code, 0, 0, 0))
    return tally


def test_latencies_are_shown_of_what_was_answered() -> None:
    tally = tally_of(ANSWERED, "OK")
    assert "p99.9" in report_table(LOAD, tally) and "500." in report_table(LOAD, tally)
    assert ", p50 500." in progress_line(tally, 15.0)
    assert round(figures(LOAD, tally)["latency_ms"]["p50"]) == 500


def test_no_latencies_are_shown_where_nothing_was_answered() -> None:
    tally = tally_of("ENGINE_UNAVAILABLE", "UNAVAILABLE")
    table = report_table(LOAD, tally)
    assert "ENGINE_UNAVAILABLE" in table and "bytes received" in table
    assert " ms" not in progress_line(tally, 15.0) and "p50" not in table and "mean" not in table
    told = json.loads(json.dumps(figures(LOAD, tally)))
    for name in ("latency_ms", "first_message_ms"):
        assert {told[name][key] for key in ("mean", "p50", "p99.9", "p100")} == {None}
        assert told[name]["hdr_histogram_us"] == ""
