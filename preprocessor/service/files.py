"""Stores the files of a request where workers can read them, whether sent inline or in chunks, fetched by URL, or kept."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import Any

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest, LimitExceeded, MediaNotCached
from preprocessor.service.calls import Call
from preprocessor.service.concurrency import run_concurrently
from preprocessor.service.fetch.fetcher import Fetcher
from preprocessor.service.reading import Sources
from preprocessor.service.upload_stream import Upload
from preprocessor.types.request import FileData, Media, PreparationRequest
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.tensors import MAX_CHUNK_BYTES
from preprocessor.workers.resources import RequestResources
from preprocessor.workers.upload_buffer import UploadBuffer

_FETCHES_PER_REQUEST = 8  # at once, so that one request does not use all fetches, nor overload its host


async def store_inline(
    request: PreparationRequest, sources: Sources, limits: Limits, resources: RequestResources
) -> PreparationRequest:
    """The request with the inline files stored, and those that are here already; all others are still empty.

    Comes first and never waits: until then the inline files occupy memory that no budget counts. Files that are to follow are
    refused here, before a byte of them is sent or fetched, if the sizes in the spec exceed a limit or the free memory.

    Raises:
        InvalidRequest: `SIZE_MISMATCH`.
        LimitExceeded: `MEDIA_TOO_LARGE`, `REQUEST_TOO_LARGE`.
        Overloaded: `MEMORY_BUDGET_FULL`.
        MediaNotCached: A file that the spec only names is not here.
    """
    inline = {medium.key: medium.data for medium in request.media if medium.data}
    cached = _cached_files(request, sources, resources)
    total = FilesTotal(limits)
    total.add(sum(map(len, (*inline.values(), *cached.values()))))
    inline_bytes = sum(map(len, inline.values()))
    following = {key: size for key, size in sources.sizes.items() if key in sources.chunked or key in sources.urls}
    for medium in request.media:
        size_bytes = following.get(medium.key, len(cached.get(medium.key, b"")))
        if size_bytes < 0:
            raise InvalidRequest(
                f"{medium.key}: {size_bytes} bytes",
                reason="SIZE_MISMATCH",
                field="media[].size_bytes",
                media_key=medium.key,
            )
        _check_size(medium, size_bytes, limits)
    total.check(sum(following.values()))
    resources.check_memory(inline_bytes + sum(following.values()))
    stored = await run_concurrently(*(_store(data, resources) for data in inline.values()))
    return sources.fill(request, dict(zip(inline, stored, strict=True)) | cached)


def begin_early(
    request: PreparationRequest,
    sources: Sources,
    limits: Limits,
    resources: RequestResources,
    received: Mapping[str, memoryview],
) -> None:
    """Let idle workers begin while the rest of the files arrive, for the request that `store_inline` returned.

    Args:
        received: As in `receive_files`.
    """
    keys = (sources.chunked | sources.urls.keys()) - received.keys()
    if keys:
        resources.begin_early(keys, lambda files: sources.fill(request, {**received, **files}), limits)


async def receive_files(
    request: PreparationRequest,
    sources: Sources,
    upload: Upload[Any],
    limits: Limits,
    fetcher: Fetcher,
    call: Call,
    received: Mapping[str, memoryview],
) -> PreparationRequest:
    """The request that `store_inline` returned, with all other files stored. Chunks are received while URLs are fetched.

    Args:
        received: Media key → file, of media that the spec announces as chunked and that have arrived before it.
    Raises:
        InvalidRequest: `CHUNK_OUT_OF_ORDER`, `UNKNOWN_MEDIA_KEY`, `UPLOAD_INCOMPLETE`, `SIZE_MISMATCH`, or as `Upload.chunk`.
        LimitExceeded: `CHUNK_TOO_LARGE`, `MEDIA_TOO_LARGE`, `REQUEST_TOO_LARGE`.
        DeadlineExceeded: As `Upload.chunk`.
        Overloaded: `MEMORY_BUDGET_FULL`.
        Whatever `Fetcher.fetch` raises.
    """
    sources = dataclasses.replace(sources, chunked=sources.chunked - received.keys())
    files = {medium.key: medium.data for medium in request.media if medium.data} | dict(received)
    media: Mapping[str, Media] = {medium.key: medium for medium in request.media}
    for key, file in received.items():
        _check_size(media[key], len(file), limits)
    total = FilesTotal(limits)
    total.add(sum(len(data) for key, data in files.items() if key not in sources.same_file))
    if not sources.urls:
        files |= await _receive_chunks(upload, media, sources, total, call.resources)
        return _filled(request, sources, files)

    async def receive() -> dict[str, memoryview]:
        chunked = await _receive_chunks(upload, media, sources, total, call.resources)
        upload.end()
        return chunked

    for some in await run_concurrently(receive(), _fetch_files(media, sources, total, fetcher, call)):
        files |= some
    return _filled(request, sources, files)


def _cached_files(request: PreparationRequest, sources: Sources, resources: RequestResources) -> dict[str, memoryview]:
    """Media key → file, of the media that the spec only names."""
    found: dict[str, memoryview | None] = {}
    for medium in request.media:
        if medium.key not in sources.cached:
            continue
        if medium.content_sha256 is not None:
            found[medium.key] = resources.cached_file(medium.content_sha256)
        elif medium.uuid is not None:
            found[medium.key] = resources.named_file(medium.uuid, request.cache_salt)
    missing = [key for key, file in found.items() if file is None]
    if missing:
        raise MediaNotCached(f"{', '.join(missing)}: not here, or no more; send the file", media_key=missing[0])
    return {key: file for key, file in found.items() if file is not None}


def _filled(request: PreparationRequest, sources: Sources, files: Mapping[str, FileData]) -> PreparationRequest:
    """The request with every file in its medium, after checking the sizes that the spec states."""
    filled = sources.fill(request, files)
    for medium in filled.media:
        stated_bytes = sources.sizes.get(medium.key, len(medium.data))
        if stated_bytes != len(medium.data):
            raise _other_size(medium.key, stated_bytes, str(len(medium.data)))
    return filled


async def _receive_chunks(
    upload: Upload[Any], media: Mapping[str, Media], sources: Sources, total: FilesTotal, resources: RequestResources
) -> dict[str, memoryview]:
    """Media key → file, of the media sent in chunks. Chunks of several files may alternate."""
    files: dict[str, memoryview] = {}
    receivers = {key: FileReceiver(media[key], total, resources, sources.sizes.get(key)) for key in sources.chunked}
    while len(files) < len(receivers):
        chunk = await upload.chunk()
        if chunk is None:
            missing = sorted(receivers.keys() - files.keys())
            raise InvalidRequest(
                f"the upload ended before the last chunk of {', '.join(missing)}; send every file whole",
                reason="UPLOAD_INCOMPLETE",
            )
        if chunk.key not in receivers:
            raise InvalidRequest(
                f"a chunk names {chunk.key!r}, which the spec does not announce as chunked",
                reason="UNKNOWN_MEDIA_KEY",
                field="chunk.key",
            )
        receiver = receivers[chunk.key]
        _check_chunk(chunk, receiver.file.size_bytes, is_complete=chunk.key in files)
        if chunk.last:
            receiver.end_after(chunk.data)
        await receiver.write(chunk.data)
        if chunk.last:
            files[chunk.key] = await receiver.file.finish()
    return files


async def _fetch_files(
    media: Mapping[str, Media], sources: Sources, total: FilesTotal, fetcher: Fetcher, call: Call
) -> dict[str, memoryview]:
    """Media key → file, of the media given by URL."""
    places = asyncio.Semaphore(_FETCHES_PER_REQUEST)

    async def fetch(key: str, url: str) -> memoryview:
        receiver = FileReceiver(media[key], total, call.resources, sources.sizes.get(key))
        async with places:
            await fetcher.fetch(url, key, receiver)
        return await receiver.file.finish()

    with call.timings.stage("fetch"):
        fetched = await run_concurrently(*(fetch(key, url) for key, url in sources.urls.items()))
    return dict(zip(sources.urls, fetched, strict=True))


class FilesTotal:
    """Bytes of all files of one request."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.size_bytes = 0

    def add(self, size_bytes: int) -> None:
        self.size_bytes += size_bytes
        self.check(0)

    def check(self, more_bytes: int) -> None:
        """Raises:
        LimitExceeded: `REQUEST_TOO_LARGE` if this many more bytes would be too many.
        """
        if self.size_bytes + more_bytes > self.limits.max_request_bytes:
            raise LimitExceeded(
                f"the media of one request may have {self.limits.max_request_bytes} bytes together",
                reason="REQUEST_TOO_LARGE",
            )


