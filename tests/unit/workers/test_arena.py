"""Shared memory: ranges never overlap, merge again when released, and keep no pages."""

from __future__ import annotations

import itertools
import mmap
import os

import numpy as np
import psutil
import pytest

from preprocessor.workers import stop_flag
from preprocessor.workers.arena import Arena
from preprocessor.workers.chunks import GivenChunks
from preprocessor.workers.descriptors import close_all
from preprocessor.workers.ranges import Lease, Ranges
from tests.unit.workers.conftest import resident_bytes

PAGE = mmap.PAGESIZE
SIZE = 64 * PAGE


@pytest.fixture
def arena() -> Arena:
    return Arena.create(SIZE)


@pytest.fixture
def ranges(arena: Arena) -> Ranges:
    return Ranges(arena, 0, SIZE, retained_bytes=8 * PAGE)


@pytest.mark.parametrize("seed", range(5))
def test_leased_ranges_never_overlap_and_merge_again_when_released(ranges: Ranges, seed: int) -> None:
    random = np.random.default_rng(seed)
    held: list[Lease] = []
    for _ in range(2000):
        if held and random.random() < 0.5:
            held.pop(int(random.integers(len(held)))).release()
        elif lease := ranges.lease(int(random.integers(1, 12 * PAGE))):
            held.append(lease)
        spans = sorted((lease.offset, lease.offset + lease.size_bytes) for lease in held)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        assert ranges.leased_bytes == sum(lease.size_bytes for lease in held)
    for lease in held:
        lease.release()
    whole = ranges.lease(SIZE)
    assert whole is not None
    assert (whole.offset, whole.size_bytes) == (0, SIZE)


def test_a_range_starts_at_a_page_and_has_at_least_the_wanted_size(ranges: Ranges) -> None:
    first, second = ranges.lease(1), ranges.lease(PAGE + 1)
    assert first is not None and second is not None
    assert (first.offset, first.size_bytes, second.offset, second.size_bytes) == (0, PAGE, PAGE, 2 * PAGE)


def test_the_lowest_range_that_is_large_enough_is_leased(ranges: Ranges) -> None:
    for lease in [ranges.lease(PAGE * size) for size in (4, 1, 2, 1)][::2]:
        assert lease is not None
        lease.release()
    offsets = [lease.offset for size in (1, 4) if (lease := ranges.lease(PAGE * size))]
    assert offsets == [0, PAGE * 8]


def test_no_range_is_leased_if_none_is_large_enough(ranges: Ranges) -> None:
    assert ranges.lease(SIZE + 1) is None
    assert ranges.lease(SIZE) is not None
    assert ranges.lease(1) is None


def test_releasing_twice_releases_once(ranges: Ranges) -> None:
    lease = ranges.lease(PAGE)
    assert lease is not None
    lease.release()
    lease.release()
    assert ranges.leased_bytes == 0
    assert ranges.lease(SIZE) is not None


def test_pages_above_the_retained_bytes_return_to_the_kernel(arena: Arena, ranges: Ranges) -> None:
    empty_bytes = resident_bytes(arena)
    lease = ranges.lease(SIZE)
    assert lease is not None
    arena.view(0, SIZE)[:] = b"x" * SIZE
    assert resident_bytes(arena) - empty_bytes == SIZE
    lease.release()
    assert resident_bytes(arena) - empty_bytes == 8 * PAGE
    ranges.drop_free_pages()
    assert resident_bytes(arena) == empty_bytes


def test_two_mappings_see_the_same_bytes(arena: Arena) -> None:
    other = Arena(arena.descriptor, arena.size_bytes)
    array = arena.array(PAGE, (3, 4), np.dtype(np.float32))
    array[:] = 7
    assert (other.array(PAGE, (3, 4), np.dtype(np.float32)) == 7).all()


