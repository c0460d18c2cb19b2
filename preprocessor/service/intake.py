"""Receiving a request: the spec first, then every announced file in contiguous chunks, while others are fetched by URL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import TypeVar

from google.protobuf.message import DecodeError

from preprocessor.config import Limits, ServeSettings
from preprocessor.errors import DeadlineExceeded, InvalidRequest, LimitExceeded
from preprocessor.service.calls import Call
from preprocessor.service.fetch.fetcher import Fetcher
from preprocessor.service.reading import Sources
from preprocessor.service.tensors import MAX_CHUNK_BYTES
from preprocessor.types.asked import Media, Modality, PreparationRequest
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.workers.claim import Claim
from preprocessor.workers.incoming import IncomingFile

_FETCHES_A_REQUEST = 8  # at once: one request leaves room for others, and is gentle to its host

RequestMessage = TypeVar("RequestMessage", pb.PrepareRequest, pb.GenerateRequest)


async def receive_spec(requests: AsyncIterator[RequestMessage], idle_seconds: float) -> RequestMessage:
    """The first message, which must be a spec.

    Raises:
        InvalidRequest: `SPEC_MISSING`, `MALFORMED_MESSAGE`.
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
    settings: ServeSettings,
    fetcher: Fetcher,
    call: Call,
) -> PreparationRequest:
    """The request with every file stored where workers can read it. Files come by both ways at the same time.

    Raises:
        InvalidRequest: `CHUNK_OUT_OF_ORDER`, `UNKNOWN_MEDIA_KEY`, `UPLOAD_INCOMPLETE`, `SPEC_REPEATED`.
        LimitExceeded: `CHUNK_TOO_LARGE`, `MEDIA_TOO_LARGE`, `REQUEST_TOO_LARGE`.
        DeadlineExceeded: `UPLOAD_IDLE` where the caller falls silent.
        Overloaded: `MEMORY_BUDGET_FULL`, `SHARED_MEMORY_FULL`.
        Whatever `Fetcher.fetch` raises.
    """
    for key, url in sources.urls.items():
        fetcher.check(url, key)
    inline = {medium.key: bytes(medium.data) for medium in request.media if medium.data}
    total, claim, idle_seconds = _Total(settings.limits), call.claim, settings.upload_idle_seconds
    total.add(sum(map(len, inline.values())))
    files = {key: await _store(data, claim) for key, data in inline.items()}
    if not sources.urls:
        return sources.fill(request, files | await _receive_chunks(requests, sources, total, idle_seconds, claim))
    failure: BaseException | None = None
    try:
        async with asyncio.TaskGroup() as group:
            fetching = group.create_task(_fetch_files(request, sources, total, fetcher, call))
            files |= await _receive_chunks(requests, sources, total, idle_seconds, claim)
    except BaseExceptionGroup as failures:  # the first ends the others
        failure = _first(failures)
    if failure is not None:
        raise failure
    return sources.fill(request, files | fetching.result())


async def _receive_chunks(
    requests: AsyncIterator[RequestMessage], sources: Sources, total: _Total, idle_seconds: float, claim: Claim
) -> dict[str, bytes]:
    """Media key → file, of those that follow in chunks. Chunks of several files may interleave."""
    files: dict[str, bytes] = {}
    uploads = {key: _Upload(key, IncomingFile(claim)) for key in sources.chunked}
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
        upload = uploads[chunk.key]
        upload.check(chunk, total.limits)
        total.add(len(chunk.data))
        await upload.add(chunk)
        if upload.is_complete:
            files[chunk.key] = await upload.file.finish()
    return files


async def _fetch_files(
    request: PreparationRequest,
    sources: Sources,
    total: _Total,
    fetcher: Fetcher,
    call: Call,
) -> dict[str, bytes]:
    """Media key → file, of those that are named by URL."""
    places = asyncio.Semaphore(_FETCHES_A_REQUEST)
    media: Mapping[str, Media] = {medium.key: medium for medium in request.media}

    async def fetch(key: str, url: str) -> bytes:
        arrival = _Arrival(media[key], total, call.claim)
        async with places:
            await fetcher.fetch(url, key, arrival)
        return await arrival.file.finish()

    with call.timings.stage("fetch"):
        async with asyncio.TaskGroup() as group:
            tasks = {key: group.create_task(fetch(key, url)) for key, url in sources.urls.items()}
    return {key: task.result() for key, task in tasks.items()}


