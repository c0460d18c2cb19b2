"""A request whose rows are still announced while it travels can be sent again, from the first row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

import pytest

from engine_client import EngineRequest, EngineStep, EngineUnavailable, SamplingParameters
from engine_client.client import Metadata
from engine_client.testing import FakeEngine
from tests.engine.servers import eventually
from tests.engine.several import by_name, in_order, request


@dataclass(frozen=True, slots=True, eq=False)
class GrowingRequest(EngineRequest):
    """A request whose rows are announced while it travels."""

    pending: AsyncIterator[tuple[int, int]] | None = None


class RowReader(FakeEngine):
    """Reads announcements before it answers; may break after a few."""

    def __init__(self, break_after: int | None = None) -> None:
        super().__init__([1])
        self.seen: list[tuple[int, int]] = []
        self._break_after = break_after

    async def generate(
        self, request: EngineRequest, *, timeout_seconds: float | None = None, metadata: Metadata = ()
    ) -> AsyncGenerator[EngineStep, None]:
        assert isinstance(request, GrowingRequest)
        assert request.pending is not None
        async for run in request.pending:
            self.seen.append(run)
            if len(self.seen) == self._break_after:
                raise EngineUnavailable("gone in mid-prompt")
        yield EngineStep((1,))


async def test_the_next_engine_hears_of_all_rows_from_the_start() -> None:
    async def announce() -> AsyncIterator[tuple[int, int]]:
        for first_row in range(0, 50, 10):
            await asyncio.sleep(0)
            yield first_row, 10

    first, second = RowReader(break_after=2), RowReader()
    async with in_order(a=first, b=second) as endpoints:
        asked = GrowingRequest("r", request().tensors, SamplingParameters(), announce())
        assert [step.token_ids async for step in endpoints.generate(asked)] == [(1,)]
    assert first.seen == [(0, 10), (10, 10)]
    assert second.seen == [(first_row, 10) for first_row in range(0, 50, 10)]


async def test_an_engine_that_breaks_while_it_waits_for_rows_does_not_lose_them() -> None:
    more = asyncio.Event()

    async def announce() -> AsyncIterator[tuple[int, int]]:
        yield 0, 10
        await more.wait()
        yield 10, 10

    class Impatient(RowReader):
        async def generate(
            self, request: EngineRequest, *, timeout_seconds: float | None = None, metadata: Metadata = ()
        ) -> AsyncGenerator[EngineStep, None]:
            async with aclosing(super().generate(request)) as steps:
                try:
                    async with asyncio.timeout(0.01):  # cancels the wait for the second run
                        yield await anext(steps)
                except TimeoutError as error:
                    more.set()
                    raise EngineUnavailable("gone while it waited") from error

    first, second = Impatient(), RowReader()
    async with in_order(a=first, b=second) as endpoints:
        asked = GrowingRequest("r", request().tensors, SamplingParameters(), announce())
        assert [step.token_ids async for step in endpoints.generate(asked)] == [(1,)]
    assert (first.seen, second.seen) == ([(0, 10)], [(0, 10), (10, 10)])


async def test_what_stops_the_rows_reaches_the_caller_and_is_no_fault_of_the_engine() -> None:
    async def announce() -> AsyncIterator[tuple[int, int]]:
        yield 0, 10
        raise LookupError("the file ends early")

    other = RowReader()
    async with in_order(a=RowReader(), b=other) as endpoints:
        with pytest.raises(LookupError, match="the file ends early"):
            async for _ in endpoints.generate(GrowingRequest("r", request().tensors, SamplingParameters(), announce())):
                pass
        assert by_name(endpoints)["a"].failure_count == 0
    assert other.seen == []


async def test_a_caller_who_leaves_while_rows_are_awaited_leaves_no_task() -> None:
    async def announce() -> AsyncIterator[tuple[int, int]]:
        await asyncio.Event().wait()
        yield 0, 10

    async with in_order(a=RowReader()) as endpoints:
        await endpoints.check_ready()
        before = asyncio.all_tasks()
        steps = endpoints.generate(GrowingRequest("r", request().tensors, SamplingParameters(), announce()))
        task = asyncio.ensure_future(anext(steps))
        await eventually(lambda: by_name(endpoints)["a"].in_flight_count == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert asyncio.all_tasks() == before
