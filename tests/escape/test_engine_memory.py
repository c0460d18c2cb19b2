"""With an engine that reads shared memory: it finds there what workers have written, and workers have none of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from engine_client import OwnedRegion
from preprocessor.errors import WorkerLost
from preprocessor.service.engine import arena_in
from preprocessor.workers.arena import Arena
from preprocessor.workers.chunks import GivenChunks
from preprocessor.workers.descriptors import close_all
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.ranges import Lease
from tests.escape.memory_attempts import Borrow, Fill, FillRows, MapDescriptors, MemoryTaken, Read, ReadDescriptors
from tests.unit.workers.conftest import MIB, open_pool, outcome, submit
from tests.unit.workers.payloads import MakeArray

BUDGET_BYTES = 64 * MIB


@pytest.fixture(scope="module")
def region() -> Iterator[OwnedRegion]:
    with OwnedRegion.create(Arena.file_bytes(BUDGET_BYTES)) as made:
        yield made


@pytest_asyncio.fixture(scope="module")
async def pool(region: OwnedRegion) -> AsyncIterator[WorkerPool]:
    async with open_pool(model=MemoryTaken(), arena=arena_in(region, BUDGET_BYTES)) as pool:
        yield pool


def in_file(region: OwnedRegion, offset: int, size_bytes: int) -> bytes:
    """What an engine has in a range: read from the file, as this process's mapping may show something else."""
    with Path(f"/dev/shm{region.key}").open("rb") as file:
        return os.pread(file.fileno(), size_bytes, offset)


def seen(region: OwnedRegion, lease: Lease) -> set[int]:
    """The distinct bytes of a range as an engine has them."""
    return set(in_file(region, lease.offset, lease.size_bytes))


def leave_behind(region: OwnedRegion, lease: Lease) -> None:
    """Fill a range of the file as an earlier caller's pixels did."""
    with Path(f"/dev/shm{region.key}").open("r+b") as file:
        os.pwrite(file.fileno(), b"\7" * lease.size_bytes, lease.offset)


@pytest.fixture
def lease(pool: WorkerPool) -> Iterator[Lease]:
    taken = pool.rows.lease(2 * MIB)
    assert taken is not None
    yield taken
    taken.release()


async def test_what_a_worker_has_written_is_in_the_engine_s_memory(
    pool: WorkerPool, region: OwnedRegion, lease: Lease
) -> None:
    assert isinstance(await outcome(submit(pool, Fill(lease.offset, lease.offset + lease.size_bytes, 9))), int)
    assert seen(region, lease) == {9}
    assert set(pool.arena.view(lease.offset, lease.size_bytes)) == {9}


async def test_rows_are_there_before_they_are_announced(pool: WorkerPool, region: OwnedRegion, lease: Lease) -> None:
    found: list[set[int]] = []

    payload = FillRows(lease.offset, lease.offset + lease.size_bytes, 5)
    task = submit(pool, payload)

    def look(first_row: int, row_count: int) -> None:
        start = lease.offset + first_row * payload.row_bytes
        found.append(set(in_file(region, start, row_count * payload.row_bytes)))

    task.on_rows_written = look
    assert await outcome(task) == "filled"
    assert found == [{5}] * 3
    assert seen(region, lease) == {5}


async def test_parts_of_one_tensor_that_run_one_after_the_other_keep_what_the_first_has_written(
    pool: WorkerPool, region: OwnedRegion, lease: Lease
) -> None:
    leave_behind(region, lease)
    middle, stop = lease.offset + lease.size_bytes // 3 + 100, lease.offset + lease.size_bytes
    assert isinstance(await outcome(submit(pool, Fill(lease.offset, middle, 1), scope="parts")), int)
    assert await outcome(submit(pool, Read(middle, stop, middle), scope="parts")) == 0, (
        "what another caller has left there"
    )
    assert isinstance(await outcome(submit(pool, Fill(middle, stop, 2), scope="parts")), int)
    assert seen(region, lease) == {1, 2}
    assert (np.frombuffer(pool.arena.view(lease.offset, middle - lease.offset), np.uint8) == 1).all()


async def test_cached_rows_are_read_in_a_copy(pool: WorkerPool, region: OwnedRegion, lease: Lease) -> None:
    assert isinstance(await outcome(submit(pool, Fill(lease.offset, lease.offset + lease.size_bytes, 3))), int)
    assert await outcome(submit(pool, Borrow(lease.offset, lease.offset + lease.size_bytes))) == [3]
    assert isinstance(
        await outcome(submit(pool, Borrow(lease.offset, lease.offset + lease.size_bytes, writes=True))), WorkerLost
    )
    assert seen(region, lease) == {3}


