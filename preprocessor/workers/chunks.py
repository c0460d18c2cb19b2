"""Shared memory of which a worker sees only what its task needs: the memory for rows, in chunks that are files of their own.

A chunk is a memfd that the service has mapped at its place in the arena. Its descriptor is sent to the worker of a task whose
rows lie in it, and to no other. A worker unmaps what its next task does not need before it reads a file of that task. It keeps
free memory of its own earlier tasks, because mapping pages takes as long as filling them several times: if another task needs
that memory while the worker runs, a new chunk takes its place.

A worker that was taken over may keep whatever it was given. So a chunk that held one caller's pixels is never given to another
caller's worker either. A chunk that is replaced is cut to nothing: whoever has it mapped finds no memory behind it.

Where an engine reads rows in a file, workers have no part of that file, and only the file is mapped in the arena. Workers write
into chunks, and `region_copy` copies what is final. A chunk that no running worker has any more waits for the next task of the
same caller: fresh memory would cost several times what copying does.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from weakref import WeakSet

from preprocessor.workers.chunk_memory import Chunk, SpareChunks, new_chunk
from preprocessor.workers.descriptors import close_all, open_read_only
from preprocessor.workers.mapping import map_at

_LEAST_BYTES = 512 << 10  # a small photo takes as much
_MOST_CHUNKS = 8192  # an eighth of the mappings that a process may have, vm.max_map_count
_DESCRIPTOR_SHARE = 4  # one part in so many of the descriptors that this process may open


def chunk_bytes(arena_bytes: int) -> int:
    """Size of the chunks of an arena: as small as the descriptors and mappings of a process allow."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    count = _MOST_CHUNKS if hard == resource.RLIM_INFINITY else min(_MOST_CHUNKS, max(1, hard // _DESCRIPTOR_SHARE))
    size_bytes = _LEAST_BYTES
    while size_bytes * count < arena_bytes:
        size_bytes *= 2
    return size_bytes


@dataclass(frozen=True, slots=True)
class Windows:
    """Service → worker: what the worker is to have mapped from now on, in runs of chunks by number.

    Attributes:
        kept: (first, count): what it has mapped already.
        new: (first, count, whether it may write): their descriptors follow, in this order.
    """

    kept: tuple[tuple[int, int], ...] = ()
    new: tuple[tuple[int, int, bool], ...] = ()


class GivenChunks:
    """What one worker process has mapped, as the service knows it.

    Attributes:
        chunks: By number, with whether the worker may write.
        is_running: Whether it has a task; if not, it unmaps what it is told to before it reads anything.
    """

    def __init__(self) -> None:
        self.chunks: dict[int, tuple[Chunk, bool]] = {}
        self.is_running = False


