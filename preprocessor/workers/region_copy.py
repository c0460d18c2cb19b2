"""The copy of rows and results in the file of a named arena, in which an engine on the same host reads them.

It is made by the service, of what a worker has finished, before anybody is told of it: a worker that had the file itself could
map all of it. The copying runs in a thread, while the worker goes on. Others fill `/dev/shm` too, so a range is allocated before
its worker starts.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence

from preprocessor.workers.arena import Arena
from preprocessor.workers.mapping import write_at
from preprocessor.workers.refusals import shared_memory_full


def planned_bytes(arena: Arena, size_bytes: int, working_bytes: int) -> int:
    """Memory of a tensor's copy, beside the tensor; 0 for an arena without a name.

    No more of it is counted than fits beside one tensor that is large: that runs alone.

    Args:
        working_bytes: What making the tensor takes beside both.
    """
    if not arena.is_named:
        return 0
    free_bytes = arena.size_bytes - arena.rows_start - arena.chunks.whole(range(size_bytes)).stop - working_bytes
    return max(0, min(size_bytes, free_bytes))


async def allocate(arena: Arena, span: range) -> None:
    """Allocate the memory for a range of the file. Nothing for an arena without a name.

    Raises:
        Overloaded: `SHARED_MEMORY_FULL`.
    """
    if not arena.is_named or not span:
        return
    whole = arena.chunks.whole(span)
    try:
        await _in_thread(arena, os.posix_fallocate, arena.descriptor, whole.start, len(whole))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise shared_memory_full() from error


async def copy(arena: Arena, span: range) -> None:
    """Copy a range, which is allocated, into the file. Nothing for an arena without a name."""
    if not arena.is_named or not span:
        return
    await _in_thread(arena, _write_all, arena.descriptor, arena.chunks.to_copy(span))
    arena.chunks.note_copied(span)


def _write_all(descriptor: int, pieces: Sequence[tuple[memoryview, int]]) -> None:
    for piece, offset in pieces:
        write_at(descriptor, piece, offset)


async def _in_thread(arena: Arena, function: Callable[..., None], *arguments: object) -> None:
    await asyncio.get_running_loop().run_in_executor(arena.threads, function, *arguments)
