"""Shared memory that an engine on the same host reads from, so that tensors need not be sent.

One large named region holds the tensors of all requests; an engine is told of it once, and a request says only where in
it a tensor lies. Triton opens the region by its key, a file name in `/dev/shm`, so both need the same `/dev/shm`: one
machine, or one `emptyDir` of medium Memory mounted there in both containers. The key has 128 random bits, so an engine
that can open it sees this very file and not one of the same name on another host.

    region = OwnedRegion.create(4 << 30)                  # or SharedRegion(key, mapping) around a mapping of your own
    patches = np.frombuffer(region.buffer, np.uint8, 64 << 20).reshape(-1, 1536)
    engine = TritonEngine("triton:8001", shared_region=region)

A region is sparse: untouched pages take no memory, and touched ones are kept until the region is removed. All of its size must
fit nevertheless: a write beyond what `/dev/shm` can hold ends the process with SIGBUS.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

KEY_PREFIX = "/vlm-preprocessor-"
"""Of regions made here; no others are ever removed."""
DIRECTORY = Path("/dev/shm")  # where glibc's shm_open keeps its files, Triton's too


class SharedRegion:
    """A named region that is mapped in this process.

    Args:
        key: As `shm_open` takes it: a slash and a file name, with enough randomness to be unique among hosts.
        buffer: The mapping, from the region's first byte to its last; it must stay mapped while the region is in use.
    Raises:
        ValueError: the key is not of that form, or the buffer is empty.
    """

    def __init__(self, key: str, buffer: mmap.mmap) -> None:
        if not key.startswith("/") or "/" in key[1:] or len(key) < 2:
            raise ValueError(f"key is {key!r}; shm_open takes a slash and then a name without one")
        view = np.frombuffer(buffer, np.uint8)
        if not view.size:
            raise ValueError(f"the buffer of {key} is empty")
        self.key = key
        self.buffer = buffer
        self.byte_size = view.size
        # Not the view itself: an exported buffer could not be closed.
        self._address: int = view.__array_interface__["data"][0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.key!r}, {self.byte_size} bytes)"

    def offset_of(self, array: np.ndarray[Any, Any]) -> int | None:
        """Where `array` begins, in bytes from the region's start.

        Returns:
            None unless all of the array lies in this process's mapping, in C order and little-endian: the form in which
            an engine reads it.
        """
        if not array.flags.c_contiguous or array.dtype.newbyteorder("<") != array.dtype or not array.nbytes:
            return None
        address: int = array.__array_interface__["data"][0]
        offset = address - self._address
        return offset if offset >= 0 and offset + array.nbytes <= self.byte_size else None


class OwnedRegion(SharedRegion):
    """A region that this process made and removes; also a context manager.

    While it lives it holds a lock on its file, by which `remove_abandoned_regions` of a later process tells that the
    owner is gone.
    """

    def __init__(self, key: str, buffer: mmap.mmap, descriptor: int) -> None:
        super().__init__(key, buffer)
        self._descriptor: int | None = descriptor

    @classmethod
    def create(cls, byte_size: int, *, mode: int = 0o600, prefix: str = KEY_PREFIX, is_allocated: bool = False) -> Self:
        """Make a region.

        Args:
            byte_size: At least 1; rounded up to whole pages.
            mode: Of its file. An engine that runs as another user needs to read and write it: Triton maps it so.
            prefix: Of its key; begins with `KEY_PREFIX`.
            is_allocated: Allocate its memory now, not where it is first written.
        Raises:
            OSError: it cannot be made; ENOSPC where `/dev/shm` has less room than that.
        """
        byte_size = -(-byte_size // mmap.PAGESIZE) * mmap.PAGESIZE
        space = os.statvfs(DIRECTORY)
        free_bytes = space.f_bavail * space.f_frsize
        if byte_size > free_bytes:
            raise OSError(errno.ENOSPC, f"{DIRECTORY} has {free_bytes} bytes left; the region needs {byte_size}")
        key = prefix + secrets.token_hex(16)
        descriptor = _create_locked(_path_of(key), mode)
        try:
            os.ftruncate(descriptor, byte_size)
            if is_allocated:
                os.posix_fallocate(descriptor, 0, byte_size)
            return cls(key, mmap.mmap(descriptor, byte_size), descriptor)
        except BaseException:
            _path_of(key).unlink(missing_ok=True)
            os.close(descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the name, so that the memory goes with the last mapping: the engine's and that of arrays still alive.

        Closing twice is fine.
        """
        if self._descriptor is None:
            return
        _path_of(self.key).unlink(missing_ok=True)
        os.close(self._descriptor)  # the lock goes with it
        self._descriptor = None
        with contextlib.suppress(BufferError):  # arrays still lie in it; it goes with the last of them
            self.buffer.close()


def remove_abandoned_regions() -> list[str]:
    """Remove the files of regions whose owner ended without closing them; a service calls it when it starts.

    A file may have more names, hard links that begin with its own (`engine_client.vllm.links`), which keep its memory. All are
    removed under one lock, so that of two sweeps at the same time neither leaves a name to the other.

    Returns:
        Their keys, one of each file.
    """
    names: dict[int, list[str]] = {}
    for path in sorted(DIRECTORY.glob(KEY_PREFIX[1:] + "*")):
        with contextlib.suppress(FileNotFoundError):
            names.setdefault(path.stat().st_ino, []).append("/" + path.name)
    return [keys[0] for keys in names.values() if is_abandoned(keys[0], remove=keys)]


def is_abandoned(key: str, *, remove: Sequence[str] = ()) -> bool:
    """Whether nobody owns that region any more: its file is gone, or no process holds its lock.

    Args:
        key: Of a region made by `OwnedRegion.create`; False for any other, whose owners hold no such lock.
        remove: Names of the file to remove in that case, in the form of a key.
    """
    if not key.startswith(KEY_PREFIX):
        return False
    path = _path_of(key)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except PermissionError:
        return False  # another user's: not ours to judge
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in remove:
            _path_of(name).unlink(missing_ok=True)
        return True
    except (
        BlockingIOError,
        PermissionError,
    ):  # somebody has it, or another user must remove it: the directory is sticky
        return False
    finally:
        os.close(descriptor)


def _path_of(key: str) -> Path:
    return DIRECTORY / key[1:]


def _create_locked(path: Path, mode: int) -> int:
    """Make the file and hold its lock; between the two, `remove_abandoned_regions` may remove it, and then it is made again."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        os.fchmod(descriptor, mode)  # whatever the umask says
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)