class Chunks:
    """The chunks of one arena, on the service's side.

    Args:
        address: Of the arena's first byte; a multiple of `size_bytes` lies behind it.
        file: What is mapped there where there is no chunk.
        size_bytes: Of one chunk.
        are_copied: Whether the file gets a copy of what workers write.
    Attributes:
        free_bytes: Size of the chunks that lie in no leased range.
        spare: Chunks that wait for another task.
    """

    def __init__(self, address: int, file: int, size_bytes: int, *, are_copied: bool = False) -> None:
        self.size_bytes = size_bytes
        self.free_bytes = 0
        self.spare = SpareChunks(size_bytes)
        self._are_copied = are_copied
        self._copied: set[int] = set()  # numbers of which the file has a copy
        self._address = address
        self._file = file
        self._chunks: dict[int, Chunk] = {}
        self._scopes: Counter[str] = Counter()  # chunks by scope
        self._workers: WeakSet[GivenChunks] = WeakSet()

    def has_others(self, scope: str) -> bool:
        """Whether any chunk has held pixels of another scope."""
        return any(other != scope for other in self._scopes)

    def scope_of(self, offset: int) -> str | None:
        """Whose pixels the chunk at this offset has held; None: there is none."""
        chunk = self._chunks.get(offset // self.size_bytes)
        return None if chunk is None else chunk.scope

    def at(self, number: int) -> Chunk | None:
        """The chunk of that number; None: there is none."""
        return self._chunks.get(number)

    def give(
        self, given: GivenChunks, scope: str, written: Iterable[range], read: Iterable[range] = ()
    ) -> tuple[Windows, list[int]]:
        """Give a worker the chunks of these ranges of the arena, and take back others.

        Args:
            given: What the worker has; updated.
            scope: Whose task it is.
            written: Ranges of bytes that the task writes. What other callers have left there is gone.
            read: Ranges of bytes that it may only read.
        Returns:
            What to tell the worker, and the descriptors to send with it, which the caller closes.
        Raises:
            OSError: No chunk can be made.
        """
        to_write = [number for span in written for number in self._numbers(span)]
        self._take_from_others(given, {number for number in to_write if self._is_free(number)})
        wanted = {number: (self._readable(number, scope), False) for span in read for number in self._numbers(span)}
        wanted |= {number: (self._owned(number, scope), True) for number in to_write}
        assert all(chunk.scope == scope for chunk, _ in wanted.values()), "another caller's memory"
        new = {number: one for number, one in wanted.items() if given.chunks.get(number) != one}
        descriptors: list[int] = []
        try:
            for chunk, may_write in new.values():
                descriptors.append(os.dup(chunk.descriptor) if may_write else open_read_only(chunk.descriptor))
        except OSError:
            close_all(descriptors)
            raise
        for number, (chunk, may_write) in given.chunks.items():
            if chunk.is_free and self._chunks.get(number) is chunk:
                wanted.setdefault(number, (chunk, may_write))
        kept = _runs((number, True) for number in wanted if number not in new)
        windows = Windows(
            tuple((first, count) for first, count, _ in kept),
            tuple(_runs((number, may_write) for number, (_, may_write) in new.items())),
        )
        given.chunks = wanted
        self._workers.add(given)
        return windows, descriptors

    def free(self, start: int, end: int) -> None:
        """[start, end) is no longer leased."""
        numbers = self._numbers(range(start, end))
        self._copied.difference_update(numbers)
        for number in numbers:
            if (chunk := self._chunks.get(number)) is not None:
                self._set_free(chunk, is_free=True)

    def drop(self, start: int, end: int) -> None:
        """Return the memory of all chunks of [start, end) to the kernel."""
        for number in self._numbers(range(start, end)):
            if number in self._chunks:
                self._remove(number)

    def end_task(self, given: GivenChunks) -> None:
        """The worker runs no task any more. Where the file has a copy of its chunks, they may serve another task."""
        given.is_running = False
        if self._are_copied:
            for number, one in given.chunks.items():
                is_here = self._chunks.get(number) is one[0]
                if is_here and not any(other.is_running and number in other.chunks for other in self._workers):
                    self.spare.put(self._pop(number))
            given.chunks = {}

    def whole(self, span: range) -> range:
        """The bytes of all chunks that a range touches."""
        numbers = self._numbers(span)
        return range(numbers.start * self.size_bytes, numbers.stop * self.size_bytes)

    def to_copy(self, span: range) -> list[tuple[memoryview, int]]:
        """What the file must get for it to have a range, each with its offset: of chunks of which it has nothing yet, all."""
        pieces: list[tuple[memoryview, int]] = []
        for number in self._numbers(span):
            start = number * self.size_bytes
            whole = range(start, start + self.size_bytes)
            part = range(max(span.start, whole.start), min(span.stop, whole.stop)) if number in self._copied else whole
            memory = self._chunks[number].memory
            assert memory is not None, "it is mapped in the arena"
            pieces.append((memoryview(memory)[part.start - start : part.stop - start], part.start))
        return pieces

    def note_copied(self, span: range) -> None:
        """The file has got these bytes."""
        self._copied.update(self._numbers(span))

    def close(self) -> None:
        """Return the memory of all chunks to the kernel."""
        for number in list(self._chunks):
            self._remove(number)
        self.spare.drop(self.spare.size_bytes)

    def _numbers(self, span: range) -> range:
        return range(span.start // self.size_bytes, -(-span.stop // self.size_bytes)) if span else range(0)

    def _is_free(self, number: int) -> bool:
        chunk = self._chunks.get(number)
        return chunk is not None and chunk.is_free

    def _take_from_others(self, given: GivenChunks, numbers: set[int]) -> None:
        """Replace those of free chunks that other workers have while they run; others will unmap them."""
        for other in self._workers:
            if other is given:
                continue
            for number in numbers & other.chunks.keys():
                chunk, _ = other.chunks.pop(number)
                if other.is_running and self._chunks.get(number) is chunk:
                    self._remove(number)

    def _owned(self, number: int, scope: str) -> Chunk:
        """The chunk of that number, which has held nothing of another scope; it is free no longer."""
        chunk = self._chunks.get(number)
        if chunk is not None and chunk.scope == scope:
            self._set_free(chunk, is_free=False)
            return chunk
        if chunk is not None:
            self._remove(number)
        return self._make(number, scope)

    def _readable(self, number: int, scope: str) -> Chunk:
        """The chunk of that number, which is made of what the file has where there is none."""
        chunk = self._chunks.get(number)
        if chunk is None:
            assert number in self._copied, "nothing is there to be read"
            chunk = self._make(number, scope)
        return chunk

    def _make(self, number: int, scope: str) -> Chunk:
        """Another chunk: with what the file has of it, or with zeros or what the scope has left in it."""
        chunk = self.spare.take(scope) or new_chunk(self.size_bytes, scope, is_mapped=self._are_copied)
        try:
            if number in self._copied:
                copy = (ctypes.c_char * self.size_bytes).from_address(self._address + number * self.size_bytes)
                os.pwrite(chunk.descriptor, copy, 0)
            if chunk.memory is None:
                self._map(number, chunk.descriptor, 0)
        except OSError:
            chunk.close()
            raise
        self._chunks[number] = chunk
        self._scopes[scope] += 1
        return chunk

    def _set_free(self, chunk: Chunk, *, is_free: bool) -> None:
        self.free_bytes += (is_free - chunk.is_free) * self.size_bytes
        chunk.is_free = is_free

    def _remove(self, number: int) -> None:
        """Return the memory of a chunk to the kernel."""
        chunk = self._pop(number)
        if chunk.memory is None:
            self._map(number, self._file, number * self.size_bytes)
        chunk.close()

    def _pop(self, number: int) -> Chunk:
        """A chunk, which has its place no longer."""
        chunk = self._chunks.pop(number)
        self._set_free(chunk, is_free=False)
        self._scopes[chunk.scope] -= 1
        if not self._scopes[chunk.scope]:
            del self._scopes[chunk.scope]
        return chunk

    def _map(self, number: int, descriptor: int, offset: int) -> None:
        address = self._address + number * self.size_bytes
        map_at(address, self.size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, offset)


def _runs(numbers: Iterable[tuple[int, bool]]) -> list[tuple[int, int, bool]]:
    """(first, count, flag) of numbers that follow each other with the same flag, in the order given."""
    runs: list[tuple[int, int, bool]] = []
    for number, flag in numbers:
        if runs and runs[-1][0] + runs[-1][1] == number and runs[-1][2] == flag:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, flag)
        else:
            runs.append((number, 1, flag))
    return runs
