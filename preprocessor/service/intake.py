"""Receiving a request: the spec first, then every announced file in contiguous chunks.

Three clocks run meanwhile, all of them only while the caller is waited for: no silence may be long, the whole must come at
some least rate, and the call has its deadline. Only so many calls are read from at a time, as what a message holds is in
memory before anybody can look at it; of the others gRPC's flow control lets in one window.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Generic, TypeVar

from preprocessor.config import Limits, WireSettings
from preprocessor.errors import DeadlineExceeded, InvalidRequest, LimitExceeded, Overloaded
from preprocessor.service.gate import current_caller
from preprocessor.service.reading import Sources
from preprocessor.service.tensors import MAX_CHUNK_BYTES
from preprocessor.types import Modality, PreparationRequest
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.workers.claim import Claim

RequestMessage = TypeVar("RequestMessage", pb.PrepareRequest, pb.GenerateRequest)


class Intake:
    """Gives callers their turn to upload."""

    def __init__(self, wire: WireSettings, limits: Limits) -> None:
        self._wire = wire
        self._limits = limits
        self._turns = asyncio.Semaphore(wire.max_upload_count)

    @contextlib.asynccontextmanager
    async def upload(self, requests: AsyncIterator[RequestMessage]) -> AsyncIterator[Upload[RequestMessage]]:
        """One call's upload, when its turn has come; others wait as long as it lasts.

        Raises:
            Overloaded: `UPLOADS_FULL`: its turn did not come.
        """
        try:
            async with asyncio.timeout(self._wire.upload_idle_seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise Overloaded(
                f"{self._wire.max_upload_count} other callers upload already; try again, or another replica",
                reason="UPLOADS_FULL",
            ) from None
        try:
            yield Upload(requests, self._wire, self._limits)
        finally:
            self._turns.release()


class Upload(Generic[RequestMessage]):
    """The messages of one call as they come."""

    def __init__(self, requests: AsyncIterator[RequestMessage], wire: WireSettings, limits: Limits) -> None:
        self._requests: AsyncIterator[RequestMessage] = requests
        self._wire = wire
        self._limits = limits
        self._waited_seconds = 0.0
        self._received_bytes = 0

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

    async def media(self, request: PreparationRequest, sources: Sources, claim: Claim) -> PreparationRequest:
        """The request with every file stored where workers can read it. Chunks of several files may interleave.

        Raises:
            InvalidRequest: `CHUNK_OUT_OF_ORDER`, `UNKNOWN_MEDIA_KEY`, `UPLOAD_INCOMPLETE`, `SPEC_REPEATED`, `MALFORMED_MESSAGE`.
            LimitExceeded: `CHUNK_TOO_LARGE`, `MEDIA_TOO_LARGE`, `REQUEST_TOO_LARGE`.
            DeadlineExceeded: `UPLOAD_IDLE` where the caller falls silent, `UPLOAD_TOO_SLOW` where it dawdles.
            Overloaded: `MEMORY_BUDGET_FULL`, `SHARED_MEMORY_FULL`.
        """
        inline = {medium.key: bytes(medium.data) for medium in request.media if medium.data}
        total_bytes = sum(map(len, inline.values()))
        _check_request_size(total_bytes, self._limits)
        claim.expect_upload(total_bytes)
        files = {key: await claim.store([data]) for key, data in inline.items()}
        incoming = {
            medium.key: _File(medium.key, _most_bytes(medium.modality, self._limits))
            for medium in request.media
            if medium.key in sources.chunked
        }
        while any(not file.is_complete for file in incoming.values()):
            chunk = await self._next_chunk(incoming)
            file = incoming[chunk.key]
            file.add(chunk)
            total_bytes += len(chunk.data)
            _check_request_size(total_bytes, self._limits)
            claim.expect_upload(len(chunk.data))
            if file.is_complete:
                files[file.key] = await claim.store(file.chunks)
        return sources.fill(request, files)

    async def _next_chunk(self, incoming: Mapping[str, _File]) -> pb.MediaChunk:
        message = await self._next()
        if message is None:
            missing = sorted(key for key, file in incoming.items() if not file.is_complete)
            raise InvalidRequest(
                f"the upload ended before the last chunk of {', '.join(missing)}; send every file whole",
                reason="UPLOAD_INCOMPLETE",
            )
        if message.WhichOneof("message") != "chunk":
            raise InvalidRequest("only the first message is a spec; the rest are chunks", reason="SPEC_REPEATED")
        if message.chunk.key not in incoming:
            raise InvalidRequest(
                f"a chunk names {message.chunk.key!r}, which the spec does not announce as chunked",
                reason="UNKNOWN_MEDIA_KEY",
            )
        return message.chunk

    async def _next(self) -> RequestMessage | None:
        """The next message, or None at the end of the caller's stream."""
        wire = self._wire
        left_seconds = wire.upload_idle_seconds + self._received_bytes / wire.min_upload_rate - self._waited_seconds
        began_at_seconds = time.monotonic()
        try:
            async with asyncio.timeout(min(wire.upload_idle_seconds, left_seconds)):
                message = await anext(self._requests, None)
        except TimeoutError:
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
        self._waited_seconds += time.monotonic() - began_at_seconds
        if message is not None:
            size_bytes = message.ByteSize()
            self._received_bytes += size_bytes
            current_caller().add_bytes(size_bytes)
        return message


class _File:
    """One file as it arrives."""

    def __init__(self, key: str, most_bytes: int) -> None:
        self.key = key
        self._most_bytes = most_bytes
        self.chunks: list[bytes] = []
        self.size_bytes = 0
        self.is_complete = False

    def add(self, chunk: pb.MediaChunk) -> None:
        if len(chunk.data) > MAX_CHUNK_BYTES:
            raise LimitExceeded(
                f"{self.key}: a chunk of {len(chunk.data)} bytes; at most {MAX_CHUNK_BYTES} are accepted",
                reason="CHUNK_TOO_LARGE",
                media_key=self.key,
            )
        if self.is_complete or chunk.offset_bytes != self.size_bytes:
            raise InvalidRequest(
                f"{self.key}: a chunk at offset {chunk.offset_bytes} where "
                + ("the file was complete" if self.is_complete else f"{self.size_bytes} was due"),
                reason="CHUNK_OUT_OF_ORDER",
                media_key=self.key,
            )
        if not chunk.data and not chunk.last:
            raise InvalidRequest(
                f"{self.key}: an empty chunk that is not the last", reason="EMPTY_CHUNK", media_key=self.key
            )
        self.chunks.append(chunk.data)
        self.size_bytes += len(chunk.data)
        self.is_complete = chunk.last
        if self.size_bytes > self._most_bytes:
            raise LimitExceeded(
                f"{self.key}: more than {self._most_bytes} bytes; send a smaller file",
                reason="MEDIA_TOO_LARGE",
                media_key=self.key,
            )


def _most_bytes(modality: Modality, limits: Limits) -> int:
    is_image = modality is Modality.IMAGE
    return min(limits.max_media_bytes, limits.max_image_bytes) if is_image else limits.max_media_bytes


def _check_request_size(total_bytes: int, limits: Limits) -> None:
    if total_bytes > limits.max_request_bytes:
        raise LimitExceeded(
            f"the media of one request may have {limits.max_request_bytes} bytes together", reason="REQUEST_TOO_LARGE"
        )
