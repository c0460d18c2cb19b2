"""Shared memory of a caller on this host, which rows are copied into in place of messages (`RowsRegion` in the proto).

It is the caller's: it may become smaller at any time. So nothing of it is mapped, which could end this process by SIGBUS; rows
are written with pwrite(2), which fails instead.

A caller names a file, and the service writes into it with its own rights. That must not let a caller change what it could not
change itself. So the caller tells what stands in the file, which proves that it can read it, and only files are taken that
everyone who can read may write. A file has one name, which begins like no other software's; symbolic links are not followed. Its
pages are allocated already: else those that the service touches first would count as memory of its own container, for as long as
the caller keeps them.
"""

from __future__ import annotations

import asyncio
import errno
import hmac
import os
import re
import stat
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt

from engine_client.shm import DIRECTORY
from preprocessor.errors import InvalidRequest, Overloaded, PreprocessorError
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.regions import ALIGNMENT_BYTES, NAME_PREFIX, SECRET_BYTES, place_tensors
from preprocessor.workers.resources import RequestResources

COPYING_THREADS = 4
"""More would not copy faster: memory is what they wait for."""

_NAME = re.compile(re.escape(NAME_PREFIX) + r"[A-Za-z0-9_.-]{1,128}")
_PIECE_BYTES = 8 << 20  # between two looks at whether to go on: about a millisecond
_BLOCK_BYTES = 512  # inode(7): the unit of st_blocks
_READ_BITS, _WRITE_BITS = 0o444, 0o222


class CallerRegion:
    """A range of a caller's shared memory, for one call.

    Args:
        descriptor: Of the file; closed when the call's resources are left and no thread writes any more.
        executor: Where rows are copied.
        resources: Of the call. Its memory is held as long as a thread reads it.
    """

    def __init__(
        self, descriptor: int, offset_bytes: int, size_bytes: int, executor: Executor, resources: RequestResources
    ) -> None:
        self._descriptor = descriptor
        self._offset_bytes = offset_bytes
        self._end_bytes = offset_bytes + size_bytes
        self._executor = executor
        self._resources = resources
        self._copying: asyncio.Future[float] | None = None
        self._is_closing = False
        resources.on_exit(self._close)

    def place(self, sizes_bytes: Mapping[int, int]) -> dict[int, int]:
        """Index of a tensor → offset of its first byte, from the beginning of the shared memory.

        Args:
            sizes_bytes: Index of a tensor → its size.
        Raises:
            InvalidRequest: `REGION_TOO_SMALL`.
        """
        offsets, end_bytes = place_tensors(sizes_bytes, self._offset_bytes)
        if end_bytes > self._end_bytes:
            needed_bytes = end_bytes - self._offset_bytes
            raise InvalidRequest(
                f"the rows of the answer take {needed_bytes} bytes, and the region has {self._end_bytes - self._offset_bytes}",
                reason="REGION_TOO_SMALL",
                field="rows_region.size_bytes",
                needed_bytes=str(needed_bytes),
            )
        return offsets

    async def write(self, rows: npt.NDArray[Any], offset_bytes: int) -> float:
        """Copy rows of an array in C order to an offset, on a thread; returns the milliseconds of CPU that it took.

        Raises:
            InvalidRequest: `REGION_TRUNCATED`.
            Overloaded: `SHARED_MEMORY_FULL`.
        """
        data = rows.view(np.uint8).data.cast("B")
        self._copying = copying = asyncio.get_running_loop().run_in_executor(
            self._executor, self._copy, data, offset_bytes
        )
        try:
            return await asyncio.shield(copying)
        except asyncio.CancelledError:
            if not copying.done():  # the thread reads rows, whose memory must not go to another request before it stops
                self._is_closing = True
                release = self._resources.retain()
                copying.add_done_callback(lambda _: release())
            raise

    def _copy(self, data: memoryview, offset_bytes: int) -> float:
        began_seconds = time.thread_time()
        while data and not self._is_closing:
            state = os.fstat(self._descriptor)
            if min(state.st_size, state.st_blocks * _BLOCK_BYTES) < self._end_bytes:
                raise _refused("has become smaller, or lost pages, since the call began", "REGION_TRUNCATED")
            try:
                written = os.pwrite(self._descriptor, data[:_PIECE_BYTES], offset_bytes)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise Overloaded(
                    "the region has lost pages, and /dev/shm has no space left for them",
                    reason="SHARED_MEMORY_FULL",
                ) from error
            data, offset_bytes = data[written:], offset_bytes + written
        return (time.thread_time() - began_seconds) * 1e3

    def _close(self) -> None:
        if self._copying is None or self._copying.done():
            os.close(self._descriptor)
        else:
            self._copying.add_done_callback(lambda _: os.close(self._descriptor))


