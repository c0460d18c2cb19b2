"""Ranges of the arena that requests hold: who has a lease of which, and which free ranges keep their pages.

Ranges are leased lowest first, so that a steady load stays on the same pages, which are mapped already (a fresh page costs a
page fault in each process that touches it). Free ranges keep at most `retained_bytes` of pages: with more, those of a range are
returned to the kernel as soon as it is released.
"""

from __future__ import annotations

import bisect
import mmap
from dataclasses import dataclass

from preprocessor.workers.arena import Arena, whole_units
from preprocessor.workers.chunks import Chunks

_PAGE_BYTES = mmap.PAGESIZE
_MOST_UNITS_SEEN = 2048


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
        self._start, self._end = start and whole_units(start, unit_bytes), whole_units(end, unit_bytes)
        self.retained_bytes = min(self._end - self._start, whole_units(retained_bytes, unit_bytes))
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
        wanted = whole_units(size_bytes, self._unit_bytes)
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
        return max(start, end - whole_units(excess_bytes, self._unit_bytes)) if excess_bytes > 0 else end


def _kept_bytes(leased: _LeasedRange) -> int:
    return leased.size_bytes if leased.kept_count and not leased.holder_count else 0
