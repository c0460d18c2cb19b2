"""One shared memory that the service and all its workers have mapped, and the ranges of it that requests hold.

Files are written into it and pixels are read from it, and no byte is copied between processes: a range is named by its offset,
which is the same for all. The arena has the size of the memory budget, and has pages only where something was written. It is a
memfd, which the kernel frees with the last process that maps it, however that process ends: no file is left behind. Its owner
may give it a name instead, so that an engine on the same host can map it too.

A named arena lies in `/dev/shm`, which others fill too. A write to a mapped page for which there is no memory left ends the
process with SIGBUS. So the service writes by `write`, and workers `reserve` a range before they fill it.

Ranges are leased lowest first, so that a steady load stays on the same pages, which every worker has mapped already (a fresh
page costs a page fault in each process that touches it). Above `retained_bytes` the pages of a range are returned to the kernel
as soon as it is released.
"""

from __future__ import annotations

import bisect
import errno
import math
import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from preprocessor.workers.refusals import shared_memory_full

CONTROL_SLOT_COUNT = 1024
_PAGE_BYTES = mmap.PAGESIZE
_FULL_BYTES = 1 << 20  # with less than this free, a worker may have been killed for the lack of it
_CONTROL_BYTES = max(_PAGE_BYTES, CONTROL_SLOT_COUNT * 8)


class Arena:
    """The mapped memory. The service creates it; a worker opens it by an inherited descriptor.

    Args:
        descriptor: A file of `file_bytes(size_bytes)`; the arena closes it.
        memory: The mapping of the whole file, if it is mapped already.
    Attributes:
        is_named: Whether its file lies in a file system, which may be full. A memfd takes plain memory.
        size_bytes: Bytes for ranges.
        control: uint64 [CONTROL_SLOT_COUNT], one task id a worker, written by the service and read at every checkpoint: the
            task that the worker is to stop.
    """

    def __init__(self, descriptor: int, size_bytes: int, memory: mmap.mmap | None = None) -> None:
        self.descriptor = descriptor
        self.size_bytes = size_bytes
        self.is_named = os.fstat(descriptor).st_nlink > 0
        self._memory = memory or mmap.mmap(descriptor, self.file_bytes(size_bytes))
        self._bytes = memoryview(self._memory)[_CONTROL_BYTES:]
        self.control = memoryview(self._memory)[:_CONTROL_BYTES].cast("Q")
        self._base = np.frombuffer(self._bytes, np.uint8).ctypes.data
        self.reserve(-_CONTROL_BYTES, _CONTROL_BYTES)

    @classmethod
    def create(cls, size_bytes: int) -> Self:
        """Create an arena without a name."""
        descriptor = os.memfd_create("preprocessor-arena")
        os.truncate(descriptor, cls.file_bytes(size_bytes))
        return cls(descriptor, size_bytes)

    @staticmethod
    def file_bytes(size_bytes: int) -> int:
        """Size of the file of an arena with that many bytes for ranges."""
        return _CONTROL_BYTES + _whole_pages(size_bytes)

    def view(self, offset: int, size_bytes: int) -> memoryview:
        """The bytes of a range; no copy."""
        return self._bytes[offset : offset + size_bytes]

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Copy bytes into a range.

        Raises:
            Overloaded: `SHARED_MEMORY_FULL`.
        """
        left = memoryview(data)
        while left:
            try:
                written = os.pwrite(self.descriptor, left, _CONTROL_BYTES + offset)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise shared_memory_full() from error
            left, offset = left[written:], offset + written

    def is_full(self) -> bool:
        """Whether the file system of a named arena has no space for more pages; never true of a memfd."""
        space = os.fstatvfs(self.descriptor)
        return space.f_blocks > 0 and space.f_bavail * space.f_frsize < _FULL_BYTES

    def array(self, offset: int, shape: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """A range as an array; no copy."""
        size_bytes = math.prod(shape) * dtype.itemsize
        return np.frombuffer(self.view(offset, size_bytes), dtype).reshape(shape)

    def offset_of(self, view: memoryview) -> int:
        """The offset of a view of this arena.

        Raises:
            ValueError: It does not lie in this arena.
        """
        offset = int(np.frombuffer(view, np.uint8).ctypes.data) - self._base if view.nbytes else 0
        if not 0 <= offset <= self.size_bytes - view.nbytes:
            raise ValueError(f"a view of {view.nbytes} bytes does not lie in the arena")
        return offset

    def drop_pages(self, start: int, end: int) -> None:
        """Return the pages of [start, end) to the kernel; the range then reads as zeros."""
        if start < end:
            self._memory.madvise(mmap.MADV_REMOVE, _CONTROL_BYTES + start, end - start)

    def reserve(self, offset: int, size_bytes: int) -> None:
        """Allocate the pages of a range before it is written; costs what the first write to them would.

        If `/dev/shm` is full, a write without this would end the process with SIGBUS.

        Raises:
            Overloaded: `SHARED_MEMORY_FULL`.
        """
        if not self.is_named or not size_bytes:
            return
        try:
            os.posix_fallocate(self.descriptor, _CONTROL_BYTES + offset, size_bytes)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise shared_memory_full() from error

    def close(self) -> None:
        """Close the descriptor. The mapping ends with the last view of it."""
        os.close(self.descriptor)


@dataclass(slots=True, eq=False)
class _LeasedRange:
    """A range that is not free.

    Attributes:
        holder_count: Leases of it that are not released, without those of the cache.
        kept_count: Leases of it that the cache holds.
    """

    offset: int
    size_bytes: int
    holder_count: int = 0
    kept_count: int = 0


class Lease:
    """One holder's right to a range of the arena, until `release`. The range is free when no lease of it is left."""

    def __init__(self, ranges: Ranges, leased: _LeasedRange, *, is_kept: bool = False) -> None:
        self.offset = leased.offset
        self.size_bytes = leased.size_bytes
        self._ranges = ranges
        self._leased: _LeasedRange | None = leased
        self._is_kept = is_kept
        ranges._count(leased, 1, is_kept=is_kept)

    @property
    def is_released(self) -> bool:
        return self._leased is None

    @property
    def is_sole(self) -> bool:
        """Whether releasing it frees the range."""
        return self._leased is not None and self._leased.holder_count + self._leased.kept_count == 1

    def share(self, *, is_kept: bool = False) -> Lease:
        """Another lease of the range, for another holder.

        Args:
            is_kept: The holder is the cache, which gives the range up when requests need memory.
        """
        assert self._leased is not None, "it is released"
        return Lease(self._ranges, self._leased, is_kept=is_kept)

    def release(self) -> None:
        """Give up this right to the range. Releasing twice is fine."""
        leased, self._leased = self._leased, None
        if leased is not None:
            self._ranges._count(leased, -1, is_kept=self._is_kept)


