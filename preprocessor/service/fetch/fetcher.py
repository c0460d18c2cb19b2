"""Fetching by URL: the source of each scheme, a limit on concurrent fetches, and metrics."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from aiohttp.abc import AbstractResolver
from prometheus_client import Counter

from preprocessor.config import FetchSettings
from preprocessor.config.fetch import split_list
from preprocessor.errors import FetchFailed, InvalidRequest, Overloaded
from preprocessor.service.fetch.files import FileSource
from preprocessor.service.fetch.sink import Sink, Source
from preprocessor.service.fetch.stores import StoreSource
from preprocessor.service.fetch.web import WebSource
from preprocessor.service.metrics import Metrics

_MAX_WAITING_PER_FETCH = 32  # a bound far beyond what the deadlines allow


class Fetcher:
    """Fetches files by URL, if the settings allow it. An async context manager.

    Args:
        resolver: See `WebSource`.
    """

    def __init__(self, settings: FetchSettings, metrics: Metrics, resolver: AbstractResolver | None = None) -> None:
        self._settings = settings
        self._metrics = metrics
        self._resolver = resolver
        self._sources: dict[str, Source] = {}
        self._slots = asyncio.Semaphore(settings.max_at_once)
        self._waiting_count = 0

    async def __aenter__(self) -> Self:
        """Create the configured sources.

        Raises:
            SettingError: A configured directory, store or file does not exist or cannot be used.
        """
        settings = self._settings
        if roots := split_list(settings.roots):
            self._sources["file"] = FileSource(roots)
        if stores := split_list(settings.stores):
            source = StoreSource(stores)
            self._sources.update(dict.fromkeys(source.schemes, source))
        if settings.hosts:
            self._sources["http"] = self._sources["https"] = WebSource(settings, self._resolver)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for source in {id(source): source for source in self._sources.values()}.values():
            await source.close()

    def check(self, url: str, key: str) -> None:
        """Refuse a URL whose scheme is not enabled, before anything is received.

        Raises:
            InvalidRequest: `FETCH_DISABLED`.
        """
        if _scheme_of(url) not in self._sources:
            raise InvalidRequest(
                f"{key}: this service fetches {' and '.join(sorted(self._sources)) or 'nothing by URL'}; upload the file",
                reason="FETCH_DISABLED",
                field="media[].url",
                media_key=key,
            )

    async def fetch(self, url: str, key: str, sink: Sink) -> None:
        """Fetch a URL's file into a sink.

        Raises:
            InvalidRequest: `FETCH_DISABLED`, `INVALID_URL`, `HOST_NOT_ALLOWED`, `PORT_NOT_ALLOWED`, `ADDRESS_NOT_ALLOWED`,
                `PATH_NOT_ALLOWED`.
            FetchFailed: `FETCH_STATUS`, `FETCH_UNREACHABLE`, `FETCH_TLS`, `FETCH_TIMEOUT`, `FETCH_INCOMPLETE`,
                `FETCH_ENCODED`, `FETCH_NOT_FOUND`, `TOO_MANY_REDIRECTS`, `BAD_ANSWER`.
            Overloaded: `FETCH_QUEUE_FULL`.
            Whatever the sink raises.
        """
        self.check(url, key)
        scheme = _scheme_of(url)
        async with self._slot():
            counted = _CountedSink(sink, key, self._metrics.fetched_bytes.labels(scheme))
            with self._metrics.time_fetch(scheme):
                try:
                    async with asyncio.timeout(self._settings.total_seconds):
                        await self._sources[scheme].fetch(url, key, counted)
                except TimeoutError as error:
                    raise FetchFailed(
                        f"{key}: the host took too long to connect, to respond or to send the whole file; "
                        f"{self._settings.total_seconds:g} seconds are allowed in total",
                        reason="FETCH_TIMEOUT",
                        media_key=key,
                    ) from error
                counted.check_complete()

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """One of the `max_at_once` concurrent fetches, in the order of arrival."""
        if self._waiting_count >= self._settings.max_at_once * _MAX_WAITING_PER_FETCH:
            raise Overloaded(
                f"{self._waiting_count} files are waiting to be fetched; try again, or on another replica",
                reason="FETCH_QUEUE_FULL",
            )
        self._waiting_count += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting_count -= 1
        try:
            yield
        finally:
            self._slots.release()


class _CountedSink:
    """Counts bytes, and checks that they match the announced size."""

    def __init__(self, sink: Sink, key: str, counter: Counter) -> None:
        self._sink = sink
        self._key = key
        self._counter = counter
        self._announced_bytes: int | None = None
        self._size_bytes = 0

    def announce(self, size_bytes: int) -> None:
        self._announced_bytes = size_bytes
        self._sink.announce(size_bytes)

    async def write(self, data: bytes) -> None:
        self._size_bytes += len(data)
        self._counter.inc(len(data))
        if self._announced_bytes is not None and self._size_bytes > self._announced_bytes:
            raise self._size_differs()
        await self._sink.write(data)

    def check_complete(self) -> None:
        """Raises:
        FetchFailed: `FETCH_INCOMPLETE`.
        """
        if self._announced_bytes not in (None, self._size_bytes):
            raise self._size_differs()

    def _size_differs(self) -> FetchFailed:
        return FetchFailed(
            f"{self._key}: {self._announced_bytes} bytes were announced and {self._size_bytes} received; try again",
            reason="FETCH_INCOMPLETE",
            media_key=self._key,
        )


def _scheme_of(url: str) -> str:
    return url.partition(":")[0].lower()
