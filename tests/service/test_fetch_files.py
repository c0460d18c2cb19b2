"""`file:` URLs below configured roots, for files of every kind."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from preprocessor.config import SettingError
from preprocessor.errors import InvalidRequest, PreprocessorError
from preprocessor.service.fetch.fetcher import Fetcher
from tests.service.hosts import Collected, fetch, fetching, reason
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
