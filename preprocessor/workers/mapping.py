"""Mappings of shared memory in place of others, as the service and its workers both make them."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

MAP_FIXED = 0x10  # linux/mman.h
LIBC = ctypes.CDLL(None, use_errno=True)
_MAP = LIBC.mmap
_MAP.restype = ctypes.c_void_p
_MAP.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_MAP_FAILED = ctypes.c_void_p(-1).value


def address_of(memory: mmap.mmap | memoryview) -> int:
    """The address of its first byte."""
    return int(np.frombuffer(memory, np.uint8).ctypes.data)


def map_at(address: int, size_bytes: int, protection: int, flags: int, descriptor: int = -1, offset: int = 0) -> None:
    """Put a mapping in the place of what is mapped there; mmap(2).

    Raises:
        OSError: The kernel refuses.
    """
    if _MAP(address, size_bytes, protection, flags | MAP_FIXED, descriptor, offset) == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def map_file(descriptor: int, size_bytes: int, protection: int = mmap.PROT_READ | mmap.PROT_WRITE) -> mmap.mmap:
    """The first bytes of a file, without another descriptor of it, which `mmap.mmap` would keep open.

    Raises:
        OSError: The kernel refuses.
    """
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=protection)
    map_at(address_of(memory), size_bytes, protection, mmap.MAP_SHARED, descriptor)
    return memory


def array_at(memory: memoryview, offset: int, shape: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Bytes of a memory from an offset on, as an array; no copy."""
    size_bytes = math.prod(shape) * dtype.itemsize
    return np.frombuffer(memory[offset : offset + size_bytes], dtype).reshape(shape)


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all bytes to a file from an offset on; pwrite(2) may take fewer at a time.

    Raises:
        OSError: The file cannot take them.
    """
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
