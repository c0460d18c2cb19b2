"""How many bytes of answers are on their way out at a time, and who loses his turn."""

from __future__ import annotations

import asyncio

import pytest

from preprocessor.errors import DeadlineExceeded
from preprocessor.service import outgoing
from preprocessor.service.outgoing import Outgoing
from tests.waiting import eventually


async def test_messages_beyond_the_bound_wait_for_those_before_them() -> None:
    out, go_on = Outgoing(max_bytes=10), asyncio.Event()
    begun: list[int] = []

    async def send(number: int, size_bytes: int) -> None:
        async with out.sending(size_bytes, 60.0):
            begun.append(number)
            await go_on.wait()

    sending = [asyncio.create_task(send(number, 5)) for number in range(3)]
    await eventually(lambda: len(begun) == 2)
    assert out.size_bytes == 10
    go_on.set()
    await asyncio.gather(*sending)
    assert begun == [0, 1, 2]
    assert out.size_bytes == 0


async def test_a_message_larger_than_the_bound_goes_alone() -> None:
    out = Outgoing(max_bytes=10)
    async with out.sending(50, 60.0):
        assert out.size_bytes == 50
    assert out.size_bytes == 0


async def test_who_takes_nothing_loses_his_call_while_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "_CROWDED_SECONDS", 0.0)
    out = Outgoing(max_bytes=10)

    async def stuck() -> None:
        async with out.sending(10, 60.0):
            await asyncio.Event().wait()

    holding = asyncio.create_task(stuck())
    await eventually(lambda: out.size_bytes == 10)
    async with out.sending(10, 60.0):
        pass
    with pytest.raises(DeadlineExceeded) as caught:
        await holding
    assert caught.value.reason == "ANSWER_IDLE"


async def test_a_caller_who_leaves_while_waiting_keeps_nothing() -> None:
    out, go_on = Outgoing(max_bytes=10), asyncio.Event()

    async def send() -> None:
        async with out.sending(10, 60.0):
            await go_on.wait()

    first, second = asyncio.create_task(send()), asyncio.create_task(send())
    await eventually(lambda: bool(out._waiting))
    second.cancel()
    await asyncio.wait([second])
    go_on.set()
    await first
    assert (out.size_bytes, len(out._waiting)) == (0, 0)
