"""One chunk of shared memory, and the chunks that wait for another task of their caller."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections import OrderedDict
from dataclasses import dataclass

from preprocessor.workers.mapping import map_file


@dataclass(slots=True, eq=False)
class Chunk:
    """One chunk.

    Attributes:
        descriptor: Of its file.
        scope: Whose pixels it holds.
        memory: A mapping of it to read, where it is not mapped in the arena.
        is_free: Whether it lies in no leased range.
    """

    descriptor: int
    scope: str
    memory: mmap.mmap | None = None
    is_free: bool = False

    def close(self) -> None:
        """Return its memory to the kernel, also for those who have it mapped: it is sealed against growing again."""
        os.truncate(self.descriptor, 0)
        os.close(self.descriptor)


def new_chunk(size_bytes: int, scope: str, *, is_mapped: bool) -> Chunk:
    """A chunk of fresh memory.

    Args:
        is_mapped: Whether it gets a mapping of its own.
    Raises:
        OSError: The kernel refuses.
    """
    descriptor = os.memfd_create("preprocessor-rows", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.truncate(descriptor, size_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        return Chunk(descriptor, scope, map_file(descriptor, size_bytes, mmap.PROT_READ) if is_mapped else None)
    except OSError:
        os.close(descriptor)
        raise


class SpareChunks:
    """Chunks that no task has, by scope.

    Args:
        chunk_bytes: Size of one.
    Attributes:
        most_bytes: Size of all, at most. The scope that has not put one for longest loses its own first.
    """

    def __init__(self, chunk_bytes: int) -> None:
        self.most_bytes = 0
        self._chunk_bytes = chunk_bytes
        self._count = 0
        self._chunks: OrderedDict[str, list[Chunk]] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """Size of all."""
        return self._count * self._chunk_bytes

    def put(self, chunk: Chunk) -> None:
        """Keep a chunk for the next task of its scope."""
        self._chunks.setdefault(chunk.scope, []).append(chunk)
        self._chunks.move_to_end(chunk.scope)
        self._count += 1
        self.drop(self.size_bytes - self.most_bytes)

    def take(self, scope: str) -> Chunk | None:
        """The scope's chunk that was used last; None: there is none."""
        if scope not in self._chunks:
            return None
        return self._remove(scope, -1)

    def drop(self, size_bytes: int) -> None:
        """Return so much memory to the kernel, or all that there is."""
        while size_bytes > 0 and self._chunks:
            self._remove(next(iter(self._chunks)), 0).close()
            size_bytes -= self._chunk_bytes

    def _remove(self, scope: str, index: int) -> Chunk:
        chunks = self._chunks[scope]
        chunk = chunks.pop(index)
        self._count -= 1
        if not chunks:
            del self._chunks[scope]
        return chunk