async def test_a_large_result_is_there_too(pool: WorkerPool, region: OwnedRegion) -> None:
    leased: list[Lease] = []

    def lease_result(size_bytes: int) -> int:
        lease = pool.rows.lease(size_bytes)
        assert lease is not None
        leased.append(lease)
        return lease.offset

    made = await outcome(submit(pool, MakeArray(3 * MIB), lease_result=lease_result))
    expected = np.arange(3 * MIB, dtype=np.uint8).tobytes()
    assert in_file(region, leased[0].offset, 3 * MIB) == expected == made.tobytes()
    leased[0].release()


async def test_no_descriptor_of_a_worker_leads_to_it(pool: WorkerPool, region: OwnedRegion, lease: Lease) -> None:
    assert isinstance(await outcome(submit(pool, Fill(lease.offset, lease.offset + lease.size_bytes, 8))), int)
    assert await outcome(submit(pool, ReadDescriptors(lease.offset))) == []
    assert await outcome(submit(pool, MapDescriptors(lease.offset))) == []


def test_a_chunk_that_two_tasks_have_stays_until_both_have_ended() -> None:
    with OwnedRegion.create(Arena.file_bytes(BUDGET_BYTES)) as region:
        arena = arena_in(region, BUDGET_BYTES)
        chunks = arena.chunks
        span = range(arena.rows_start, arena.rows_start + arena.unit_bytes)
        first, second = GivenChunks(), GivenChunks()
        for given in (first, second):
            given.is_running = True
            close_all(chunks.give(given, "a", [span])[1])
        chunks.end_task(first)
        assert chunks.scope_of(span.start) == "a"
        chunks.end_task(second)
        assert chunks.scope_of(span.start) is None
        arena.close()


def inodes(descriptors: list[int]) -> list[int]:
    """The files behind descriptors, which are closed."""
    found = [os.fstat(descriptor).st_ino for descriptor in descriptors]
    close_all(descriptors)
    return found


def chunk_descriptors() -> int:
    """How many descriptors of chunks this process has open."""
    names = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.append(str(path.readlink()))
    return sum("preprocessor-rows" in name for name in names)


def test_a_task_gets_the_chunks_that_its_caller_s_tasks_have_left_and_nobody_else_s(region: OwnedRegion) -> None:
    arena = arena_in(region, BUDGET_BYTES)
    chunks, unit = arena.chunks, arena.unit_bytes
    chunks.spare.most_bytes = 3 * unit
    worker = GivenChunks()

    def run_task(scope: str, place: int, count: int) -> list[int]:
        start = arena.rows_start + place * unit
        worker.is_running = True
        files = inodes(chunks.give(worker, scope, [range(start, start + count * unit)])[1])
        chunks.end_task(worker)
        return files

    descriptor_count = chunk_descriptors()
    first = run_task("a", 0, 2)
    assert chunks.spare.size_bytes == 2 * unit
    assert chunk_descriptors() == descriptor_count + 2, "one each"
    assert set(run_task("a", 7, 2)) == set(first), "wherever they are wanted"
    other = run_task("b", 0, 2)
    assert not set(other) & set(first)
    assert chunks.spare.size_bytes == 3 * unit, "at most so many"
    assert set(run_task("b", 3, 2)) == set(other)
    assert len(set(run_task("a", 0, 2)) & set(first)) == 1, "whoever has left none for longest loses one first"
    chunks.spare.drop(2 * unit)
    assert chunks.spare.size_bytes == unit
    arena.close()
    assert chunks.spare.size_bytes == 0


def test_a_chunk_that_another_task_has_used_has_the_file_s_rows_where_there_are_any(region: OwnedRegion) -> None:
    arena = arena_in(region, BUDGET_BYTES)
    chunks, unit = arena.chunks, arena.unit_bytes
    chunks.spare.most_bytes = unit
    worker = GivenChunks()
    start, half = arena.rows_start, arena.rows_start + unit // 2

    def write(span: range, value: int) -> None:
        (descriptor,) = chunks.give(worker, "", [span])[1]
        os.pwrite(descriptor, bytes([value]) * len(span), span.start % unit)
        close_all([descriptor])
        for piece, offset in chunks.to_copy(span):
            os.pwrite(arena.descriptor, piece, offset)
        chunks.note_copied(span)
        chunks.end_task(worker)

    write(range(start, half), 1)
    write(range(start + 2 * unit, start + 3 * unit), 9)  # in the same chunk, at another place
    write(range(half, start + unit), 2)
    assert in_file(region, start, unit) == b"\1" * (unit // 2) + b"\2" * (unit // 2)
    arena.close()
