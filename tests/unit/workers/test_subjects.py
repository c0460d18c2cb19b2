"""What the pool logs about a task carries the id of its request, whichever task's end starts it."""

from __future__ import annotations

import contextvars
import json
import logging
import signal

import pytest

from preprocessor.service.logs import JsonLines, set_request
from preprocessor.workers.pool import WorkerPool
from tests.unit.workers.conftest import ToldTask, let_go, outcome, submit
from tests.unit.workers.payloads import Die, Step, TellProcess, WaitForSignal


async def test_a_worker_s_death_is_logged_with_the_id_of_the_request_it_ran(
    pool: WorkerPool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonLines())

    def submitted(request_id: str, payload: Step, then: Step | None = None) -> ToldTask:
        def submit_as() -> ToldTask:
            set_request(request_id, "")
            return submit(pool, payload, then=then)

        return contextvars.copy_context().run(submit_as)

    with caplog.at_level(logging.WARNING):
        first = submitted("first", WaitForSignal())
        second = submitted("second", Die(-signal.SIGKILL), then=TellProcess())
        assert pool.queued_count == 1, "the end of the first starts the second"
        await let_go(first)
        await outcome(second)
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    [death] = [line for line in lines if "tried again" in line["message"]]
    assert death["request_id"] == "second"
