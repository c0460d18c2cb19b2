"""Messages of workers that were taken over: a fixed set of cases, and faults that the fuzzer must find."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
import pytest_asyncio

from preprocessor.models.family import Model
from preprocessor.types.request import Modality
from preprocessor.workers import process, untrusted
from tests.fork_servers import killed_workers_reported
from tests.fuzz.channel import ChannelFuzz
from tests.fuzz.guided import TARGETS, examples

CASE_COUNT = 250


@pytest_asyncio.fixture(autouse=True)
async def nothing_else_is_read() -> None:
    """What a fork server reports is unpickled in this process, too, and would be taken for a case's doing."""
    await killed_workers_reported()


@pytest.fixture(scope="module")
def fuzz(model: Model) -> ChannelFuzz:
    return ChannelFuzz(model, seed=1)


async def test_whatever_a_worker_sends_its_task_ends_and_nothing_else_changes(fuzz: ChannelFuzz) -> None:
    findings = await fuzz.run(0, CASE_COUNT)
    assert findings.failures == []
    assert findings.outcomes.total() == CASE_COUNT
    assert {"a result", "an error", "refused as message", "refused as rows", "refused as result"} <= set(
        findings.outcomes
    )


async def test_rows_that_nobody_checks_are_found(fuzz: ChannelFuzz, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "check_rows", lambda first_row, row_count, expected: expected.start)
    findings = await fuzz.run(0, CASE_COUNT)
    assert any("were announced" in one for one in findings.failures)


async def test_code_that_a_message_runs_is_found(fuzz: ChannelFuzz, monkeypatch: pytest.MonkeyPatch) -> None:
    def trusting(data: bytes) -> Any:
        return eval(data.decode("latin-1"), {"null": None, "true": True, "false": False, "Infinity": 0.0, "NaN": 0.0})

    monkeypatch.setattr(process, "parse", trusting)
    findings = await fuzz.run(0, 5)
    assert any("it caused compile" in one for one in findings.failures)


async def test_a_constant_that_a_message_changes_is_found(fuzz: ChannelFuzz, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count()

    def changing(value: Any, buffers: Any = ()) -> Any:
        monkeypatch.setattr(Modality, f"changed_{next(numbers)}", True, raising=False)
        return untrusted.build(value, buffers)

    monkeypatch.setattr(process, "build", changing)
    findings = await fuzz.run(0, 5)
    assert any("what the process shares has changed" in one for one in findings.failures)


async def test_a_task_that_does_not_end_is_found(fuzz: ChannelFuzz, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hanging(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr("tests.fuzz.channel._MOST_SECONDS", 0.01)
    monkeypatch.setattr(process.ProcessWorker, "_exchange", hanging)
    findings = await fuzz.run(0, 1)
    assert any("it hangs" in one for one in findings.failures)


def test_the_guided_target_begins_with_good_messages() -> None:
    for data in examples("worker messages"):
        TARGETS["worker messages"](data)
        value, places = untrusted.parse(data)
        assert untrusted.build(value, [bytes(size) for size in places]) is not None