class _Total:
    """Bytes of all files of one request, however they come."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.size_bytes = 0

    def add(self, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        self.check(0)

    def check(self, more_bytes: int) -> None:
        """Raises:
        LimitExceeded: `REQUEST_TOO_LARGE` with this much more.
        """
        if self.size_bytes + more_bytes > self.limits.max_request_bytes:
            raise LimitExceeded(
                f"the media of one request may have {self.limits.max_request_bytes} bytes together",
                reason="REQUEST_TOO_LARGE",
            )


class _Arrival:
    """One file as it is fetched; a `fetch.sink.Sink`."""

    def __init__(self, medium: Media, total: _Total, claim: Claim) -> None:
        limits = total.limits
        self.file = IncomingFile(claim)
        self._key = medium.key
        self._total = total
        self._max_bytes = limits.max_media_bytes
        if medium.modality is Modality.IMAGE:
            self._max_bytes = min(limits.max_media_bytes, limits.max_image_bytes)

    def announce(self, size_bytes: int) -> None:
        self._check(size_bytes)
        self._total.check(size_bytes)
        self.file.announce(size_bytes)

    async def write(self, data: bytes) -> None:
        self._check(self.file.size_bytes + len(data))
        self._total.add(len(data))
        await self.file.write(data)

    def _check(self, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            raise _too_large(self._key, self._max_bytes)


class _Upload:
    """One file as it arrives."""

    def __init__(self, key: str, file: IncomingFile) -> None:
        self.key = key
        self.file = file
        self.is_complete = False

    def check(self, chunk: pb.MediaChunk, limits: Limits) -> None:
        if len(chunk.data) > MAX_CHUNK_BYTES:
            raise LimitExceeded(
                f"{self.key}: a chunk of {len(chunk.data)} bytes; at most {MAX_CHUNK_BYTES} are accepted",
                reason="CHUNK_TOO_LARGE",
                media_key=self.key,
            )
        if self.is_complete or chunk.offset_bytes != self.file.size_bytes:
            raise InvalidRequest(
                f"{self.key}: a chunk at offset {chunk.offset_bytes} where "
                + ("the file was complete" if self.is_complete else f"{self.file.size_bytes} was due"),
                reason="CHUNK_OUT_OF_ORDER",
                media_key=self.key,
            )
        if not chunk.data and not chunk.last:
            raise InvalidRequest(
                f"{self.key}: an empty chunk that is not the last", reason="EMPTY_CHUNK", media_key=self.key
            )
        if self.file.size_bytes + len(chunk.data) > limits.max_media_bytes:
            raise _too_large(self.key, limits.max_media_bytes)

    async def add(self, chunk: pb.MediaChunk) -> None:
        await self.file.write(chunk.data)
        self.is_complete = chunk.last


async def _next(requests: AsyncIterator[RequestMessage], idle_seconds: float) -> RequestMessage | None:
    """The next message, or None at the end of the caller's stream."""
    try:
        async with asyncio.timeout(idle_seconds):
            return await anext(requests, None)
    except DecodeError as error:
        raise InvalidRequest(
            "a message cannot be read; send preprocessor.v1 messages, strings in UTF-8", reason="MALFORMED_MESSAGE"
        ) from error
    except TimeoutError:
        raise DeadlineExceeded(
            f"nothing arrived for {idle_seconds:g} seconds; keep sending, or close the stream", reason="UPLOAD_IDLE"
        ) from None


async def _store(data: bytes, claim: Claim) -> bytes:
    file = IncomingFile(claim)
    await file.write(data)
    return await file.finish()


def _too_large(key: str, max_bytes: int) -> LimitExceeded:
    return LimitExceeded(
        f"{key}: more than {max_bytes} bytes; send a smaller file", reason="MEDIA_TOO_LARGE", media_key=key
    )


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that ended a group; where several came at once, the first of them."""
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
