"""The limit on bytes of responses being sent, and which calls are ended when it is reached."""

from __future__ import annotations

import asyncio

import pytest

from preprocessor.errors import DeadlineExceeded
from preprocessor.service import response_buffer
from preprocessor.service.response_buffer import ResponseBuffer
from tests.waiting import eventually


async def test_messages_beyond_the_limit_wait_for_earlier_ones() -> None:
    buffer, release = ResponseBuffer(max_bytes=10), asyncio.Event()
    begun: list[int] = []

    async def send(number: int, size_bytes: int) -> None:
        async with buffer.sending(size_bytes, 60.0):
            begun.append(number)
            await release.wait()

    sending = [asyncio.create_task(send(number, 5)) for number in range(3)]
    await eventually(lambda: len(begun) == 2)
    assert buffer.size_bytes == 10
    release.set()
    await asyncio.gather(*sending)
    assert begun == [0, 1, 2]
    assert buffer.size_bytes == 0


async def test_a_message_larger_than_the_limit_is_sent_alone() -> None:
    buffer = ResponseBuffer(max_bytes=10)
    async with buffer.sending(50, 60.0):
        assert buffer.size_bytes == 50
    assert buffer.size_bytes == 0


async def test_a_call_that_is_not_read_is_ended_while_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_buffer, "_MIN_RATE_GRACE_SECONDS", 0.0)
    buffer = ResponseBuffer(max_bytes=10)

    async def stuck() -> None:
        async with buffer.sending(10, 60.0):
            await asyncio.Event().wait()

    holding = asyncio.create_task(stuck())
    await eventually(lambda: buffer.size_bytes == 10)
    async with buffer.sending(10, 60.0):
        pass
    with pytest.raises(DeadlineExceeded) as caught:
        await holding
    assert caught.value.reason == "ANSWER_IDLE"


async def test_a_call_cancelled_while_waiting_releases_its_reservation() -> None:
    buffer, release = ResponseBuffer(max_bytes=10), asyncio.Event()

    async def send() -> None:
        async with buffer.sending(10, 60.0):
            await release.wait()

    first, second = asyncio.create_task(send()), asyncio.create_task(send())
    await eventually(lambda: bool(buffer._waiting))
    second.cancel()
    await asyncio.wait([second])
    release.set()
    await first
    assert (buffer.size_bytes, len(buffer._waiting)) == (0, 0)


async def test_a_call_cancelled_in_the_turn_in_which_space_comes_up_is_cancelled() -> None:
    buffer, release = ResponseBuffer(max_bytes=10), asyncio.Event()

    async def send() -> None:
        async with buffer.sending(10, 60.0):
            await release.wait()

    first, second, third = (asyncio.create_task(send()) for _ in range(3))
    await eventually(lambda: len(buffer._waiting) == 2)
    release.set()
    second.cancel()
    await asyncio.wait([first, second, third])
    assert second.cancelled()
    assert third.exception() is None
    assert (buffer.size_bytes, len(buffer._waiting)) == (0, 0)
