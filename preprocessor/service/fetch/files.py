"""`file:` URLs, below configured directories.

A symbolic link or a rename may change what a path names between check and use. So checks are made on an open handle: the file
is opened with `O_PATH`, which accesses no device and blocks on no pipe; the kernel reports the handle's type and location; and
that same handle is read. Symbolic links are followed if their target is below a root.
"""

from __future__ import annotations

import asyncio
import io
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote_to_bytes

from preprocessor.config import SettingError
from preprocessor.errors import FetchFailed, InvalidRequest
from preprocessor.service.fetch.sink import Sink
from preprocessor.service.fetch.urls import MAX_URL_LENGTH, invalid_url

_PIECE_BYTES = 1 << 20
_OPEN_FILES = Path("/proc/self/fd")  # proc(5): the open files of this process
_THREADS = 4


class FileSource:
    """Reads files of this host.

    Args:
        roots: Directories below which files may be read; links in these paths are resolved once, here.
    """

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = tuple(_directory(root) for root in roots)
        self._threads = ThreadPoolExecutor(_THREADS, "read-file")

    async def fetch(self, url: str, key: str, sink: Sink) -> None:
        """See `Source`."""
        path = _path_of(url, key)
        loop = asyncio.get_running_loop()
        opening = loop.run_in_executor(self._threads, self._open, path, key)
        try:
            file, size_bytes = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise
        reading = None
        try:
            sink.announce(size_bytes)
            while True:
                reading = loop.run_in_executor(self._threads, file.read, _PIECE_BYTES)
                if not (data := await asyncio.shield(reading)):
                    return
                await sink.write(data)
        finally:
            if reading is None or reading.done():
                file.close()
            else:
                reading.add_done_callback(lambda _: file.close())  # a thread is still reading it

    async def close(self) -> None:
        """See `Source`."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _open(self, path: bytes, key: str) -> tuple[io.FileIO, int]:
        """Open a regular file below a root; returns it with its size in bytes."""
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            raise self._refused(key) from None
        try:
            opened = _OPEN_FILES / str(handle)
            place, state = opened.readlink(), os.fstat(handle)
            if not any(place.is_relative_to(root) for root in self._roots) or not stat.S_ISREG(state.st_mode):
                raise self._refused(key)
            try:
                return opened.open("rb", buffering=0), state.st_size
            except OSError as error:
                raise FetchFailed(
                    f"{key}: the file cannot be read ({error.strerror})", reason="FETCH_UNREACHABLE", media_key=key
                ) from error
        finally:
            os.close(handle)

    def _refused(self, key: str) -> InvalidRequest:
        """The same error in all cases, so that callers cannot find out which files exist outside the roots."""
        return InvalidRequest(
            f"{key}: no file below {' or '.join(map(str, self._roots))} has this path",
            reason="PATH_NOT_ALLOWED",
            field="media[].url",
            media_key=key,
        )


def _directory(root: str) -> Path:
    if not _OPEN_FILES.is_dir():
        raise SettingError("--fetch-roots", root, "no directory on this system, which has no /proc/self/fd")
    path = Path(root).resolve()
    if not path.is_dir():
        raise SettingError("--fetch-roots", root, "a directory that exists")
    return path


def _path_of(url: str, key: str) -> bytes:
    """The path of `file:///path` or `file:/path`, percent-decoded once."""
    _, _, rest = url.partition(":")
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host not in ("", "localhost"):  # RFC 8089, 2
            raise invalid_url(key, "a file: URL names no host but localhost")
        rest = slash + path
    if not rest.startswith("/") or not rest.isascii() or len(rest) > MAX_URL_LENGTH or {*"?#\\"} & {*rest}:
        raise invalid_url(key, "write file:///path/of/the/file")
    path_bytes = unquote_to_bytes(rest)
    if b"\0" in path_bytes:
        raise invalid_url(key, "its path holds a zero byte")
    return path_bytes


def _close_opened(opening: asyncio.Future[tuple[io.FileIO, int]]) -> None:
    """Close a file that was opened for a cancelled call."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[0].close()
