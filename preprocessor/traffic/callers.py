"""Callers on one event loop.

Messages are sent and received as bytes, so that the load generator uses little CPU. Responses are parsed only if they are to be
counted or checked.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any

import grpc.aio

from preprocessor.client.errors import CallFailed, failure_of
from preprocessor.client.retry import with_jitter
from preprocessor.traffic.load import (
    ANSWERED,
    GENERATE,
    LEFT,
    NOT_SENT,
    PREPARE,
    STATUS_LOST,
    WRONG,
    Ask,
    Check,
    Connect,
    Ending,
    Load,
    with_region,
    with_salt,
)
from preprocessor.traffic.regions import Regions, RowsReader
from preprocessor.traffic.schedule import due_times
from preprocessor.v1 import preprocessor_pb2 as pb

# grpc/grpc#36066, open in grpcio 1.85: if a service refuses a call during the upload, `grpc.aio` sometimes reports its own error
# in place of the service's status.
_STATUS_LOST_MESSAGE = "Internal error from Core"

Ended = Callable[[Ending], None]
"""Called with each request that has ended."""


class NobodyAnswers(Exception):
    """No connection could be made in time."""


async def drive(
    connect: Connect,
    load: Load,
    ended: Ended,
    *,
    when_to_start: Callable[[], Awaitable[float]] | None = None,
    connection_count: int = 1,
    connect_seconds: float = 60.0,
    stop: asyncio.Event | None = None,
) -> None:
    """Put a load on a service from this event loop.

    Args:
        when_to_start: Called once there is a connection; returns the start time on the monotonic clock, so that several
            processes can start together.
        connection_count: Number of connections, used in turn.
        stop: Once it is set no further request is sent.
    Raises:
        NobodyAnswers: There is no connection within `connect_seconds`.
    """
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(connect()) for _ in range(connection_count)]
        try:
            async with asyncio.timeout(connect_seconds):
                for channel in channels:
                    await channel.channel_ready()
        except TimeoutError:
            raise NobodyAnswers(f"no connection within {connect_seconds:g} s") from None
        if when_to_start is not None:
            await asyncio.sleep(await when_to_start() - time.monotonic())
        await _Callers(channels, load, ended, stop or asyncio.Event()).run()


class _Callers:
    def __init__(self, channels: Sequence[grpc.aio.Channel], load: Load, ended: Ended, stop: asyncio.Event) -> None:
        self._channels = channels
        self._load = load
        self._ended = ended
        self._stop = stop
        self._random = random.Random(load.seed)
        self._begun_count = 0
        self._name = uuid.uuid4().hex
        self._regions = Regions()

    async def run(self) -> None:
        try:
            await self._run()
        finally:
            self._regions.close()

    async def _run(self) -> None:
        load, begun = self._load, asyncio.Event()
        async with asyncio.TaskGroup() as others:
            beside = [others.create_task(self._ask_on(ask, begun)) for ask in load.beside]
            if beside:
                await begun.wait()
            await (self._open_loop() if load.rate_per_second else self._closed_loop())
            for task in beside:
                task.cancel()

    async def _closed_loop(self) -> None:
        load = self._load
        stop_at_seconds = time.monotonic() + load.warm_up_seconds + load.seconds

        async def call_on() -> None:
            while self._begun_count < load.count and time.monotonic() < stop_at_seconds and not self._stop.is_set():
                back_off_seconds = await self._call(time.monotonic())
                await self._sleep_until(min(time.monotonic() + with_jitter(back_off_seconds), stop_at_seconds))

        async with asyncio.TaskGroup() as callers:
            for _ in range(load.concurrency):
                callers.create_task(call_on())

    async def _open_loop(self) -> None:
        load = self._load
        began_seconds = time.monotonic()
        room = asyncio.Semaphore(load.concurrency)

        async def call(due_at_seconds: float) -> None:
            try:
                await self._call(due_at_seconds)
            finally:
                room.release()

        async with asyncio.TaskGroup() as calls:
            for due_seconds in self._due_times():
                due_at_seconds = began_seconds + due_seconds
                await self._sleep_until(due_at_seconds)
                if self._stop.is_set() or self._begun_count >= load.count:
                    break
                await room.acquire()  # ends: every open request has a deadline
                calls.create_task(call(due_at_seconds))

    def _due_times(self) -> Iterator[float]:
        """The due times of this share."""
        load = self._load
        every = due_times(load.rate_per_second, load.warm_up_seconds + load.seconds, arrivals_seed=load.arrivals_seed)
        return (due for number, due in enumerate(every) if number % load.of == load.share)

    async def _sleep_until(self, at_seconds: float) -> None:
        """Sleep until then, or until the stop."""
        patience_seconds = at_seconds - time.monotonic()
        if patience_seconds > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_seconds):
                    await self._stop.wait()

    async def _call(self, due_at_seconds: float) -> float:
        """Send one request; returns the seconds to wait before the next one."""
        load = self._load
        ask = load.asks[self._begun_count % len(load.asks)]
        channel = self._channels[self._begun_count % len(self._channels)]
        is_checked = load.check_share > 0 and (not self._begun_count or self._random.random() < load.check_share)
        self._begun_count += 1
        is_new = load.new_media_share > 0 and self._random.random() < load.new_media_share
        sent = with_salt(ask, f"{self._name}/{self._begun_count}") if is_new else ask
        leaves = self._random.random() < load.cancel_share
        patience_seconds = self._random.uniform(0, load.cancel_within_seconds) if leaves else None
        began = time.monotonic()
        answer = _Answer(load.check() if is_checked and load.check is not None else None, load.is_counted)
        remaining_seconds = due_at_seconds + load.timeout_seconds - began
        if remaining_seconds <= 0:
            answer.outcome = NOT_SENT
        else:
            try:
                async with asyncio.timeout(patience_seconds):
                    if load.is_by_shared_memory and ask.method == PREPARE:
                        await self._ask_by_region(channel, sent, remaining_seconds, answer)
                    else:
                        await _ask(channel, sent, remaining_seconds, load.metadata, answer)
            except TimeoutError:
                answer.outcome = LEFT
        self._ended(
            Ending(
                ask=ask,
                due_at_seconds=due_at_seconds,
                began_at_seconds=began,
                first_at_seconds=answer.first_at_seconds,
                ended_at_seconds=time.monotonic(),
                outcome=answer.outcome,
                code=answer.code,
                received_bytes=answer.received_bytes,
                row_count=answer.row_count,
                token_count=answer.token_count,
                item_count=answer.item_count,
                cached_item_count=answer.cached_item_count,
            )
        )
        return answer.retry_after_seconds

    async def _ask_by_region(
        self, channel: grpc.aio.Channel, ask: Ask, timeout_seconds: float, answer: _Answer
    ) -> None:
        """As `_ask`, with rows by shared memory. Where a region is too small, the request is sent again with a larger one."""
        region = self._regions.take()
        try:
            answer.reader = RowsReader(region) if answer.check is not None else None
            sent = with_region(ask, region.message())
            await _ask(channel, sent, timeout_seconds, self._load.metadata, answer)
        finally:
            self._regions.give(region, is_answered=answer.code == "OK")
        if answer.failure is not None and answer.failure.reason == "REGION_TOO_SMALL":
            self._regions.grow(answer.failure)
            answer.failure = None
            await self._ask_by_region(channel, ask, timeout_seconds, answer)

    async def _ask_on(self, ask: Ask, begun: asyncio.Event) -> None:
        while True:
            answer = _Answer(None, False, begun)
            await _ask(self._channels[0], ask, self._load.timeout_seconds, self._load.metadata, answer)
            if answer.outcome != ANSWERED:
                raise RuntimeError(f"{ask.name}, sent beside the load, failed: {answer.outcome}")


@dataclass(slots=True)
class _Answer:
    """The response to one request so far."""

    check: Check | None
    is_counted: bool
    begun: asyncio.Event | None = None
    first_at_seconds: float = 0.0
    received_bytes: int = 0
    row_count: int = 0
    token_count: int = 0
    item_count: int = 0
    cached_item_count: int = 0
    outcome: str = ""
    code: str = ""
    retry_after_seconds: float = 0.0
    failure: CallFailed | None = None
    reader: RowsReader | None = None

    def add(self, method: str, message: bytes) -> None:
        if not self.first_at_seconds:
            self.first_at_seconds = time.monotonic()
            if self.begun is not None:
                self.begun.set()
        self.received_bytes += len(message)
        if self.is_counted:
            self._count(method, message)
        if self.check is not None:
            self.check.add(message if self.reader is None else self.reader.as_rows(message))

    def _count(self, method: str, message: bytes) -> None:
        if method == PREPARE:
            prepared = pb.PrepareResponse.FromString(message)
            self.row_count += prepared.rows.row_count + prepared.rows_ready.row_count
            self.item_count += len(prepared.header.items)
            self.cached_item_count += prepared.report.cached_item_count
        elif method == GENERATE:
            generated = pb.GenerateResponse.FromString(message)
            self.token_count += len(generated.delta.token_ids)
            self.item_count += len(generated.header.items)
            self.cached_item_count += generated.completion.report.cached_item_count
        else:
            self.token_count += pb.CountTokensResponse.FromString(message).token_count


async def _ask(
    channel: grpc.aio.Channel, ask: Ask, timeout_seconds: float, metadata: tuple[tuple[str, str], ...], answer: _Answer
) -> None:
    """Send a request and fill in the answer; cancelling it cancels the call.

    Every method is called as one that streams both ways: on the wire a single response is a stream of one message.
    """
    call: Any = channel.stream_stream(ask.method)(
        iter(ask.messages),  # type: ignore[arg-type]
        timeout=timeout_seconds,
        metadata=(*metadata, *ask.metadata),
    )
    try:
        async for message in call:
            answer.add(ask.method, message)
    except grpc.aio.AioRpcError as error:
        failure = failure_of(error)
        answer.outcome, answer.code = failure.reason or failure.code.name, failure.code.name
        answer.failure = failure
        if failure.message == _STATUS_LOST_MESSAGE:
            answer.outcome = STATUS_LOST
        answer.retry_after_seconds = failure.retry_after_seconds or 0.0
        return
    finally:
        call.cancel()
    answer.code, answer.outcome = "OK", ANSWERED
    if answer.check is not None:
        answer.outcome = ask.right_outcome if answer.check.result() == ask.right_outcome else WRONG
