"""How much freed memory a process keeps.

glibc returns freed blocks of more than 32 MB to the kernel at once and takes them back for the next task. That costs a page
fault for every 4 KiB: more than half of the time that a 12-megapixel photo takes. A worker keeps such blocks instead, up to a
limit.

The service itself holds messages only, whose sizes its callers choose. By default, glibc keeps ever larger blocks on the heap
once it has seen some freed, and a heap for each thread of gRPC. There they stay between small neighbours.
"""

from __future__ import annotations

import ctypes

_LIBC = ctypes.CDLL(None)
_HAS_SETTINGS = hasattr(_LIBC, "mallopt") and hasattr(
    _LIBC, "malloc_trim"
)  # not in every libc; without them, nothing changes
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8  # malloc.h
_LARGE_BYTES = 4 << 20  # more than a chunk of a file or of an answer, of which there are hundreds
_SERVICE_ARENAS = 2
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """From now on, this process keeps the memory that it frees, until `give_back_freed_memory` is called.

    All its threads share one heap: each further one would reserve 64 MB of address space, and free memory of its own.
    """
    if _HAS_SETTINGS:
        _LIBC.mallopt(_ARENA_MAX, 1)
        _LIBC.mallopt(_MMAP_MAX, 0)
        _LIBC.mallopt(_TRIM_THRESHOLD, _NEVER)


def give_back_large_blocks() -> None:
    """From now on, this process returns large blocks to the kernel as soon as they are freed."""
    if _HAS_SETTINGS:
        _LIBC.mallopt(_ARENA_MAX, _SERVICE_ARENAS)
        _LIBC.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        _LIBC.mallopt(_TRIM_THRESHOLD, 2 * _LARGE_BYTES)


def give_back_freed_memory() -> None:
    """Return all freed memory to the kernel."""
    if _HAS_SETTINGS:
        _LIBC.malloc_trim(0)
