"""A file that arrives in pieces of its sender's choice, on its way to where workers can read it.

Where its size was announced, its room is taken as soon as a good part has come, and what follows is copied straight there:
not before, or a sender could keep others' room by a promise alone. Where it was not, its pieces wait, counted, for its end.
"""

from __future__ import annotations

import asyncio
from typing import cast

from preprocessor.workers.arena import Lease
from preprocessor.workers.claim import Claim

_EARNEST = 4  # one part in so many of the announced bytes must have come


class IncomingFile:
    """One file of a claim.

    Attributes:
        size_bytes: What has come.
    """

    def __init__(self, claim: Claim) -> None:
        self.size_bytes = 0
        self._claim = claim
        self._announced_bytes: int | None = None
        self._waiting: list[bytes] = []
        self._room: Lease | None = None

    def announce(self, size_bytes: int) -> None:
        """Say how large the file will be, before its first byte."""
        self._announced_bytes = size_bytes

    async def write(self, data: bytes) -> None:
        """Take the next bytes; of a file whose size was announced, never more than that.

        Raises:
            Overloaded: `MEMORY_BUDGET_FULL`, `SHARED_MEMORY_FULL`.
        """
        if self._room is None:
            self._claim.expect_upload(len(data))
            self._waiting.append(data)
        else:
            self._claim.arena.write(self._room.offset + self.size_bytes, data)
        self.size_bytes += len(data)
        announced_bytes = self._announced_bytes
        if self._room is None and announced_bytes is not None and self.size_bytes * _EARNEST >= announced_bytes:
            await self._settle(announced_bytes)

    async def finish(self) -> bytes:
        """The file, which is whole.

        Raises:
            Overloaded: `MEMORY_BUDGET_FULL`, `SHARED_MEMORY_FULL`.
        """
        room = await self._settle(self.size_bytes) if self._room is None else self._room
        # Called bytes, as it is a file's for all that the service does with it: measure it and pass it on.
        return cast("bytes", self._claim.arena.view(room.offset, self.size_bytes))

    async def _settle(self, size_bytes: int) -> Lease:
        """Take the file's room and move there what waits."""
        room = self._claim.lease_file(size_bytes, self._waiting)
        position = 0
        self._waiting.reverse()
        while self._waiting:
            data = self._waiting.pop()  # the copy replaces it: the file is never held twice
            self._claim.arena.write(room.offset + position, data)
            position += len(data)
            await asyncio.sleep(0)  # a large file must not hold up everybody else's bytes
        self._room = room
        return room
