"""`file:` URLs below configured roots, for files of every kind; and objects in stores."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import fsspec
import pytest
import pytest_asyncio

from preprocessor.config import SettingError
from preprocessor.errors import InvalidRequest, PreprocessorError
from preprocessor.service.fetch.fetcher import Fetcher
from preprocessor.service.status import status_of
from tests.service.hosts import Collected, fetch, fetching
from tests.waiting import eventually

BODY = bytes(range(256)) * 10_000
SECRET = b"what is not to be read"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a file in it, and a secret beside it."""
    root = tmp_path / "root"
    (root / "sub folder").mkdir(parents=True)
    (root / "clip.mp4").write_bytes(BODY)
    (root / "sub folder" / "ü.mp4").write_bytes(BODY)
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "root-too").mkdir()
    (tmp_path / "root-too" / "secret").write_bytes(SECRET)
    return root


@pytest_asyncio.fixture
async def fetcher(root: Path) -> AsyncIterator[Fetcher]:
    async with fetching(hosts="", ports="80", roots=str(root)) as one:
        yield one


async def reason(fetcher: Fetcher, url: str) -> str:
    with pytest.raises(PreprocessorError) as caught:
        await fetch(fetcher, url)
    assert caught.value.metadata["media_key"] == "clip"
    return caught.value.reason


@pytest.mark.parametrize(
    "form",
    [
        *(
            "file://{root}/clip.mp4",
            "file:{root}/clip.mp4",
            "file://localhost{root}/clip.mp4",
            "FILE://{root}/clip.mp4",
        ),
        *(
            "file://{root}/sub%20folder/%C3%BC.mp4",
            "file://{root}/sub%20folder/../clip.mp4",
            "file://{root}//./clip.mp4",
        ),
        "file://{root}/%63lip.mp4",
    ],
)
async def test_a_file_below_the_root_is_read_completely(fetcher: Fetcher, root: Path, form: str) -> None:
    sink = Collected()
    await fetcher.fetch(form.format(root=root), "clip", sink)
    assert (sink.data, sink.announced_bytes) == (BODY, len(BODY))


async def test_symbolic_links_are_followed_within_the_roots(fetcher: Fetcher, root: Path) -> None:
    (root / "near").symlink_to("sub folder/ü.mp4")
    (root / "around").symlink_to(root.parent / "root" / "near")
    (root / "folder").symlink_to("sub folder")
    for path in ("near", "around", "folder/ü.mp4".replace("ü", "%C3%BC")):
        assert await fetch(fetcher, f"file://{root}/{path}") == BODY


async def test_a_root_may_be_a_symbolic_link(root: Path) -> None:
    (root.parent / "link").symlink_to(root)
    async with fetching(hosts="", ports="80", roots=f"{root.parent / 'link'}, {root.parent / 'root-too'}") as fetcher:
        assert await fetch(fetcher, f"file://{root.parent}/link/clip.mp4") == BODY
        assert await fetch(fetcher, f"file://{root.parent}/root-too/secret") == SECRET
        assert await reason(fetcher, f"file://{root.parent}/secret") == "PATH_NOT_ALLOWED"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/../secret",
            "/%2e%2e/secret",
            "/sub%20folder/../../secret",
            "/..%2Fsecret",
            "-too/secret",
            "/../root-too/secret",
        ),
        *("/link", "/linked-folder/secret", "/chain", "/up/secret", "/loop", "/link/", "/hard/../../secret"),
        *(
            "",
            "/",
            "/sub%20folder",
            "/pipe",
            "/socket",
            "/zero",
            "/nowhere",
            "/clip.mp4/x",
            "/" + "a" * 5000,
            "/memory",
        ),
    ],
)
async def test_paths_outside_the_roots_and_non_files_get_the_same_error(
    fetcher: Fetcher, root: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "link").symlink_to("../secret")
    (root / "linked-folder").symlink_to(root.parent)
    (root / "chain").symlink_to("link")
    (root / "up").symlink_to("..")
    (root / "loop").symlink_to("loop")
    (root / "zero").symlink_to("/dev/zero")
    (root / "memory").symlink_to("/proc/self/environ")
    os.mkfifo(root / "pipe")
    monkeypatch.chdir(root)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        with pytest.raises(InvalidRequest) as refused:
            await fetch(fetcher, f"file://{root}{path}")
    assert (refused.value.reason, refused.value.message) == (
        "PATH_NOT_ALLOWED",
        f"clip: no file below {root} has this path",
    )


