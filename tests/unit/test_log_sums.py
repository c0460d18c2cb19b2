"""Log lines that repeat: a few are written, the rest are counted."""

from __future__ import annotations

import contextvars
import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from preprocessor.service.logs import MAX_SIMILAR, SUMMARY_SECONDS, JsonLines, SummarizingHandler, set_request


@dataclass
class Log:
    """A logger of its own whose time a test lets pass."""

    logger: logging.Logger
    handler: SummarizingHandler
    stream: io.StringIO
    now_seconds: float = 0.0

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    def refuse(self, count: int, kind: str = "DRAINING") -> None:
        for number in range(count):
            self.logger.info("request %s refused: %s", number, kind, extra={"kind": kind})


@pytest.fixture
def log() -> Iterator[Log]:
    logger = logging.Logger("a.logger")
    stream = io.StringIO()
    one = Log(logger, SummarizingHandler(stream, clock=lambda: one.now_seconds), stream)
    logger.addHandler(one.handler)
    yield one
    one.handler.close()


def test_of_many_lines_alike_a_few_are_written_and_the_rest_counted_once(log: Log) -> None:
    log.refuse(12_704)
    assert len(log.lines) == MAX_SIMILAR
    log.now_seconds = SUMMARY_SECONDS
    log.handler.write_summaries()
    assert log.lines[MAX_SIMILAR:] == [
        f"{12_704 - MAX_SIMILAR} more like this in {SUMMARY_SECONDS:.0f} s; the last: request 12703 refused: DRAINING"
    ]
    log.handler.write_summaries()
    assert len(log.lines) == MAX_SIMILAR + 1


def test_each_kind_is_counted_apart(log: Log) -> None:
    log.refuse(MAX_SIMILAR + 1)
    log.refuse(MAX_SIMILAR + 2, "QUEUE_FULL")
    log.logger.info("something else")
    assert log.lines[-1] == "something else"
    log.handler.write_summaries(write_all=True)
    assert [line.partition(" more")[0] for line in log.lines[-2:]] == ["1", "2"]


def test_after_a_while_the_next_line_brings_the_sum_and_is_written_itself(log: Log) -> None:
    log.refuse(MAX_SIMILAR + 3)
    log.now_seconds = SUMMARY_SECONDS
    log.refuse(1)
    assert log.lines[-2].startswith("3 more like this")
    assert log.lines[-1] == "request 0 refused: DRAINING"


def test_a_few_lines_alike_are_all_written_and_followed_by_no_sum(log: Log) -> None:
    log.refuse(MAX_SIMILAR)
    log.handler.write_summaries(write_all=True)
    assert len(log.lines) == MAX_SIMILAR


def test_a_sum_tells_no_trace_again(log: Log) -> None:
    for _ in range(MAX_SIMILAR + 1):
        log.logger.warning("a worker broke\n%s", "File ..., line 1")
    log.handler.write_summaries(write_all=True)
    assert log.lines[-1].endswith("the last: a worker broke")


def test_as_json_a_sum_has_its_count_and_is_about_no_request(log: Log) -> None:
    log.handler.setFormatter(JsonLines())

    def serve_a_request() -> None:
        set_request("this-request", "")
        log.refuse(MAX_SIMILAR + 4)
        log.handler.write_summaries(write_all=True)

    contextvars.copy_context().run(serve_a_request)
    written, summed = json.loads(log.lines[0]), json.loads(log.lines[-1])
    assert (written["request_id"], "count" in written) == ("this-request", False)
    assert (summed["count"], summed["level"], summed["logger"]) == (4, "INFO", "a.logger")
    assert "request_id" not in summed


def test_kinds_without_number_take_no_memory_without_bound(log: Log) -> None:
    for number in range(5000):
        log.refuse(1, f"KIND_{number}")
    assert len(log.lines) == 5000
    assert len(log.handler._kinds) < 1000
