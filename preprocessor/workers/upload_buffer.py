"""A file that arrives in pieces of its sender's choice, on its way to where workers can read it.

Where its size was announced, its lease is taken as soon as a good part has come, and what follows is copied straight there:
not before, or a sender could keep others' lease by a promise alone. Until then, and where no size was announced until its
end, its pieces wait, counted, in pages of their own: see `Stage`.
"""

from __future__ import annotations

import asyncio
import mmap

from preprocessor.types.request import FileData
from preprocessor.workers.arena import Lease
from preprocessor.workers.resources import RequestResources

_MIN_RECEIVED_SHARE = 4  # one part in so many of the announced bytes must have come
_EXTENT_BYTES = 4 << 20


class Stage:
    """Bytes that wait, in pages that go back to the kernel when they are dropped, whoever still refers to them.

    Pieces on the heap would not: an exception's frames may keep them alive, and small neighbours keep their pages.
    """

    def __init__(self) -> None:
        self._extents: list[mmap.mmap] = []
        self._size_bytes = 0

    def append(self, data: FileData) -> None:
        left = memoryview(data)
        while left:
            within = self._size_bytes % _EXTENT_BYTES
            if not within:
                self._extents.append(mmap.mmap(-1, _EXTENT_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            piece = left[: _EXTENT_BYTES - within]
            self._extents[-1][within : within + len(piece)] = piece
            self._size_bytes += len(piece)
            left = left[len(piece) :]

    def pop(self) -> bytes:
        """The first bytes, at most 4 MiB, which are dropped here; empty where there are no more."""
        if not self._extents:
            return b""
        extent = self._extents.pop(0)
        data = extent[: min(self._size_bytes, _EXTENT_BYTES)]
        self._size_bytes -= len(data)
        extent.madvise(mmap.MADV_DONTNEED)
        return data

    def drop(self) -> None:
        """Give all of it back; twice is fine."""
        while self._extents:
            self._extents.pop().madvise(mmap.MADV_DONTNEED)
        self._size_bytes = 0


class UploadBuffer:
    """One file of a claim.

    Attributes:
        size_bytes: What has come.
    """

    def __init__(self, resources: RequestResources) -> None:
        self.size_bytes = 0
        self._resources = resources
        self._announced_bytes: int | None = None
        self._stage = Stage()
        self._lease: Lease | None = None
        resources.on_exit(self._stage.drop)

    def announce(self, size_bytes: int) -> None:
        """Say how large the file will be, once that is known."""
        self._announced_bytes = size_bytes

    async def write(self, data: FileData) -> None:
        """Take the next bytes; of a file whose size was announced, never more than that.

        Raises:
            Overloaded: `MEMORY_BUDGET_FULL`, `SHARED_MEMORY_FULL`.
        """
        announced_bytes = self._announced_bytes
        come_bytes = self.size_bytes + len(data)
        if self._lease is None and announced_bytes is not None and come_bytes * _MIN_RECEIVED_SHARE >= announced_bytes:
            await self._settle(announced_bytes)
        if self._lease is None:
            self._resources.expect_upload(len(data))
            self._stage.append(data)
        else:
            self._resources.arena.write(self._lease.offset + self.size_bytes, data)
        self.size_bytes = come_bytes

    async def finish(self) -> memoryview:
        """The whole file, where it lies in the arena.

        Raises:
            Overloaded: `MEMORY_BUDGET_FULL`, `SHARED_MEMORY_FULL`.
        """
        lease = await self._settle(self.size_bytes) if self._lease is None else self._lease
        return self._resources.arena.view(lease.offset, self.size_bytes)

    async def _settle(self, size_bytes: int) -> Lease:
        """Take the file's lease and move there what waits."""
        lease = self._resources.lease_file(size_bytes, self.size_bytes)
        position = 0
        while data := self._stage.pop():  # the copy replaces it: the file is never held twice
            self._resources.arena.write(lease.offset + position, data)
            position += len(data)
            await asyncio.sleep(0)  # a large file must not hold up everybody else's bytes
        self._lease = lease
        return lease