@pytest.mark.parametrize(
    "url",
    [
        *(
            "file://evil.com{root}/clip.mp4",
            "file:clip.mp4",
            "file:",
            "file://",
            "file:///clip%00.mp4",
            "file://{root}/clip.mp4?x",
        ),
        *(
            "file://{root}/clip.mp4#x",
            "file://{root}\\clip.mp4",
            "file://{root}/ü.mp4",
            "file://127.0.0.1{root}/clip.mp4",
        ),
    ],
)
async def test_an_invalid_file_url_is_refused(fetcher: Fetcher, root: Path, url: str) -> None:
    assert await reason(fetcher, url.format(root=root)) == "INVALID_URL"


async def test_a_link_that_keeps_changing_never_leads_outside_the_roots(fetcher: Fetcher, root: Path) -> None:
    """A thread keeps swapping an allowed link and a forbidden one, so a check of the path would be outdated at its use."""
    link, done = root / "swapped", threading.Event()

    def swap() -> None:
        turn = 0
        while not done.is_set():
            turn += 1
            (root / "new").symlink_to(("clip.mp4", "../secret")[turn % 2])
            (root / "new").replace(link)

    swapping = threading.Thread(target=swap)
    swapping.start()
    outcomes: set[str] = set()
    try:
        await eventually(link.is_symlink)
        for _ in range(2000):
            try:
                data = await fetch(fetcher, f"file://{link}")
                assert data == BODY
                outcomes.add("read")
            except InvalidRequest as error:
                outcomes.add(error.reason)
            if outcomes == {"read", "PATH_NOT_ALLOWED"} and _ > 300:
                break
    finally:
        done.set()
        swapping.join()
    assert outcomes == {"read", "PATH_NOT_ALLOWED"}, "both links were met, and one of them was followed"


@pytest.mark.parametrize("size_bytes", [1 << 20, 8 << 20])
async def test_a_file_that_grows_or_shrinks_while_it_is_read_is_refused(
    fetcher: Fetcher, root: Path, size_bytes: int
) -> None:
    path = root / "changing"
    path.write_bytes(bytes(4 << 20))

    class Changing(Collected):
        async def write(self, data: bytes) -> None:
            await super().write(data)
            os.truncate(path, size_bytes)

    sink = Changing()
    with pytest.raises(PreprocessorError) as caught:
        await fetcher.fetch(f"file://{path}", "clip", sink)
    assert caught.value.reason == "FETCH_INCOMPLETE"
    assert len(sink.data) <= (sink.announced_bytes or 0) == 4 << 20


async def test_a_file_whose_announced_size_is_refused_is_not_read(fetcher: Fetcher, root: Path) -> None:
    class TooLarge(Exception):
        pass

    class Small(Collected):
        def announce(self, size_bytes: int) -> None:
            raise TooLarge

    with (root / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    sink = Small()
    with pytest.raises(TooLarge):
        await fetcher.fetch(f"file://{root}/sparse", "clip", sink)
    assert sink.data == b""


async def test_cancelled_reads_leave_no_open_descriptors(fetcher: Fetcher, root: Path) -> None:
    def open_files() -> int:
        links = []
        for entry in Path("/proc/self/fd").iterdir():
            try:
                links.append(str(entry.readlink()))
            except FileNotFoundError:  # the descriptor of this very listing
                continue
        return sum(link.startswith(str(root)) for link in links)

    for turn in range(50):
        leaving = asyncio.create_task(fetch(fetcher, f"file://{root}/clip.mp4"))
        for _ in range(turn % 7):
            await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
    await eventually(lambda: open_files() == 0)


@pytest.mark.parametrize("roots", ["media", "/srv/none-such", "/etc/passwd"])
async def test_a_root_that_is_no_directory_is_refused_at_startup(roots: str) -> None:
    with pytest.raises(SettingError, match="--fetch-roots"):
        async with fetching(hosts="", ports="80", roots=roots):
            pass


# -- stores ------------------------------------------------------------------------------------------------------------


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
