"""What a worker keeps of the memory that its jobs free.

glibc gives blocks of more than 32 MB back at once and takes them from the kernel again for the next job, which pays a page
fault for every 4 KiB: of a 12-megapixel photo more than half of the time. A worker keeps them instead, up to a limit.
"""

from __future__ import annotations

import ctypes

_LIBC = ctypes.CDLL(None)
_HAS_SETTINGS = hasattr(_LIBC, "mallopt") and hasattr(_LIBC, "malloc_trim")  # not in every libc; there, nothing is kept
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """From now on, in this process; `give_back_freed_memory` gives back what lies there when it is called."""
    if _HAS_SETTINGS:
        _LIBC.mallopt(_MMAP_MAX, 0)
        _LIBC.mallopt(_TRIM_THRESHOLD, _NEVER)


def give_back_freed_memory() -> None:
    if _HAS_SETTINGS:
        _LIBC.malloc_trim(0)
