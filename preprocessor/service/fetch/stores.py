"""Object stores (s3://, gs://, …), through fsspec, with the credentials that its driver finds in this service's environment.

A URL must be below a configured store, because files are read with the service's own credentials. fsspec and its drivers are
imported only if a store is configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from preprocessor.config import SettingError
from preprocessor.errors import FetchFailed, InvalidRequest, trace_of
from preprocessor.service.fetch.sink import Sink
from preprocessor.service.fetch.urls import MAX_URL_LENGTH, invalid_url

_STORE_ERRORS = frozenset(
    {
        *("botocore.exceptions.BotoCoreError", "botocore.exceptions.ClientError"),  # s3fs
        *("gcsfs.retry.HttpError", "google.auth.exceptions.GoogleAuthError"),
        "azure.core.exceptions.AzureError",  # adlfs
        "aiohttp.client_exceptions.ClientError",  # of all three
    }
)
"""Exceptions, beside OSError, for a store that is unreachable or refuses; by name, because drivers are optional."""

_PIECE_BYTES = 1 << 20
_THREADS = 8


class StoreSource:
    """Reads objects.

    Args:
        stores: URLs below which objects may be read, such as s3://bucket/clips/.
    """

    def __init__(self, stores: Sequence[str]) -> None:
        self._stores = tuple(store.rstrip("/") + "/" for store in stores)
        self.schemes = frozenset(store.partition(":")[0] for store in stores)
        self._systems = {scheme: _file_system(scheme) for scheme in self.schemes}
        # A thread cannot be stopped; if a driver hangs, its own timeouts must end the call.
        self._threads = ThreadPoolExecutor(_THREADS, "read-store")

    async def fetch(self, url: str, key: str, sink: Sink) -> None:
        """See `Source`."""
        if (
            len(url) > MAX_URL_LENGTH or not url.isprintable() or "::" in url
        ):  # fsspec parses :: as chained file systems
            raise invalid_url(key, "an object's URL has printable characters and no ::")
        if {".", ".."} & {*url.split("/")} or not url.startswith(self._stores):
            raise InvalidRequest(
                f"{key}: objects are read only below {' or '.join(self._stores)}",
                reason="PATH_NOT_ALLOWED",
                field="media[].url",
                media_key=key,
            )
        system = self._systems[url.partition(":")[0]]
        file = await self._run(key, system.open, url, "rb", block_size=_PIECE_BYTES, cache_type="none")
        with contextlib.closing(file):
            if isinstance(size_bytes := getattr(file, "size", None), int):
                sink.announce(size_bytes)
            while data := await self._run(key, file.read, _PIECE_BYTES):
                await sink.write(data)

    async def close(self) -> None:
        """See `Source`."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, key: str, call: Any, *arguments: Any, **options: Any) -> Any:
        """Run a blocking call in a thread.

        Raises:
            FetchFailed: `FETCH_NOT_FOUND`, or `FETCH_UNREACHABLE` for known errors of the store.
            Exception: Other errors of the driver, which are internal errors.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, lambda: call(*arguments, **options))
        except FileNotFoundError as error:
            raise FetchFailed(
                f"{key}: the store has no such object", reason="FETCH_NOT_FOUND", media_key=key
            ) from error
        except Exception as error:  # drivers have their own exception classes
            if not _is_store_error(error):
                raise
            failure = FetchFailed(
                f"{key}: the store did not return the object", reason="FETCH_UNREACHABLE", media_key=key
            )
            failure.trace = trace_of(error)
            raise failure from error


def _is_store_error(error: Exception) -> bool:
    """Whether the error comes from the store rather than from the driver's code."""
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}
    return isinstance(error, OSError) or not names.isdisjoint(_STORE_ERRORS)


def _file_system(scheme: str) -> Any:
    """fsspec's file system for a scheme.

    Raises:
        SettingError: fsspec, or its driver for the scheme, is not installed.
    """
    try:
        return importlib.import_module("fsspec").filesystem(scheme)
    except (ImportError, ValueError) as error:  # ValueError: no driver for this scheme
        raise SettingError(
            "--fetch-stores", f"{scheme}://", f"a store whose fsspec driver is installed ({error})"
        ) from error
