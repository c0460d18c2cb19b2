"""Objects of stores, through fsspec."""

from __future__ import annotations

from collections.abc import AsyncIterator

import fsspec
import pytest
import pytest_asyncio

from preprocessor.config import SettingError
from preprocessor.errors import PreprocessorError
from preprocessor.service.fetch.fetcher import Fetcher
from preprocessor.service.status import status_of
from tests.service.hosts import Collected, fetch, fetching, reason

BODY = bytes(range(256)) * 10_000
SECRET = b"what is not to be read"


@pytest_asyncio.fixture
async def store() -> AsyncIterator[Fetcher]:
    """A fetcher of a store in memory, a real file system of fsspec's."""
    system = fsspec.filesystem("memory")
    for path, data in (("/bucket/clips/a.mp4", BODY), ("/bucket/secret", SECRET), ("/bucket/clips-too/b", SECRET)):
        system.pipe(path, data)
    async with fetching(hosts="", ports="80", stores="memory://bucket/clips") as one:
        yield one
    system.rm("/bucket", recursive=True)


async def test_an_object_below_the_store_comes_whole(store: Fetcher) -> None:
    sink = Collected()
    await store.fetch("memory://bucket/clips/a.mp4", "clip", sink)
    assert (sink.data, sink.announced_bytes) == (BODY, len(BODY))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memory://bucket/secret", "PATH_NOT_ALLOWED"),
        ("memory://bucket/clips/../secret", "PATH_NOT_ALLOWED"),
        ("memory://bucket/clips/./a.mp4", "PATH_NOT_ALLOWED"),
        ("memory://bucket/clips-too/b", "PATH_NOT_ALLOWED"),
        ("memory://bucket/clips", "PATH_NOT_ALLOWED"),
        ("memory:bucket/clips/a.mp4", "PATH_NOT_ALLOWED"),
        ("MEMORY://bucket/clips/a.mp4", "PATH_NOT_ALLOWED"),
        ("memory://bucket/clips/a.mp4::file:///etc/passwd", "INVALID_URL"),
        ("memory://bucket/clips/a\n.mp4", "INVALID_URL"),
        ("memory://bucket/clips/nothing", "FETCH_NOT_FOUND"),
        ("memory://bucket/clips/", "FETCH_NOT_FOUND"),
        ("simplecache::memory://bucket/clips/a.mp4", "FETCH_DISABLED"),
        ("s3://bucket/clips/a.mp4", "FETCH_DISABLED"),
        ("file:///etc/passwd", "FETCH_DISABLED"),
    ],
)
async def test_urls_outside_the_configured_stores_are_refused(store: Fetcher, url: str, expected: str) -> None:
    assert await reason(store, url) == expected


class DriverError(Exception):
    """Of a driver's own kind."""


def breaks_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "_open", broken)


@pytest.mark.parametrize("name", [None, "botocore.exceptions.BotoCoreError", "gcsfs.retry.HttpError"])
async def test_a_store_s_failure_is_reported_and_logged_with_its_traceback(
    store: Fetcher, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    kind: type[Exception] = PermissionError
    if name is not None:
        module, _, of_driver = name.rpartition(".")
        known = type(of_driver, (Exception,), {"__module__": module})
        kind = type("Refused", (known,), {})
    breaks_with(kind("a secret of the driver's"), monkeypatch)
    with pytest.raises(PreprocessorError) as caught:
        await fetch(store, "memory://bucket/clips/a.mp4")
    assert caught.value.reason == "FETCH_UNREACHABLE"
    assert "in broken" in caught.value.trace
    assert "secret" not in caught.value.message + caught.value.trace


@pytest.mark.parametrize("kind", [DriverError, TypeError])
async def test_a_fault_in_a_store_s_driver_is_not_reported_as_the_store_s(
    store: Fetcher, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    breaks_with(kind("a secret of the driver's"), monkeypatch)
    with pytest.raises(kind) as caught:
        await fetch(store, "memory://bucket/clips/a.mp4")
    assert status_of(caught.value)[1] == "INTERNAL"


@pytest.mark.parametrize(
    "stores",
    ["file:///srv", "https://host/x", "local://srv", "bucket/clips", "s3://", "s3:/bucket", "no-such-kind://bucket/"],
)
async def test_an_unusable_store_is_refused_at_startup(stores: str) -> None:
    with pytest.raises(SettingError, match="--fetch-stores"):
        async with fetching(hosts="", ports="80", stores=stores):
            pass
