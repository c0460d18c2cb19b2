"""The messages of an upload: the spec first, then chunks, from so many callers at a time.

Three clocks run meanwhile, all of them only while the caller is waited for: no silence may be long, the whole must come at
some least rate, and the call has its deadline. Only so many calls are read from at a time, as what a message holds is in
memory before anybody can look at it; of the others gRPC's flow control lets in one window. While others wait for their turn,
whoever sends slowly gives way, and comes behind the others when he calls again: a few who drip must not keep everybody out.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import math
import time
from collections.abc import AsyncIterator
from typing import Any, Generic, TypeVar

from preprocessor.config import WireSettings
from preprocessor.errors import DeadlineExceeded, InvalidRequest, Overloaded
from preprocessor.service.quotas import current_caller
from preprocessor.v1 import preprocessor_pb2 as pb

RequestMessage = TypeVar("RequestMessage", pb.PrepareRequest, pb.GenerateRequest, pb.CountTokensRequest)

# Asked of an upload while others wait for their turn, or are refused for lack of memory.
_CROWDED_SECONDS = 2.0
_CROWDED_RATE = 1 << 20  # bytes a second
_WANTED_BY_REFUSED = 4
_LOOK_SECONDS = 0.25
_REMEMBERED_SECONDS = 60.0
_MAX_REMEMBERED = 4096


class UploadStream:
    """Gives callers their turn to upload."""

    def __init__(
        self, wire: WireSettings, count: int | None = None, *, crowded_seconds: float = _CROWDED_SECONDS
    ) -> None:
        """`count` callers have their turn at a time, by default as many as the settings say."""
        self._wire = wire
        self._count = count or wire.max_upload_count
        self._crowded_seconds = crowded_seconds
        self._free_count = self._count
        self._waiting: list[
            tuple[float, int, asyncio.Future[None]]
        ] = []  # a heap: who has dawdled least, then who came first
        self._numbers = itertools.count()
        self._dawdled: dict[str, tuple[float, float]] = {}
        self._looking: asyncio.TimerHandle | None = None
        self._uploads: set[Upload[Any]] = set()
        self._crowded_until_seconds = 0.0

    @contextlib.asynccontextmanager
    async def upload(self, requests: AsyncIterator[RequestMessage], peer: str) -> AsyncIterator[Upload[RequestMessage]]:
        """One call's upload, when its turn has come; others wait until it is left, or has ended.

        Args:
            peer: The connection that it comes by.
        Raises:
            Overloaded: `UPLOADS_FULL`: its turn did not come.
        """
        await self._take_turn(peer)
        with contextlib.ExitStack() as turn:
            turn.callback(self._pass_turn)
            upload = Upload(requests, self._wire, turn, self._crowded_seconds)
            self._uploads.add(upload)
            turn.callback(self._close, upload, peer)
            try:
                yield upload
            except Overloaded:  # for lack of the memory that others fill
                self._crowded_until_seconds = time.monotonic() + _CROWDED_SECONDS
                self._look_soon()
                raise

    async def _take_turn(self, peer: str) -> None:
        if self._free_count:
            self._free_count -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        dawdled_seconds, at_seconds = self._dawdled.get(peer, (0.0, 0.0))
        if time.monotonic() - at_seconds > _REMEMBERED_SECONDS:
            dawdled_seconds = 0.0
        heapq.heappush(self._waiting, (dawdled_seconds, next(self._numbers), turn))
        self._look_soon()
        try:
            async with asyncio.timeout(self._wire.upload_idle_seconds):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._pass_turn()
            if not isinstance(error, TimeoutError):
                raise
            raise Overloaded(
                f"{self._count} other callers upload already; try again, or another replica", reason="UPLOADS_FULL"
            ) from None

    def _pass_turn(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._free_count += 1

    def _close(self, upload: Upload[Any], peer: str) -> None:
        self._uploads.discard(upload)
        if upload.dawdled_seconds <= 0:
            return
        if len(self._dawdled) >= _MAX_REMEMBERED:
            self._dawdled.pop(next(iter(self._dawdled)))
        before_seconds, _ = self._dawdled.pop(peer, (0.0, 0.0))
        self._dawdled[peer] = before_seconds + upload.dawdled_seconds, time.monotonic()

    def _look_soon(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._hurry)

    def _hurry(self) -> None:
        """While somebody waits, or was refused just now, have the slow give way, the slowest first."""
        self._looking = None
        wanted_count = sum(not turn.done() for _, _, turn in self._waiting)
        if time.monotonic() < self._crowded_until_seconds:
            wanted_count = max(wanted_count, _WANTED_BY_REFUSED)
        if not wanted_count:
            return
        slow = sorted((upload for upload in self._uploads if upload.lag_seconds > 0), key=lambda one: -one.lag_seconds)
        for upload in slow[:wanted_count]:
            upload.give_way()
        self._look_soon()


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
    def dawdled_seconds(self) -> float:
        """How much longer it was waited for than at the rate that is asked of it while others wait."""
        return self._waited_seconds - self._received_bytes / _CROWDED_RATE

    @property
    def lag_seconds(self) -> float:
        """How far it is behind the rate that is asked of it while others wait; below 0 it is ahead, or not waited for."""
        if self._asked_at_seconds is None:
            return -math.inf
        return self.dawdled_seconds + time.monotonic() - self._asked_at_seconds - self._crowded_seconds

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
                    f"{self._received_bytes} bytes came in {self._waited_seconds + time.monotonic() - began_at_seconds:.1f} "
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