def open_region(
    message: pb.RowsRegion, executor: Executor, resources: RequestResources, *, is_allowed: bool
) -> CallerRegion:
    """Open the region that a caller names.

    Args:
        is_allowed: Whether the settings allow it.
    Raises:
        InvalidRequest: `REGION_DISABLED`, `INVALID_REGION`, `REGION_NOT_FOUND`, `REGION_NOT_ALLOWED`.
    """
    if not is_allowed:
        raise _refused(
            "is not taken by this deployment (--caller-shared-memory); leave it out", "REGION_DISABLED", "rows_region"
        )
    _check_fields(message)
    try:
        descriptor = os.open(DIRECTORY / message.name[1:], os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _refused(
            "names nothing in /dev/shm of this service; it must be on the caller's host, with the same /dev/shm",
            "REGION_NOT_FOUND",
        ) from None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        raise _refused("cannot be opened for reading and writing by the service", "REGION_NOT_ALLOWED") from error
    try:
        _check_file(descriptor, message)
        return CallerRegion(descriptor, message.offset_bytes, message.size_bytes, executor, resources)
    except BaseException:
        os.close(descriptor)
        raise


def _check_fields(message: pb.RowsRegion) -> None:
    if not _NAME.fullmatch(message.name):
        raise _refused(
            f'is not a region\'s: "{NAME_PREFIX}", then 1 to 128 letters, digits and characters of "-_."',
            "INVALID_REGION",
        )
    if message.offset_bytes < 0 or message.offset_bytes % ALIGNMENT_BYTES:
        raise _refused(
            f"begins at {message.offset_bytes}; give a multiple of {ALIGNMENT_BYTES}",
            "INVALID_REGION",
            "rows_region.offset_bytes",
        )
    if message.size_bytes < SECRET_BYTES:
        raise _refused(
            f"has {message.size_bytes} bytes; give at least {SECRET_BYTES}", "INVALID_REGION", "rows_region.size_bytes"
        )
    if len(message.secret) != SECRET_BYTES:
        raise _refused(
            f"has a secret of {len(message.secret)} bytes; give {SECRET_BYTES}", "INVALID_REGION", "rows_region.secret"
        )


def _check_file(descriptor: int, message: pb.RowsRegion) -> None:
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
        raise _refused("is not a regular file with a single name", "REGION_NOT_ALLOWED")
    if (state.st_mode & _READ_BITS) >> 1 != state.st_mode & _WRITE_BITS:
        raise _refused(
            f"has the mode {state.st_mode & 0o777:04o}; whoever may read it must be allowed to write it, as with 0600 and 0660",
            "REGION_NOT_ALLOWED",
        )
    if state.st_size < message.offset_bytes + message.size_bytes:
        raise _refused(
            f"has {state.st_size} bytes, and the range ends at {message.offset_bytes + message.size_bytes}",
            "INVALID_REGION",
            "rows_region.size_bytes",
        )
    if state.st_blocks * _BLOCK_BYTES < state.st_size:
        raise _refused("has pages that are not allocated; call posix_fallocate first", "REGION_NOT_ALLOWED")
    if not hmac.compare_digest(os.pread(descriptor, SECRET_BYTES, message.offset_bytes), message.secret):
        raise _refused("does not begin with the secret", "REGION_NOT_ALLOWED", "rows_region.secret")


def _refused(what: str, reason: str, field: str = "rows_region.name") -> PreprocessorError:
    return InvalidRequest(f"rows_region {what}", reason=reason, field=field)
