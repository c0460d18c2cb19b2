"""Shared memory of which a worker sees only what its task needs: the memory for rows, in chunks that are files of their own.

A chunk is a memfd that the service has mapped at its place in the arena. Its descriptor is sent to the worker of a task whose
rows lie in it, and to no other. A worker unmaps what its next task does not need before it reads a file of that task. It keeps
free memory of its own earlier tasks, because mapping pages takes as long as filling them several times: if another task needs
that memory while the worker runs, a new chunk takes its place.

A worker that was taken over may keep whatever it was given. So a chunk that held one caller's pixels is never given to another
caller's worker either. A chunk that is replaced is cut to nothing: whoever has it mapped finds no memory behind it.
"""

from __future__ import annotations

import ctypes
import fcntl
import math
import mmap
import os
import resource
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import numpy as np
import numpy.typing as npt

BATCH_COUNT = 64
"""Descriptors that are sent together: a worker may have only so many open."""
MAP_FIXED = 0x10  # linux/mman.h

_LEAST_BYTES = 512 << 10  # a small photo takes as much
_MOST_CHUNKS = 8192  # an eighth of the mappings that a process may have, vm.max_map_count
_DESCRIPTOR_SHARE = 4  # one part in so many of the descriptors that this process may open
LIBC = ctypes.CDLL(None, use_errno=True)
_MAP = LIBC.mmap
_MAP.restype = ctypes.c_void_p
_MAP.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_MAP_FAILED = ctypes.c_void_p(-1).value


def map_at(address: int, size_bytes: int, protection: int, flags: int, descriptor: int = -1, offset: int = 0) -> None:
    """Put a mapping in the place of what is mapped there; mmap(2).

    Raises:
        OSError: The kernel refuses.
    """
    if _MAP(address, size_bytes, protection, flags | MAP_FIXED, descriptor, offset) == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def array_at(memory: memoryview, offset: int, shape: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Bytes of a memory from an offset on, as an array; no copy."""
    size_bytes = math.prod(shape) * dtype.itemsize
    return np.frombuffer(memory[offset : offset + size_bytes], dtype).reshape(shape)


def open_read_only(descriptor: int) -> int:
    """Another descriptor of the same file, by which nobody can write or make a mapping that can be written."""
    return os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)


def chunk_bytes(arena_bytes: int) -> int:
    """Size of the chunks of an arena: as small as the descriptors and mappings of a process allow."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    count = _MOST_CHUNKS if hard == resource.RLIM_INFINITY else min(_MOST_CHUNKS, max(1, hard // _DESCRIPTOR_SHARE))
    size_bytes = _LEAST_BYTES
    while size_bytes * count < arena_bytes:
        size_bytes *= 2
    return size_bytes


def allow_descriptors() -> None:
    """Let this process open as many descriptors as its hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True, slots=True)
class Windows:
    """Service → worker: what the worker is to have mapped from now on, in runs of chunks by number.

    Attributes:
        kept: (first, count): what it has mapped already.
        new: (first, count, whether it may write): their descriptors follow, in this order.
    """

    kept: tuple[tuple[int, int], ...] = ()
    new: tuple[tuple[int, int, bool], ...] = ()


@dataclass(slots=True, eq=False)
class _Chunk:
    """One chunk.

    Attributes:
        descriptor: Of its file.
        scope: Whose pixels it holds.
        is_free: Whether it lies in no leased range.
    """

    descriptor: int
    scope: str
    is_free: bool = False


class GivenChunks:
    """What one worker process has mapped, as the service knows it.

    Attributes:
        chunks: By number, with whether the worker may write.
        is_running: Whether it has a task; if not, it unmaps what it is told to before it reads anything.
    """

    def __init__(self) -> None:
        self.chunks: dict[int, tuple[_Chunk, bool]] = {}
        self.is_running = False


class Chunks:
    """The chunks of one arena, on the service's side.

    Args:
        address: Of the arena's first byte; a multiple of `size_bytes` lies behind it.
        file: What is mapped there where there is no chunk.
        size_bytes: Of one chunk.
    Attributes:
        free_bytes: Size of the chunks that lie in no leased range.
    """

    def __init__(self, address: int, file: int, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.free_bytes = 0
        self._address = address
        self._file = file
        self._chunks: dict[int, _Chunk] = {}
        self._scopes: Counter[str] = Counter()  # chunks by scope
        self._workers: WeakSet[GivenChunks] = WeakSet()

    def has_others(self, scope: str) -> bool:
        """Whether any chunk has held pixels of another scope."""
        return any(other != scope for other in self._scopes)

    def scope_of(self, offset: int) -> str | None:
        """Whose pixels the chunk at this offset has held; None: there is none."""
        chunk = self._chunks.get(offset // self.size_bytes)
        return None if chunk is None else chunk.scope

    def at(self, number: int) -> _Chunk | None:
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
        wanted = {number: (self._chunks[number], False) for span in read for number in self._numbers(span)}
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
        for number in self._numbers(range(start, end)):
            if (chunk := self._chunks.get(number)) is not None:
                self._set_free(chunk, is_free=True)

    def drop(self, start: int, end: int) -> None:
        """Return the memory of all chunks of [start, end) to the kernel."""
        for number in self._numbers(range(start, end)):
            if number in self._chunks:
                self._remove(number)

    def close(self) -> None:
        """Return the memory of all chunks to the kernel."""
        for number in list(self._chunks):
            self._remove(number)

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

    def _owned(self, number: int, scope: str) -> _Chunk:
        """The chunk of that number, which has held nothing of another scope; it is free no longer."""
        chunk = self._chunks.get(number)
        if chunk is not None and chunk.scope == scope:
            self._set_free(chunk, is_free=False)
            return chunk
        if chunk is not None:
            self._remove(number)
        descriptor = os.memfd_create("preprocessor-rows", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.truncate(descriptor, self.size_bytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
            self._map(number, descriptor, 0)
        except OSError:
            os.close(descriptor)
            raise
        chunk = self._chunks[number] = _Chunk(descriptor, scope)
        self._scopes[scope] += 1
        return chunk

    def _set_free(self, chunk: _Chunk, *, is_free: bool) -> None:
        self.free_bytes += (is_free - chunk.is_free) * self.size_bytes
        chunk.is_free = is_free

    def _remove(self, number: int) -> None:
        self._map(number, self._file, number * self.size_bytes)
        chunk = self._chunks.pop(number)
        self._set_free(chunk, is_free=False)
        self._scopes[chunk.scope] -= 1
        if not self._scopes[chunk.scope]:
            del self._scopes[chunk.scope]
        os.truncate(chunk.descriptor, 0)  # for those who have it mapped, too; it is sealed against growing again
        os.close(chunk.descriptor)

    def _map(self, number: int, descriptor: int, offset: int) -> None:
        address = self._address + number * self.size_bytes
        map_at(address, self.size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, offset)


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors."""
    for descriptor in descriptors:
        os.close(descriptor)


def _runs(numbers: Iterable[tuple[int, bool]]) -> list[tuple[int, int, bool]]:
    """(first, count, flag) of numbers that follow each other with the same flag, in the order given."""
    runs: list[tuple[int, int, bool]] = []
    for number, flag in numbers:
        if runs and runs[-1][0] + runs[-1][1] == number and runs[-1][2] == flag:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1, flag)
        else:
            runs.append((number, 1, flag))
    return runs