class FileReceiver:
    """One file while it arrives; a `fetch.sink.Sink`."""

    def __init__(self, medium: Media, total: FilesTotal, resources: RequestResources, stated_bytes: int | None) -> None:
        self.file = UploadBuffer(resources)
        resources.watch_upload(medium.key, self.file)
        self._resources = resources
        self._medium = medium
        self._total = total
        self._stated_bytes = stated_bytes
        if stated_bytes is not None:
            self.file.announce(stated_bytes)

    def announce(self, size_bytes: int) -> None:
        if self._stated_bytes not in (None, size_bytes):
            raise _other_size(self._medium.key, self._stated_bytes, str(size_bytes))
        _check_size(self._medium, size_bytes, self._total.limits)
        self._total.check(size_bytes - self.file.size_bytes)
        self.file.announce(size_bytes)

    def end_after(self, data: bytes) -> None:
        """Note that the file ends after these bytes, which `write` is to get next."""
        self.announce(self.file.size_bytes + len(data))

    async def write(self, data: bytes) -> None:
        size_bytes = self.file.size_bytes + len(data)
        _check_size(self._medium, size_bytes, self._total.limits)
        if self._stated_bytes is not None and size_bytes > self._stated_bytes:
            raise _other_size(self._medium.key, self._stated_bytes, "more")
        self._total.add(len(data))
        await self.file.write(data)
        self._resources.note_arrival()


