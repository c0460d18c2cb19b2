"""What the pool logs about a task carries the id of its request, whichever task's end starts it."""

from __future__ import annotations

import contextvars
import json
import logging
import signal
from pathlib import Path

import pytest

from preprocessor.service.logs import JsonLines, set_request
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.task import Task
from tests.unit.workers.conftest import outcome, submit
from tests.unit.workers.payloads import Die, WaitFor


async def test_a_worker_s_death_is_logged_with_the_id_of_the_request_it_ran(
    pool: WorkerPool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.handler.setFormatter(JsonLines())
    go = tmp_path / "go"

    def submitted(request_id: str, payload: Task) -> Task:
        def submit_as() -> Task:
            set_request(request_id, "")
            return submit(pool, payload)

        return contextvars.copy_context().run(submit_as)

    with caplog.at_level(logging.WARNING):
        first = submitted("first", WaitFor(go, tmp_path / "began"))
        second = submitted("second", Die(-signal.SIGKILL, tmp_path / "tries", deadly_tries=1))
        assert pool.queued_count == 1, "the end of the first starts the second"
        go.touch()
        await outcome(first)
        await outcome(second)
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    [death] = [line for line in lines if "tried again" in line["message"]]
    assert death["request_id"] == "second"
