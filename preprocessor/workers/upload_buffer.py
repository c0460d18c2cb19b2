"""A file that arrives in chunks, on its way to shared memory.

A declared size leases memory only after 25 % of the file has arrived; otherwise a sender could take the memory of others by a
declaration alone. After that, chunks are copied straight into the leased range. Before that, and until the end of a file of
undeclared size, chunks wait in a `StagingBuffer`, and count as used memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import mmap

from preprocessor.types.request import FileData
from preprocessor.workers.ranges import Lease
from preprocessor.workers.resources import RequestResources

_MIN_RECEIVED_SHARE = 4  # one part in so many of the declared bytes must have arrived
_EXTENT_BYTES = 4 << 20
_DIGESTED_AT_ONCE_BYTES = (
    64 << 10
)  # more is digested in a thread: it takes longer than the event loop should be held up


class StagingBuffer:
    """A byte queue in pages of its own, which return to the kernel when bytes are dropped, whatever still refers to them.

    Chunks on the heap would not return: the frames of an exception may keep them alive, and small neighbours keep their pages.
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
        """Remove and return the first bytes, at most 4 MiB; empty if there are none."""
        if not self._extents:
            return b""
        extent = self._extents.pop(0)
        data = extent[: min(self._size_bytes, _EXTENT_BYTES)]
        self._size_bytes -= len(data)
        extent.madvise(mmap.MADV_DONTNEED)
        return data

    def drop(self) -> None:
        """Drop all bytes. Calling it twice is fine."""
        while self._extents:
            self._extents.pop().madvise(mmap.MADV_DONTNEED)
        self._size_bytes = 0


class UploadBuffer:
    """One file of a request.

    Attributes:
        size_bytes: What has arrived.
        is_whole: Whether `finish` has been called.
    """

    def __init__(self, resources: RequestResources) -> None:
        self.size_bytes = 0
        self.is_whole = False
        self._resources = resources
        self._declared_bytes: int | None = None
        self._staging = StagingBuffer()
        self._lease: Lease | None = None
        self._sha256 = hashlib.sha256() if resources.are_files_kept else None
        resources.on_exit(self._staging.drop)

    def announce(self, size_bytes: int) -> None:
        """Declare how large the file will be."""
        self._declared_bytes = size_bytes

    @property
    def declared_bytes(self) -> int | None:
        """How large the file is said to be; None where it is not said."""
        return self._declared_bytes

    @property
    def arrived(self) -> memoryview | None:
        """What has arrived, as a view of the arena; None while it is not there."""
        return None if self._lease is None else self._resources.arena.view(self._lease.offset, self.size_bytes)

    async def write(self, data: FileData) -> None:
        """Add the next bytes; all bytes together must not exceed a declared size.

        Raises:
            Overloaded: `MEMORY_BUDGET_FULL`.
        """
        declared_bytes = self._declared_bytes
        received_bytes = self.size_bytes + len(data)
        if (
            self._lease is None
            and declared_bytes is not None
            and received_bytes * _MIN_RECEIVED_SHARE >= declared_bytes
        ):
            await self._move_to_arena(declared_bytes)
        if self._lease is None:
            self._resources.expect_upload(len(data))
            self._staging.append(data)
        else:
            self._resources.arena.write(self._lease.offset + self.size_bytes, data)
        self.size_bytes = received_bytes
        if self._sha256 is not None:
            if len(data) > _DIGESTED_AT_ONCE_BYTES:
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._resources.arena.threads, self._sha256.update, data)
            else:
                self._sha256.update(data)

    async def finish(self) -> memoryview:
        """The whole file, as a view of the arena.

        Raises:
            Overloaded: `MEMORY_BUDGET_FULL`.
        """
        lease = await self._move_to_arena(self.size_bytes) if self._lease is None else self._lease
        self.is_whole = True
        if self._sha256 is not None:
            self._resources.note_digest(lease, self._sha256.digest())
        return self._resources.arena.view(lease.offset, self.size_bytes)

    async def _move_to_arena(self, size_bytes: int) -> Lease:
        """Lease a range for the file, and move there what has arrived."""
        lease = self._resources.lease_file(size_bytes, self.size_bytes)
        position = 0
        while data := self._staging.pop():  # pages are dropped as they are copied: the file is never held twice
            self._resources.arena.write(lease.offset + position, data)
            position += len(data)
            await asyncio.sleep(0)  # a large file must not delay the bytes of other requests
        self._lease = lease
        return lease