def _check_size(medium: Media, size_bytes: int, limits: Limits) -> None:
    """Raises:
    LimitExceeded: `MEDIA_TOO_LARGE` if a file of this size is too large.
    """
    max_bytes = limits.max_file_bytes(medium.modality)
    if size_bytes > max_bytes:
        raise LimitExceeded(
            f"{medium.key}: more than {max_bytes} bytes; send a smaller file",
            reason="MEDIA_TOO_LARGE",
            media_key=medium.key,
        )


def _other_size(key: str, stated_bytes: int | None, come: str) -> InvalidRequest:
    return InvalidRequest(
        f"{key}: the spec states {stated_bytes} bytes, and the file has {come}",
        reason="SIZE_MISMATCH",
        field="media[].size_bytes",
        media_key=key,
    )


def _check_chunk(chunk: pb.MediaChunk, due_bytes: int, *, is_complete: bool) -> None:
    if len(chunk.data) > MAX_CHUNK_BYTES:
        raise LimitExceeded(
            f"{chunk.key}: a chunk of {len(chunk.data)} bytes; at most {MAX_CHUNK_BYTES} are accepted",
            reason="CHUNK_TOO_LARGE",
            field="chunk.data",
            media_key=chunk.key,
        )
    if is_complete or chunk.offset_bytes != due_bytes:
        raise InvalidRequest(
            f"{chunk.key}: a chunk at offset {chunk.offset_bytes} where "
            + ("the file was complete" if is_complete else f"{due_bytes} was expected"),
            reason="CHUNK_OUT_OF_ORDER",
            field="chunk.offset_bytes",
            media_key=chunk.key,
        )
    if not chunk.data and not chunk.last:
        raise InvalidRequest(
            f"{chunk.key}: an empty chunk that is not the last",
            reason="EMPTY_CHUNK",
            field="chunk.data",
            media_key=chunk.key,
        )


async def _store(data: FileData, resources: RequestResources) -> memoryview:
    file = UploadBuffer(resources)
    file.announce(len(data))
    await file.write(data)
    return await file.finish()