def test_a_flag_is_seen_by_its_worker_which_cannot_set_it() -> None:
    flag, descriptor = stop_flag.make()
    seen = stop_flag.open_flag(descriptor)
    flag.stop(2**63)
    assert seen.numbers[0] == 2**63
    with pytest.raises(TypeError):
        seen.stop(1)
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, PAGE)


def test_a_flag_keeps_no_descriptor_open() -> None:
    before = psutil.Process().num_fds()
    flag, descriptor = stop_flag.make()
    os.close(descriptor)
    assert psutil.Process().num_fds() == before
    flag.stop(1)


def test_the_offset_of_a_view_is_found(arena: Arena) -> None:
    assert arena.offset_of(arena.view(3 * PAGE + 5, 10)) == 3 * PAGE + 5
    with pytest.raises(ValueError, match="does not lie in the arena"):
        arena.offset_of(memoryview(bytearray(10)))


def test_odd_sizes_are_rounded_up_to_whole_pages(arena: Arena) -> None:
    ranges = Ranges(arena, PAGE + 1, 9 * PAGE - 1, retained_bytes=PAGE + 1)
    lease = ranges.lease(7 * PAGE)
    assert lease is not None
    assert (lease.offset, ranges.size_bytes) == (2 * PAGE, 7 * PAGE)
    lease.release()


def test_callers_have_places_of_their_own_while_memory_lasts() -> None:
    arena = Arena.create(64 << 20)
    assert arena.chunks is not None
    unit = arena.unit_bytes
    rows = Ranges(arena, arena.rows_start, arena.size_bytes, 16 * unit, unit, arena.chunks)
    worker = GivenChunks()

    def place(scope: str, unit_count: int) -> int:
        lease = rows.lease(unit_count * unit, scope=scope)
        assert lease is not None and arena.chunks is not None
        _, descriptors = arena.chunks.give(worker, scope, [range(lease.offset, lease.offset + lease.size_bytes)])
        close_all(descriptors)
        lease.release()
        return (lease.offset - arena.rows_start) // unit

    assert [place(scope, 4) for scope in "abab"] == [0, 4, 0, 4]
    assert [place("c", 8), place("a", 4), place("b", 3)] == [8, 0, 4]
    assert place("d", 4) == 0, "no place is nobody's: the lowest is made anew"
    assert place("a", 4) == 0
    arena.close()


def test_free_ranges_keep_so_many_pages_wherever_they_lie() -> None:
    """As where the cache holds all lower ones: else every new tensor would have to be made of fresh pages."""
    arena = Arena.create(64 << 20)
    assert arena.chunks is not None
    unit = arena.unit_bytes
    rows = Ranges(arena, arena.rows_start, arena.size_bytes, 4 * unit, unit, arena.chunks)
    files = Ranges(arena, 0, arena.rows_start, 0)
    worker = GivenChunks()

    def lease_and_write(unit_count: int) -> Lease:
        lease = rows.lease(unit_count * unit)
        assert lease is not None and arena.chunks is not None
        span = range(lease.offset, lease.offset + lease.size_bytes)
        close_all(arena.chunks.give(worker, "", [span])[1])
        return lease

    held, first, second = lease_and_write(20), lease_and_write(3), lease_and_write(3)
    assert rows.paged_bytes == 26 * unit
    first.release()
    assert rows.paged_bytes == 26 * unit
    second.release()
    assert (rows.leased_bytes, rows.paged_bytes) == (20 * unit, 24 * unit)
    assert [arena.chunks.scope_of(held.offset + number * unit) for number in range(22, 26)] == ["", "", None, None]
    file = files.lease(1)
    assert file is not None
    file.release()
    assert rows.paged_bytes == 24 * unit, "files have no chunks"
    again = lease_and_write(3)
    assert rows.paged_bytes == 24 * unit
    for lease in (again, held):
        lease.release()
    assert rows.paged_bytes == 4 * unit
    rows.drop_free_pages()
    assert rows.paged_bytes == 0
    arena.close()