class Ranges:
    """Leases ranges of [start, end) of an arena, lowest first; both ends are rounded up to whole pages.

    Attributes:
        leased_bytes: Size of all leased ranges, in whole pages.
        kept_bytes: The part of them that only the cache holds.
        retained_bytes: The first so many bytes keep their pages when a range is released.
    """

    def __init__(self, arena: Arena, start: int, end: int, retained_bytes: int) -> None:
        self._arena = arena
        self._start, self._end = start and _whole_pages(start), _whole_pages(end)
        self.retained_bytes = min(self._end - self._start, _whole_pages(retained_bytes))
        self._free = [(self._start, self._end)]  # ascending, never adjacent
        self.leased_bytes = 0
        self.kept_bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._end - self._start

    def lease(self, size_bytes: int, *, from_end: bool = False) -> Lease | None:
        """Lease the lowest free range that is large enough, or the highest; None if there is none."""
        wanted = _whole_pages(size_bytes)
        positions = range(len(self._free))
        for position in reversed(positions) if from_end else positions:
            start, end = self._free[position]
            if end - start < wanted:
                continue
            rest = (start, end - wanted) if from_end else (start + wanted, end)
            self._free[position : position + 1] = [rest] if end - start > wanted else []
            self.leased_bytes += wanted
            return Lease(self, _LeasedRange(end - wanted if from_end else start, wanted))
        return None

    def drop_free_pages(self) -> None:
        """Return the pages of all free ranges to the kernel."""
        for start, end in self._free:
            self._arena.drop_pages(start, end)

    def _count(self, leased: _LeasedRange, change: int, *, is_kept: bool) -> None:
        """A lease of the range was made (1) or released (-1)."""
        self.kept_bytes -= _kept_bytes(leased)
        if is_kept:
            leased.kept_count += change
        else:
            leased.holder_count += change
        self.kept_bytes += _kept_bytes(leased)
        if not leased.holder_count and not leased.kept_count:
            self._free_range(leased.offset, leased.size_bytes)

    def _free_range(self, start: int, size_bytes: int) -> None:
        self.leased_bytes -= size_bytes
        end = start + size_bytes
        self._arena.drop_pages(max(start, self._start + self.retained_bytes), end)
        position = bisect.bisect(self._free, (start, end))
        if position < len(self._free) and self._free[position][0] == end:
            end = self._free.pop(position)[1]
        if position and self._free[position - 1][1] == start:
            start = self._free.pop(position - 1)[0]
            position -= 1
        self._free.insert(position, (start, end))


def _kept_bytes(leased: _LeasedRange) -> int:
    return leased.size_bytes if leased.kept_count and not leased.holder_count else 0


def _whole_pages(size_bytes: int) -> int:
    return max(1, -(-size_bytes // _PAGE_BYTES)) * _PAGE_BYTES
