"""`run_concurrently`: results, failures, cancellation, and no reference cycles."""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from preprocessor.errors import forget_frames
from preprocessor.service.concurrency import Turns, run_concurrently
from tests.waiting import PATIENCE_SECONDS


class Piece:
    """Stands for bytes that a frame holds."""


@contextmanager
def without_garbage_collector() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def fail(references: list[weakref.ref[Piece]]) -> None:
    piece = Piece()
    references.append(weakref.ref(piece))
    await asyncio.sleep(0)
    raise ValueError("failed")


async def wait_forever(references: list[weakref.ref[Piece]]) -> None:
    piece = Piece()
    references.append(weakref.ref(piece))
    await asyncio.Event().wait()


async def test_results_are_in_order() -> None:
    async def after(turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return turns

    assert await run_concurrently(after(3), after(1), after(2)) == [3, 1, 2]
    assert await run_concurrently() == []


async def test_a_failure_cancels_the_others_and_leaves_nothing_in_memory() -> None:
    references: list[weakref.ref[Piece]] = []
    with without_garbage_collector():
        try:
            await run_concurrently(wait_forever(references), fail(references))
        except ValueError as error:
            forget_frames(error)
        assert [reference() for reference in references] == [None, None]


async def test_a_cancelled_caller_cancels_all_and_leaves_nothing_in_memory() -> None:
    references: list[weakref.ref[Piece]] = []
    with without_garbage_collector():
        running = asyncio.create_task(run_concurrently(wait_forever(references), wait_forever(references)))
        for _ in range(3):  # its task starts, then both coroutines
            await asyncio.sleep(0)
        assert len(references) == 2
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        del running
        await asyncio.sleep(0)
        assert [reference() for reference in references] == [None, None]


async def test_all_have_ended_when_the_failure_is_raised() -> None:
    ended = asyncio.Event()

    async def end_slowly() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    with pytest.raises(ValueError, match="failed"):
        await run_concurrently(end_slowly(), fail([]))
    assert ended.is_set()


async def test_long_steps_leave_every_second_round_of_the_loop_to_others() -> None:
    turns, log = Turns(), []

    async def long_step() -> None:
        await turns.next()
        log.append("step")

    async def other() -> None:
        while log.count("step") < 5:
            log.append("other")
            await asyncio.sleep(0)

    await asyncio.gather(*(long_step() for _ in range(5)), other())
    assert all("step" not in pair or "other" in pair for pair in itertools.pairwise(log))


async def test_a_step_that_is_cancelled_while_it_waits_leaves_its_turn() -> None:
    turns = Turns()
    await turns.next()
    waiting = asyncio.create_task(turns.next())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await asyncio.wait_for(turns.next(), PATIENCE_SECONDS)
