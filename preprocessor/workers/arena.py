"""The memory that the service keeps files, pixels and results in, and the ranges of it that requests hold.

Pixels are written by workers and read here, and no byte of them is copied between processes: a range is named by its offset,
which is the same for all. The arena has the size of the memory budget, and has pages only where something was written. What
workers write lies in `chunks`, of which each worker has those of its own task. Files are sent to a worker, which has a copy.

An arena with a name has a file in `/dev/shm` as well, which an engine on the same host maps. Workers do not have it: what they
have written is copied there by `region_copy`. Files do not lie there.

Ranges are leased lowest first, so that a steady load stays on the same pages, which are mapped already (a fresh page costs a
page fault in each process that touches it). Free ranges keep at most `retained_bytes` of pages: with more, those of a range are
returned to the kernel as soon as it is released.
"""

from __future__ import annotations

import bisect
import mmap
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from preprocessor.config import FILE_SHARE
from preprocessor.workers.chunks import Chunks, allow_descriptors, chunk_bytes
from preprocessor.workers.mapping import array_at, map_at, write_at

_PAGE_BYTES = mmap.PAGESIZE
_MOST_UNITS_SEEN = 2048
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
        self.rows_start = _whole(size_bytes // FILE_SHARE, self.unit_bytes)
        self._memory = memory or mmap.mmap(descriptor, _whole(size_bytes, self.unit_bytes))
        self._bytes = memoryview(self._memory)
        self._base = int(np.frombuffer(self._bytes, np.uint8).ctypes.data)
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
        return _whole(size_bytes, chunk_bytes(size_bytes))

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
        offset = int(np.frombuffer(view, np.uint8).ctypes.data) - self._base if view.nbytes else 0
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
    """Leases ranges of [start, end) of an arena, lowest first; both ends are rounded up to whole units.

    Args:
        unit_bytes: Ranges are multiples of this, which is one of the page size.
        chunks: What alone has pages in these ranges; None where others have.
    Attributes:
        leased_bytes: Size of all leased ranges, in whole units.
        kept_bytes: The part of them that only the cache holds.
        retained_bytes: Free ranges keep at most so many bytes of pages.
    """

    def __init__(
        self,
        arena: Arena,
        start: int,
        end: int,
        retained_bytes: int,
        unit_bytes: int = _PAGE_BYTES,
        chunks: Chunks | None = None,
    ) -> None:
        self._arena = arena
        self._chunks = chunks
        self._unit_bytes = unit_bytes
        self._start, self._end = start and _whole(start, unit_bytes), _whole(end, unit_bytes)
        self.retained_bytes = min(self._end - self._start, _whole(retained_bytes, unit_bytes))
        self._free = [(self._start, self._end)]  # ascending, never adjacent
        self.leased_bytes = 0
        self.kept_bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._end - self._start

    @property
    def paged_bytes(self) -> int:
        """At most so many bytes have pages, those of leased ranges included."""
        if self._chunks is None:
            return max(self.leased_bytes, self.retained_bytes)
        return self.leased_bytes + self._chunks.free_bytes

    def lease(self, size_bytes: int, *, from_end: bool = False, scope: str | None = None) -> Lease | None:
        """Lease the lowest free range that is large enough, or the highest; None if there is none.

        Args:
            scope: Whose pixels it is for: a range whose pages hold nobody else's is preferred, as others must be made anew.
        """
        wanted = _whole(size_bytes, self._unit_bytes)
        if scope is not None and not from_end and (place := self._own_place(wanted, scope)) is not None:
            return self._take(*place, wanted)
        positions = range(len(self._free))
        for position in reversed(positions) if from_end else positions:
            start, end = self._free[position]
            if end - start >= wanted:
                return self._take(position, end - wanted if from_end else start, wanted)
        return None

    def _own_place(self, wanted: int, scope: str) -> tuple[int, int] | None:
        """Which free range, and where in it, the scope has nobody else's pages.

        None if there is none among the lowest, or if nobody else's are anywhere. With as many pages as may be retained, more
        would not stay, so that others' are replaced.
        """
        if self._chunks is None or not self._chunks.has_others(scope):
            return None
        suitable = {scope} if self._chunks.free_bytes >= self.retained_bytes else {None, scope}
        seen_count = 0
        for position, (start, end) in enumerate(self._free):
            offset = start
            for unit in range(start, end, self._unit_bytes):
                if seen_count == _MOST_UNITS_SEEN:
                    return None
                seen_count += 1
                if self._chunks.scope_of(unit) not in suitable:
                    offset = unit + self._unit_bytes
                elif unit + self._unit_bytes - offset >= wanted:
                    return position, offset
        return None

    def _take(self, position: int, offset: int, size_bytes: int) -> Lease:
        """Lease a part of a free range."""
        start, end = self._free[position]
        rest = [(start, offset), (offset + size_bytes, end)]
        self._free[position : position + 1] = [(first, last) for first, last in rest if first < last]
        self.leased_bytes += size_bytes
        return Lease(self, _LeasedRange(offset, size_bytes))

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
        self._arena.free(start, end)
        self._arena.drop_pages(self._first_not_retained(start, end), end)
        position = bisect.bisect(self._free, (start, end))
        if position < len(self._free) and self._free[position][0] == end:
            end = self._free.pop(position)[1]
        if position and self._free[position - 1][1] == start:
            start = self._free.pop(position - 1)[0]
            position -= 1
        self._free.insert(position, (start, end))

    def _first_not_retained(self, start: int, end: int) -> int:
        """From where on a range that has become free does not keep its pages.

        Without chunks, nobody knows which free ranges have pages: then the lowest keep theirs.
        """
        if self._chunks is None:
            return max(start, self._start + self.retained_bytes)
        excess_bytes = self._chunks.free_bytes - self.retained_bytes
        return max(start, end - _whole(excess_bytes, self._unit_bytes)) if excess_bytes > 0 else end


def _kept_bytes(leased: _LeasedRange) -> int:
    return leased.size_bytes if leased.kept_count and not leased.holder_count else 0


def _whole(size_bytes: int, unit_bytes: int) -> int:
    """The next multiple of a unit; at least one."""
    return max(1, -(-size_bytes // unit_bytes)) * unit_bytes
