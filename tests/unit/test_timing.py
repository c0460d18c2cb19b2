"""How long stages took and when, also where processes had a share."""

from __future__ import annotations

import time

import pytest

from preprocessor.types.timing import StageTime, Timings


def test_a_stage_that_takes_turns_spends_less_than_lies_between_its_beginning_and_its_end() -> None:
    timings = Timings()
    timings.add("decode", 100.0, 90.0, ended_seconds=1.1)
    timings.add("decode", 200.0, 150.0, ended_seconds=3.2)
    [(_, name, spent)] = timings.shares()
    assert (name, spent.wall_ms, spent.cpu_ms) == ("decode", 300.0, 240.0)
    assert (spent.started_seconds, spent.ended_seconds) == (pytest.approx(1.0), pytest.approx(3.2))


def test_what_is_merged_counts_and_stays_to_be_seen_as_it_was() -> None:
    first, second, run, call = Timings(process_id=1), Timings(process_id=2), Timings(), Timings(process_id=9)
    first.add("decode", 10.0, 1.0, ended_seconds=5.0)
    second.add("decode", 20.0, 2.0, ended_seconds=6.0)
    run.merge(first)
    run.merge(second)
    call.add("receive", 5.0, 0.0, ended_seconds=4.0)
    call.merge(run)
    assert list(call.stages) == ["receive", "decode"]
    assert call.stages["decode"] == StageTime(30.0, 3.0, 4.99, 6.0)
    assert [(process_id, name) for process_id, name, _ in call.shares()] == [
        (1, "decode"),
        (2, "decode"),
        (9, "receive"),
    ]


def test_a_stage_ends_now_on_the_clock_that_all_processes_share() -> None:
    timings = Timings()
    before = time.monotonic()
    with timings.stage("plan"):
        pass
    stopwatch = timings.stopwatch()
    stopwatch.end("patch")
    after = time.monotonic()
    for spent in timings.stages.values():
        assert before <= spent.started_seconds <= spent.ended_seconds <= after
