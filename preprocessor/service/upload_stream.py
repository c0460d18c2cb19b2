"""Receives the messages of uploads: the spec first, then chunks. Limits how many calls upload at the same time.

The limit bounds memory: a message is in memory before anything can check it. From a call that waits for a slot, gRPC's flow
control accepts one window.

Three limits apply to the time that is spent waiting for a caller's messages: the longest silence, the lowest average rate, and
the call's deadline. While other calls wait for a slot, slow uploads are ended in their favour. Of the calls that wait, those of
the connection go first whose uploads have held slots for the shortest time lately. So neither callers that trickle bytes nor
callers that send large files without end can block everyone.
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

# While others wait for a slot, or have just been refused for lack of memory, an upload may be this far behind this rate.
_GRACE_SECONDS = 2.0
_CONTENDED_RATE = 1 << 20  # bytes per second
_CONTENDED_SECONDS = 2.0  # after a refusal for lack of memory
_ENDED_FOR_REFUSED = 4  # slow uploads to end at once after such a refusal
_CHECK_SECONDS = 0.25
_HALF_LIFE_SECONDS = 10.0  # of the time that a connection's uploads have held slots
_MAX_REMEMBERED = 4096


class UploadStream:
    """Hands out slots, each of which lets one call upload."""

    def __init__(self, wire: WireSettings, count: int | None = None, *, grace_seconds: float = _GRACE_SECONDS) -> None:
        """
        Args:
            count: Number of slots; that of the settings where None.
            grace_seconds: How far an upload may be behind the rate that is required while others wait.
        """
        self._wire = wire
        self._count = count or wire.max_upload_count
        self._grace_seconds = grace_seconds
        self._free_count = self._count
        # A heap, ordered by the time that the connection has held slots, then by arrival.
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._held_seconds: dict[str, tuple[float, float]] = {}  # connection → slot-seconds as of when, and when
        self._check: asyncio.TimerHandle | None = None
        self._uploads: set[Upload[Any]] = set()
        self._contended_until_seconds = 0.0

    @contextlib.asynccontextmanager
    async def upload(self, requests: AsyncIterator[RequestMessage], peer: str) -> AsyncIterator[Upload[RequestMessage]]:
        """One call's upload, once there is a slot for it. The slot is released on exit, or by `Upload.end`.

        Args:
            peer: The connection of the call.
        Raises:
            Overloaded: `UPLOADS_FULL`: no slot became free in time.
        """
        await self._acquire_slot(peer)
        acquired_at_seconds = time.monotonic()
        with contextlib.ExitStack() as slot:
            slot.callback(self._release_slot)
            upload = Upload(requests, self._wire, slot, self._grace_seconds)
            self._uploads.add(upload)
            slot.callback(self._close, upload, peer, acquired_at_seconds)
            try:
                yield upload
            except Overloaded:  # for lack of memory, which other uploads occupy
                self._contended_until_seconds = time.monotonic() + _CONTENDED_SECONDS
                self._check_soon()
                raise

    async def _acquire_slot(self, peer: str) -> None:
        if self._free_count:
            self._free_count -= 1
            return
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (self._slot_seconds(peer), next(self._numbers), slot))
        self._check_soon()
        try:
            async with asyncio.timeout(self._wire.upload_idle_seconds):
                await slot
        except BaseException as error:
            if slot.done() and not slot.cancelled():
                self._release_slot()
            if not isinstance(error, TimeoutError):
                raise
            raise Overloaded(
                f"{self._count} other calls are uploading; try again, or another replica", reason="UPLOADS_FULL"
            ) from None

    def _release_slot(self) -> None:
        while self._waiting:
            slot = heapq.heappop(self._waiting)[2]
            if not slot.done():
                slot.set_result(None)
                return
        self._free_count += 1

    def _slot_seconds(self, peer: str) -> float:
        """For how long the connection's uploads have held slots; what is `_HALF_LIFE_SECONDS` old counts half."""
        held_seconds, at_seconds = self._held_seconds.get(peer, (0.0, 0.0))
        return held_seconds * math.exp2((at_seconds - time.monotonic()) / _HALF_LIFE_SECONDS)

    def _close(self, upload: Upload[Any], peer: str, acquired_at_seconds: float) -> None:
        self._uploads.discard(upload)
        now = time.monotonic()
        held_seconds = self._slot_seconds(peer) + now - acquired_at_seconds
        self._held_seconds.pop(peer, None)
        if len(self._held_seconds) >= _MAX_REMEMBERED:
            self._held_seconds.pop(next(iter(self._held_seconds)))
        self._held_seconds[peer] = held_seconds, now

    def _check_soon(self) -> None:
        if self._check is None:
            self._check = asyncio.get_running_loop().call_later(_CHECK_SECONDS, self._end_slow_uploads)

    def _end_slow_uploads(self) -> None:
        """While calls wait for a slot, or one was just refused for lack of memory, end as many slow uploads, slowest first."""
        self._check = None
        wanted_count = sum(not slot.done() for _, _, slot in self._waiting)
        if time.monotonic() < self._contended_until_seconds:
            wanted_count = max(wanted_count, _ENDED_FOR_REFUSED)
        if not wanted_count:
            return
        slow = sorted((upload for upload in self._uploads if upload.lag_seconds > 0), key=lambda one: -one.lag_seconds)
        for upload in slow[:wanted_count]:
            upload.preempt()
        self._check_soon()


