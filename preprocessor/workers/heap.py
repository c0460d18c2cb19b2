"""What a process keeps of the memory that it frees.

glibc gives blocks of more than 32 MB back at once and takes them from the kernel again for the next job, which pays a page
fault for every 4 KiB: of a 12-megapixel photo more than half of the time. A worker keeps them instead, up to a limit.

The service itself holds messages alone, whose sizes are its callers' choice. Left to itself, glibc keeps ever larger blocks on
the heap, once it has seen some freed, and a heap for every thread of gRPC's; there they stay between small neighbours.
"""

from __future__ import annotations

import ctypes

_LIBC = ctypes.CDLL(None)
_HAS_SETTINGS = hasattr(_LIBC, "mallopt") and hasattr(_LIBC, "malloc_trim")  # not in every libc; there, nothing is kept
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8  # malloc.h
_LARGE_BYTES = 4 << 20  # more than a piece of a file or of an answer, which come by the hundred
_SERVICE_ARENAS = 2
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """From now on, in this process; `give_back_freed_memory` gives back what lies there when it is called."""
    if _HAS_SETTINGS:
        _LIBC.mallopt(_MMAP_MAX, 0)
        _LIBC.mallopt(_TRIM_THRESHOLD, _NEVER)


def give_back_large_blocks() -> None:
    """From now on, in this process, as soon as they are freed."""
    if _HAS_SETTINGS:
        _LIBC.mallopt(_ARENA_MAX, _SERVICE_ARENAS)
        _LIBC.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        _LIBC.mallopt(_TRIM_THRESHOLD, 2 * _LARGE_BYTES)


def give_back_freed_memory() -> None:
    if _HAS_SETTINGS:
        _LIBC.malloc_trim(0)
