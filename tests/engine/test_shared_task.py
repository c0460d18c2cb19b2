"""Work that several wait for, and that goes on when they leave."""

from __future__ import annotations

import asyncio

import pytest

from engine_client.shared_task import SharedTask


class Work:
    """Returns how often it was begun; or raises that, where it fails."""

    def __init__(self, *, fails: bool = False) -> None:
        self.gate = asyncio.Event()
        self.count = 0
        self._fails = fails
        self.task = SharedTask(self._run)

    async def _run(self) -> int:
        self.count += 1
        count = self.count
        await self.gate.wait()
        if self._fails:
            raise ValueError(f"number {count}")
        return count

    async def leave_one(self) -> None:
        """Wait for it, and leave before its end."""
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await self.task.outcome()


async def test_all_who_wait_get_the_outcome_of_one_run_and_the_next_that_of_a_new_one() -> None:
    work = Work()
    waiting = [asyncio.create_task(work.task.outcome()) for _ in range(3)]
    await asyncio.sleep(0)
    work.gate.set()
    assert await asyncio.gather(*waiting) == [1, 1, 1]
    assert await work.task.outcome() == 2


async def test_who_leaves_ends_it_for_nobody() -> None:
    work = Work()
    waiting = asyncio.create_task(work.task.outcome())
    await work.leave_one()
    work.gate.set()
    assert await waiting == 1


async def test_an_outcome_that_nobody_saw_is_taken_where_it_is_asked_for_and_recent() -> None:
    work = Work()
    await work.leave_one()
    work.gate.set()
    await work.task.ended()
    assert await work.task.outcome(unseen_seconds=600.0) == 1
    assert await work.task.outcome(unseen_seconds=600.0) == 2, "the first was seen"


@pytest.mark.parametrize("is_forgotten", [False, True])
async def test_an_outcome_that_nobody_saw_does_not_stay_for_who_wants_a_new_one(is_forgotten: bool) -> None:
    work = Work()
    await work.leave_one()
    work.gate.set()
    await work.task.ended()
    if is_forgotten:
        work.task.forget()
    assert await work.task.outcome(unseen_seconds=600.0 if is_forgotten else 0.0) == 2


async def test_an_error_is_that_of_all_who_wait_and_nobody_need_wait_for_it() -> None:
    work, reported = Work(fails=True), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    waiting = [asyncio.create_task(work.task.outcome()) for _ in range(2)]
    await asyncio.sleep(0)
    work.gate.set()
    for one in waiting:
        with pytest.raises(ValueError, match="number 1"):
            await one
    work.gate.clear()
    await work.leave_one()
    work.gate.set()
    await work.task.ended()
    work.task.forget()
    assert not reported