class Upload(Generic[RequestMessage]):
    """The messages of one call, as they arrive."""

    def __init__(
        self,
        requests: AsyncIterator[RequestMessage],
        wire: WireSettings,
        slot: contextlib.ExitStack,
        grace_seconds: float,
    ) -> None:
        self._requests: AsyncIterator[RequestMessage] = requests
        self._wire = wire
        self._slot = slot
        self._grace_seconds = grace_seconds
        self._waited_seconds = 0.0
        self._received_bytes = 0
        self._waiting_since_seconds: float | None = None
        self._timeout: asyncio.Timeout | None = None
        self._is_preempted = False

    @property
    def delay_seconds(self) -> float:
        """How much longer its messages took than at the rate that is required while others wait."""
        return self._waited_seconds - self._received_bytes / _CONTENDED_RATE

    @property
    def lag_seconds(self) -> float:
        """How far it is too late at that rate, the grace included; negative if it is not, or if no message is awaited."""
        if self._waiting_since_seconds is None:
            return -math.inf
        return self.delay_seconds + time.monotonic() - self._waiting_since_seconds - self._grace_seconds

    def preempt(self) -> None:
        """End the upload with `UPLOAD_TOO_SLOW`, in favour of calls that wait."""
        if self._timeout is not None and not self._timeout.expired():
            self._is_preempted = True
            self._timeout.reschedule(asyncio.get_running_loop().time())

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
        """The request of a method that takes a single one.

        Raises:
            InvalidRequest: `MALFORMED_MESSAGE`: there is none, or it cannot be parsed.
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
            DeadlineExceeded: `UPLOAD_IDLE` if nothing arrives for too long, `UPLOAD_TOO_SLOW` if the average rate is too low.
        """
        message = await self._next()
        if message is None:
            return None
        if message.WhichOneof("message") != "chunk":
            raise InvalidRequest("only the first message is a spec; the rest are chunks", reason="SPEC_REPEATED")
        return message.chunk

    def end(self) -> None:
        """Release the slot; nothing more is to be read."""
        self._slot.close()

    async def _next(self) -> RequestMessage | None:
        wire = self._wire
        left_seconds = wire.upload_idle_seconds + self._received_bytes / wire.min_upload_rate - self._waited_seconds
        began_at_seconds = time.monotonic()
        self._waiting_since_seconds = began_at_seconds
        try:
            async with asyncio.timeout(min(wire.upload_idle_seconds, left_seconds)) as self._timeout:
                message = await anext(self._requests, None)
        except TimeoutError:
            if self._is_preempted:
                raise DeadlineExceeded(
                    f"{self._received_bytes} bytes arrived in "
                    f"{self._waited_seconds + time.monotonic() - began_at_seconds:.1f} seconds while others wait to upload; "
                    "send faster, in smaller chunks, or try again later",
                    reason="UPLOAD_TOO_SLOW",
                ) from None
            if left_seconds < wire.upload_idle_seconds:
                raise DeadlineExceeded(
                    f"{self._received_bytes} bytes arrived in {self._waited_seconds + left_seconds:.0f} seconds; send at least "
                    f"{wire.min_upload_rate} per second",
                    reason="UPLOAD_TOO_SLOW",
                ) from None
            raise DeadlineExceeded(
                f"nothing arrived for {wire.upload_idle_seconds:g} seconds; keep sending, or close the stream",
                reason="UPLOAD_IDLE",
            ) from None
        finally:
            self._waiting_since_seconds = self._timeout = None
            self._waited_seconds += time.monotonic() - began_at_seconds
        if message is not None:
            size_bytes = message.ByteSize()
            self._received_bytes += size_bytes
            current_caller().add_bytes(size_bytes)
        return message
