"""Receiving a request: the spec first, then every announced file in contiguous chunks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypeVar

from preprocessor.config import Limits
from preprocessor.errors import DeadlineExceeded, InvalidRequest, LimitExceeded
from preprocessor.service.reading import Sources
from preprocessor.service.tensors import MAX_CHUNK_BYTES
from preprocessor.types.asked import PreparationRequest
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.workers.claim import Claim

RequestMessage = TypeVar("RequestMessage", pb.PrepareRequest, pb.GenerateRequest)


async def receive_spec(requests: AsyncIterator[RequestMessage], idle_seconds: float) -> RequestMessage:
    """The first message, which must be a spec.

    Raises:
        InvalidRequest: `SPEC_MISSING`.
        DeadlineExceeded: `UPLOAD_IDLE`.
    """
    first = await _next(requests, idle_seconds)
    if first is None or first.WhichOneof("message") != "spec":
        raise InvalidRequest("the first message must be the spec", reason="SPEC_MISSING")
    return first


async def receive_media(
    requests: AsyncIterator[RequestMessage],
    request: PreparationRequest,
    sources: Sources,
    limits: Limits,
    idle_seconds: float,
    claim: Claim,
) -> PreparationRequest:
    """The request with every file stored where workers can read it. Chunks of several files may interleave.

    Raises:
        InvalidRequest: `CHUNK_OUT_OF_ORDER`, `UNKNOWN_MEDIA_KEY`, `UPLOAD_INCOMPLETE`, `SPEC_REPEATED`.
        LimitExceeded: `CHUNK_TOO_LARGE`, `MEDIA_TOO_LARGE`, `REQUEST_TOO_LARGE`.
        DeadlineExceeded: `UPLOAD_IDLE` where the caller falls silent.
        Overloaded: `MEMORY_BUDGET_FULL`, `SHARED_MEMORY_FULL`.
    """
    inline = {medium.key: bytes(medium.data) for medium in request.media if medium.data}
    total_bytes = sum(map(len, inline.values()))
    _check_request_size(total_bytes, limits)
    claim.expect_upload(total_bytes)
    files = {key: await claim.store([data]) for key, data in inline.items()}
    uploads = {key: _Upload(key) for key in sources.chunked}
    while any(not upload.is_complete for upload in uploads.values()):
        message = await _next(requests, idle_seconds)
        if message is None:
            missing = sorted(key for key, upload in uploads.items() if not upload.is_complete)
            raise InvalidRequest(
                f"the upload ended before the last chunk of {', '.join(missing)}; send every file whole",
                reason="UPLOAD_INCOMPLETE",
            )
        if message.WhichOneof("message") != "chunk":
            raise InvalidRequest("only the first message is a spec; the rest are chunks", reason="SPEC_REPEATED")
        chunk = message.chunk
        if chunk.key not in uploads:
            raise InvalidRequest(
                f"a chunk names {chunk.key!r}, which the spec does not announce as chunked", reason="UNKNOWN_MEDIA_KEY"
            )
        uploads[chunk.key].add(chunk, limits)
        total_bytes += len(chunk.data)
        _check_request_size(total_bytes, limits)
        claim.expect_upload(len(chunk.data))
        if uploads[chunk.key].is_complete:
            files[chunk.key] = await claim.store(uploads[chunk.key].chunks)
    return sources.fill(request, files)


class _Upload:
    """One file as it arrives."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.chunks: list[bytes] = []
        self.size_bytes = 0
        self.is_complete = False

    def add(self, chunk: pb.MediaChunk, limits: Limits) -> None:
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
        if self.size_bytes > limits.max_media_bytes:
            raise LimitExceeded(
                f"{self.key}: more than {limits.max_media_bytes} bytes; send a smaller file",
                reason="MEDIA_TOO_LARGE",
                media_key=self.key,
            )


async def _next(requests: AsyncIterator[RequestMessage], idle_seconds: float) -> RequestMessage | None:
    """The next message, or None at the end of the caller's stream."""
    try:
        async with asyncio.timeout(idle_seconds):
            return await anext(requests, None)
    except TimeoutError:
        raise DeadlineExceeded(
            f"nothing arrived for {idle_seconds:g} seconds; keep sending, or close the stream", reason="UPLOAD_IDLE"
        ) from None


def _check_request_size(total_bytes: int, limits: Limits) -> None:
    if total_bytes > limits.max_request_bytes:
        raise LimitExceeded(
            f"the media of one request may have {limits.max_request_bytes} bytes together", reason="REQUEST_TOO_LARGE"
        )
