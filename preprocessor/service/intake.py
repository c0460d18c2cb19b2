"""The messages of an upload: the spec first, then chunks, from so many callers at a time.

Three clocks run meanwhile, all of them only while the caller is waited for: no silence may be long, the whole must come at
some least rate, and the call has its deadline. Only so many calls are read from at a time, as what a message holds is in
memory before anybody can look at it; of the others gRPC's flow control lets in one window. While others wait for their turn,
whoever sends slowly gives way: a few who drip must not keep everybody else out.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar

from preprocessor.config import WireSettings
from preprocessor.errors import DeadlineExceeded, InvalidRequest, Overloaded
from preprocessor.service.quotas import current_caller
from preprocessor.v1 import preprocessor_pb2 as pb

RequestMessage = TypeVar("RequestMessage", pb.PrepareRequest, pb.GenerateRequest)

# Asked of an upload while others wait for their turn.
_CROWDED_SECONDS = 2.0
_CROWDED_RATE = 256 << 10  # bytes a second
_LOOK_SECONDS = 0.25


class Intake:
    """Gives callers their turn to upload."""

    def __init__(
        self, wire: WireSettings, count: int | None = None, *, crowded_seconds: float = _CROWDED_SECONDS
    ) -> None:
        """`count` callers have their turn at a time, by default as many as the settings say."""
        self._wire = wire
        self._count = count or wire.max_upload_count
        self._crowded_seconds = crowded_seconds
        self._turns = asyncio.Semaphore(self._count)
        self._waiting_count = 0
        self._looking: asyncio.TimerHandle | None = None
        self._uploads: set[Upload[Any]] = set()

    @contextlib.asynccontextmanager
    async def upload(self, requests: AsyncIterator[RequestMessage]) -> AsyncIterator[Upload[RequestMessage]]:
        """One call's upload, when its turn has come; others wait until it is left, or has ended.

        Raises:
            Overloaded: `UPLOADS_FULL`: its turn did not come.
        """
        await self._take_turn()
        with contextlib.ExitStack() as turn:
            turn.callback(self._turns.release)
            upload = Upload(requests, self._wire, turn, self._crowded_seconds)
            self._uploads.add(upload)
            turn.callback(self._uploads.discard, upload)
            yield upload

    async def _take_turn(self) -> None:
        if not self._turns.locked():
            await self._turns.acquire()
            return
        self._waiting_count += 1
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._hurry)
        try:
            async with asyncio.timeout(self._wire.upload_idle_seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise Overloaded(
                f"{self._count} other callers upload already; try again, or another replica",
                reason="UPLOADS_FULL",
            ) from None
        finally:
            self._waiting_count -= 1

    def _hurry(self) -> None:
        """While somebody waits, have the slow give way, the slowest first."""
        self._looking = None
        if not self._waiting_count:
            return
        slow = sorted((upload for upload in self._uploads if upload.lag_seconds > 0), key=lambda one: -one.lag_seconds)
        for upload in slow[: self._waiting_count]:
            upload.give_way()
        self._looking = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._hurry)


class Upload(Generic[RequestMessage]):
    """The messages of one call as they come."""

    def __init__(
        self,
        requests: AsyncIterator[RequestMessage],
        wire: WireSettings,
        turn: contextlib.ExitStack,
        crowded_seconds: float,
    ) -> None:
        self._requests: AsyncIterator[RequestMessage] = requests
        self._wire = wire
        self._turn = turn
        self._crowded_seconds = crowded_seconds
        self._waited_seconds = 0.0
        self._received_bytes = 0
        self._asked_at_seconds: float | None = None
        self._clock: asyncio.Timeout | None = None
        self._gives_way = False

    @property
    def lag_seconds(self) -> float:
        """How far it is behind the rate that is asked of it while others wait; below 0 it is ahead, or not waited for."""
        if self._asked_at_seconds is None:
            return -math.inf
        waited_seconds = self._waited_seconds + time.monotonic() - self._asked_at_seconds
        return waited_seconds - self._crowded_seconds - self._received_bytes / _CROWDED_RATE

    def give_way(self) -> None:
        """End it in favour of those who wait."""
        if self._clock is not None and not self._clock.expired():
            self._gives_way = True
            self._clock.reschedule(asyncio.get_running_loop().time())

    async def spec(self) -> RequestMessage:
        """The first message, which must be a spec.

        Raises:
            InvalidRequest: `SPEC_MISSING`, `MALFORMED_MESSAGE`.
            DeadlineExceeded: `UPLOAD_IDLE`.
        """
        first = await self._next()
        if first is None or first.WhichOneof("message") != "spec":
            raise InvalidRequest("the first message must be the spec", reason="SPEC_MISSING")
        return first

    async def only(self) -> Any:
        """The one message of a method that takes no more.

        Raises:
            InvalidRequest: `MALFORMED_MESSAGE`: there is none, or it is none.
            DeadlineExceeded: As `chunk`.
        """
        message = await self._next()
        if message is None:
            raise InvalidRequest("the stream ended without the method's message", reason="MALFORMED_MESSAGE")
        return message

    async def chunk(self) -> pb.MediaChunk | None:
        """The next chunk, or None at the end of the caller's stream.

        Raises:
            InvalidRequest: `SPEC_REPEATED`, `MALFORMED_MESSAGE`.
            DeadlineExceeded: `UPLOAD_IDLE` where the caller falls silent, `UPLOAD_TOO_SLOW` where it dawdles.
        """
        message = await self._next()
        if message is None:
            return None
        if message.WhichOneof("message") != "chunk":
            raise InvalidRequest("only the first message is a spec; the rest are chunks", reason="SPEC_REPEATED")
        return message.chunk

    def end(self) -> None:
        """Nothing more is read: it is the next caller's turn."""
        self._turn.close()

    async def _next(self) -> RequestMessage | None:
        wire = self._wire
        left_seconds = wire.upload_idle_seconds + self._received_bytes / wire.min_upload_rate - self._waited_seconds
        began_at_seconds = time.monotonic()
        self._asked_at_seconds = began_at_seconds
        try:
            async with asyncio.timeout(min(wire.upload_idle_seconds, left_seconds)) as self._clock:
                message = await anext(self._requests, None)
        except TimeoutError:
            if self._gives_way:
                raise DeadlineExceeded(
                    f"{self._received_bytes} bytes came in {self._waited_seconds + time.monotonic() - began_at_seconds:.0f} "
                    "seconds, and others wait to upload; send faster, in smaller chunks, or try again later",
                    reason="UPLOAD_TOO_SLOW",
                ) from None
            if left_seconds < wire.upload_idle_seconds:
                raise DeadlineExceeded(
                    f"{self._received_bytes} bytes came in {self._waited_seconds + left_seconds:.0f} seconds; send at least "
                    f"{wire.min_upload_rate} a second",
                    reason="UPLOAD_TOO_SLOW",
                ) from None
            raise DeadlineExceeded(
                f"nothing arrived for {wire.upload_idle_seconds:g} seconds; keep sending, or close the stream",
                reason="UPLOAD_IDLE",
            ) from None
        finally:
            self._asked_at_seconds = self._clock = None
        self._waited_seconds += time.monotonic() - began_at_seconds
        if message is not None:
            size_bytes = message.ByteSize()
            self._received_bytes += size_bytes
            current_caller().add_bytes(size_bytes)
        return message
