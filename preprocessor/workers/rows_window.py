"""The arena as a worker has it: an address range in which only that is mapped which the service has given for the task.

Whatever else of it is read or written ends the process, by SIGSEGV. What a task was given stays mapped until the next one comes,
so that a worker that gets the same memory again need not map it: between two tasks no file is read.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.workers.chunks import Windows
from preprocessor.workers.descriptors import BATCH_COUNT
from preprocessor.workers.mapping import LIBC, address_of, array_at, map_at

_NO_RESERVE = 0x4000  # linux/mman.h: MAP_NORESERVE
_POPULATE_READ = 22  # linux/mman.h: MADV_POPULATE_READ, since Linux 5.14


class RowsWindow:
    """See the module.

    Args:
        size_bytes: Of the arena.
        chunk_bytes: Size of a chunk.
    """

    def __init__(self, size_bytes: int, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        span_bytes = -(-size_bytes // chunk_bytes) * chunk_bytes
        self._memory = mmap.mmap(-1, span_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        self._bytes = memoryview(self._memory)
        self._base = address_of(self._bytes)
        self._mapped: set[int] = set()
        self._unmapped_pages: deque[int] = deque()  # chunks whose pages the process has not mapped yet
        self._unmap(0, span_bytes)

    def show(self, windows: Windows, source: socket.socket) -> None:
        """Have these chunks mapped, and no others.

        Args:
            source: Where descriptors come from.
        """
        kept = {number for first, count in windows.kept for number in range(first, first + count)}
        for number in self._mapped - kept:
            self._unmap(number * self._chunk_bytes, self._chunk_bytes)
        self._mapped = kept
        self._unmapped_pages.clear()
        new = [(number, may_write) for first, count, may_write in windows.new for number in range(first, first + count)]
        for start in range(0, len(new), BATCH_COUNT):
            batch = new[start : start + BATCH_COUNT]
            for (number, may_write), descriptor in zip(batch, _receive_descriptors(source, len(batch)), strict=True):
                protection = mmap.PROT_READ | (mmap.PROT_WRITE if may_write else 0)
                map_at(
                    self._base + number * self._chunk_bytes, self._chunk_bytes, protection, mmap.MAP_SHARED, descriptor
                )
                os.close(descriptor)
            self._mapped |= {number for number, _ in batch}
        self._unmapped_pages.extend(number for number, may_write in new if may_write)

    def map_ahead(self, offset: int) -> None:
        """Map the pages before this offset that the task will write: many at once cost half as much as one at a time."""
        while self._unmapped_pages and self._unmapped_pages[0] * self._chunk_bytes < offset:
            address = self._base + self._unmapped_pages.popleft() * self._chunk_bytes
            LIBC.madvise(ctypes.c_void_p(address), ctypes.c_size_t(self._chunk_bytes), _POPULATE_READ)

    def view(self, offset: int, size_bytes: int) -> memoryview:
        """The bytes of a range; no copy."""
        return self._bytes[offset : offset + size_bytes]

    def array(self, offset: int, shape: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """A range as an array; no copy."""
        return array_at(self._bytes, offset, shape, dtype)

    def _unmap(self, offset: int, size_bytes: int) -> None:
        map_at(self._base + offset, size_bytes, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)


def _receive_descriptors(source: socket.socket, count: int) -> list[int]:
    """So many descriptors, which were sent together.

    Raises:
        ConnectionResetError: The service is gone.
    """
    data, descriptors, _, _ = socket.recv_fds(source, 1, count)
    if not data or len(descriptors) != count:
        raise ConnectionResetError("the service has closed the socket, or descriptors are missing")
    return descriptors
