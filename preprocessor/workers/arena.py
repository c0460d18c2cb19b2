"""The memory that the service keeps files, pixels and results in.

Pixels are written by workers and read here, and no byte of them is copied between processes: a range is named by its offset,
which is the same for all. The arena has the size of the memory budget, and has pages only where something was written. What
workers write lies in `chunks`, of which each worker has those of its own task. Files are sent to a worker, which has a copy.

An arena with a name has a file in `/dev/shm` as well, which an engine on the same host maps. Workers do not have it: what they
have written is copied there by `region_copy`. Files do not lie there.

What requests hold of it is leased: see `ranges`.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from preprocessor.config import FILE_SHARE
from preprocessor.workers.chunks import Chunks, chunk_bytes
from preprocessor.workers.descriptors import allow_descriptors
from preprocessor.workers.mapping import address_of, array_at, map_at, write_at

_THREADS = 4


class Arena:
    """The memory as the service has it mapped; a worker has a `rows_window.RowsWindow`.

    Args:
        descriptor: A file of `file_bytes(size_bytes)`; the arena closes it.
        memory: The mapping of the whole file, if it is mapped already.
    Attributes:
        is_named: Whether an engine reads its file.
        size_bytes: Bytes for ranges.
        rows_start: Where the part for rows begins; files lie before it.
        unit_bytes: Leases of rows are whole units.
        chunks: What workers are given.
        threads: For work on its bytes beside the event loop. Others may block the threads of asyncio's own pool.
    """

    def __init__(self, descriptor: int, size_bytes: int, memory: mmap.mmap | None = None) -> None:
        allow_descriptors()
        self.descriptor = descriptor
        self.size_bytes = size_bytes
        self.is_named = os.fstat(descriptor).st_nlink > 0
        self.unit_bytes = chunk_bytes(size_bytes)
        self.rows_start = whole_units(size_bytes // FILE_SHARE, self.unit_bytes)
        self._memory = memory or mmap.mmap(descriptor, whole_units(size_bytes, self.unit_bytes))
        self._bytes = memoryview(self._memory)
        self._base = address_of(self._bytes)
        self.chunks = Chunks(self._base, descriptor, self.unit_bytes, are_copied=self.is_named)
        self._files = self._make_files() if self.is_named else descriptor
        self.threads = ThreadPoolExecutor(_THREADS, "arena")

    @classmethod
    def create(cls, size_bytes: int) -> Self:
        """Create an arena without a name."""
        descriptor = os.memfd_create("preprocessor-arena")
        os.truncate(descriptor, cls.file_bytes(size_bytes))
        return cls(descriptor, size_bytes)

    @staticmethod
    def file_bytes(size_bytes: int) -> int:
        """Size of the file of an arena with that many bytes for ranges."""
        return whole_units(size_bytes, chunk_bytes(size_bytes))

    def _make_files(self) -> int:
        """Memory for files that is no part of the named file, in its place."""
        descriptor = os.memfd_create("preprocessor-files")
        os.truncate(descriptor, self.rows_start)
        map_at(self._base, self.rows_start, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor)
        return descriptor

    def view(self, offset: int, size_bytes: int) -> memoryview:
        """The bytes of a range; no copy."""
        return self._bytes[offset : offset + size_bytes]

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Copy bytes of a file into a range of the part for files."""
        write_at(self._files, memoryview(data), offset)

    def array(self, offset: int, shape: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """A range as an array; no copy."""
        return array_at(self._bytes, offset, shape, dtype)

    def map_ahead(self, offset: int) -> None:
        """Nothing: in this process there is no worker, or one that is a thread."""

    def offset_of(self, view: memoryview) -> int:
        """The offset of a view of this arena.

        Raises:
            ValueError: It does not lie in this arena.
        """
        offset = address_of(view) - self._base if view.nbytes else 0
        if not 0 <= offset <= self.size_bytes - view.nbytes:
            raise ValueError(f"a view of {view.nbytes} bytes does not lie in the arena")
        return offset

    def free(self, start: int, end: int) -> None:
        """[start, end) is no longer leased; its pages stay."""
        self.chunks.free(start, end)

    def drop_pages(self, start: int, end: int) -> None:
        """Return the pages of [start, end) to the kernel; the range then reads as zeros."""
        if start >= end:
            return
        self.chunks.drop(start, end)
        self._memory.madvise(mmap.MADV_REMOVE, start, end - start)

    def close(self) -> None:
        """Close all descriptors. The mapping ends with the last view of it."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        self.chunks.close()
        for descriptor in {self.descriptor, self._files}:
            os.close(descriptor)


def whole_units(size_bytes: int, unit_bytes: int) -> int:
    """The next multiple of a unit; at least one."""
    return max(1, -(-size_bytes // unit_bytes)) * unit_bytes
