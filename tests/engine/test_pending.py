"""What waits for rows hears of them, or of what went wrong, and nothing waits for ever."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from engine_client import EngineRequest, RowProgress


async def test_a_wait_ends_when_more_rows_are_final() -> None:
    pending = RowProgress("x")
    pending.finish(3)
    assert await pending.wait_past(2) == 3
    waiting = asyncio.create_task(pending.wait_past(3))
    pending.finish(3)  # nothing new
    await asyncio.sleep(0)
    assert not waiting.done()
    pending.finish(8)
    assert await waiting == 8


async def test_all_who_wait_hear_and_each_from_its_own_row() -> None:
    pending = RowProgress("x")
    waiting = [asyncio.create_task(pending.wait_past(row_count)) for row_count in (0, 4, 4)]
    await asyncio.sleep(0)
    pending.finish(2)
    assert await waiting[0] == 2
    pending.finish(6)
    assert [await each for each in waiting[1:]] == [6, 6]


async def test_a_failure_reaches_only_those_who_lack_rows() -> None:
    pending = RowProgress("x")
    waiting = asyncio.create_task(pending.wait_past(2))
    pending.finish(2)
    pending.fail(RuntimeError("the decoder broke"))
    assert await pending.wait_past(0) == 2
    with pytest.raises(RuntimeError, match="the decoder broke"):
        await waiting


async def test_a_wait_that_is_cancelled_leaves_the_rows_to_others() -> None:
    pending = RowProgress("x")
    waiting = asyncio.create_task(pending.wait_past(0))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    pending.finish(5)
    assert await pending.wait_past(0) == 5


def test_final_rows_stay_final() -> None:
    pending = RowProgress("x")
    pending.finish(3)
    with pytest.raises(ValueError, match="2 rows are said to be final; 3 were before"):
        pending.finish(2)


@pytest.mark.parametrize("name", ["absent", "scalar"])
def test_rows_are_those_of_a_tensor_of_the_request(name: str) -> None:
    tensors = {"input_ids": np.zeros(1, np.int32), "scalar": np.array(1.0, np.float32)}
    with pytest.raises(ValueError, match=f"pending is of {name}"):
        EngineRequest("r", tensors, pending=RowProgress(name))
