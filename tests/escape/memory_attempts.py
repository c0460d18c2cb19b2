"""What code does with shared memory that has taken over a decoder: payloads that are given some of it, as those of real tasks."""

from __future__ import annotations

import ctypes
import mmap
import os
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from preprocessor.workers.mapping import map_at
from preprocessor.workers.rows_window import RowsWindow
from preprocessor.workers.worker import StopCheck
from tests.unit.workers.payloads import NoModel, Step

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mremap.restype = ctypes.c_void_p
_KEPT: list[int] = []
"""Addresses of mappings that this process has kept from earlier tasks."""


@dataclass(frozen=True)
class MemoryTaken(NoModel):
    """Workers that are forked with it have this module loaded."""


@dataclass(frozen=True)
class WithMemory(Step):
    """A payload that is given [start, stop) of the arena to write."""

    start: int
    stop: int

    @property
    def written_bytes(self) -> range:  # type: ignore[override]
        return range(self.start, self.stop)

    def do(self, check: Any, tell: Any) -> Any:
        raise AssertionError("`run` calls `use`")

    def run(self, model: Any, arena: RowsWindow, check: Any, on_rows_written: Callable[[int, int], None]) -> Any:
        return self.use(arena, check)

    @abstractmethod
    def use(self, memory: RowsWindow, check: StopCheck) -> Any:
        """What `run` returns."""


@dataclass(frozen=True)
class Fill(WithMemory):
    """Fill what it is given; returns the process id."""

    value: int = 7

    def use(self, memory: RowsWindow, check: StopCheck) -> int:
        np.frombuffer(memory.view(self.start, self.stop - self.start), np.uint8)[:] = self.value
        return os.getpid()


@dataclass(frozen=True)
class Read(WithMemory):
    """Return the largest byte from `at` on, which it may not have been given."""

    at: int = 0

    def use(self, memory: RowsWindow, check: StopCheck) -> int:
        return max(memory.view(self.at, mmap.PAGESIZE))


@dataclass(frozen=True)
class Write(WithMemory):
    """Write where it was given nothing."""

    at: int = 0

    def use(self, memory: RowsWindow, check: StopCheck) -> str:
        memory.view(self.at, 1)[:] = b"x"
        return "written"


@dataclass(frozen=True)
class Keep(WithMemory):
    """Fill what it is given, and map it a second time, where the service's rules do not reach."""

    value: int = 1

    def use(self, memory: RowsWindow, check: StopCheck) -> int:
        array = np.frombuffer(memory.view(self.start, self.stop - self.start), np.uint8)
        array[:] = self.value
        source, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(mmap.PAGESIZE)
        address = _LIBC.mremap(source, ctypes.c_size_t(0), size, 1)  # MREMAP_MAYMOVE; an old size of 0 copies a mapping
        assert address is not None
        _KEPT.append(address)
        return ctypes.string_at(address, 1)[0]


@dataclass(frozen=True)
class ReadKept(Step):
    """Read what an earlier task of this process has kept."""

    def do(self, check: Any, tell: Any) -> int:
        tell(os.getpid())
        return ctypes.string_at(_KEPT[-1], 1)[0]


@dataclass(frozen=True)
class SetFlag(Step):
    """Make the page of its stop flag writable; returns the kernel's answer."""

    def run(self, model: Any, arena: RowsWindow, check: Any, on_rows_written: Callable[[int, int], None]) -> str:
        page = np.frombuffer(check._stopped, np.uint64).ctypes.data
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        failed = _LIBC.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), protection)
        return os.strerror(ctypes.get_errno()) if failed else "writable"

    def do(self, check: Any, tell: Any) -> Any:
        raise AssertionError("`run` does it all")


@dataclass(frozen=True)
class FillRows(WithMemory):
    """Fill four rows, and announce the first three one at a time."""

    value: int = 1
    expected_rows: ClassVar[range] = range(4)

    @property
    def row_bytes(self) -> int:
        return (self.stop - self.start) // 4

    def run(self, model: Any, arena: RowsWindow, check: Any, on_rows_written: Callable[[int, int], None]) -> str:
        for row in range(4):
            np.frombuffer(arena.view(self.start + row * self.row_bytes, self.row_bytes), np.uint8)[:] = self.value
            if row < 3:
                on_rows_written(row, 1)
        return "filled"

    def use(self, memory: RowsWindow, check: StopCheck) -> Any:
        raise AssertionError("`run` does it all")


@dataclass(frozen=True)
class Borrow(Step):
    """Return the distinct bytes of a range that it may only read, or write there."""

    start: int
    stop: int
    writes: bool = False

    @property
    def read_bytes(self) -> tuple[range, ...]:  # type: ignore[override]
        return (range(self.start, self.stop),)

    def run(self, model: Any, arena: RowsWindow, check: Any, on_rows_written: Callable[[int, int], None]) -> list[int]:
        memory = arena.view(self.start, self.stop - self.start)
        if self.writes:
            memory[:1] = b"x"
        return sorted(set(memory))

    def do(self, check: Any, tell: Any) -> Any:
        raise AssertionError("`run` does it all")


@dataclass(frozen=True)
class ReadDescriptors(Step):
    """Return the descriptors by which a byte at an offset of a file can be read, of those that may be a named region."""

    offset: int

    def do(self, check: Any, tell: Any) -> list[int]:
        found = []
        for descriptor in range(3, 64):
            try:
                if os.pread(descriptor, 1, self.offset):
                    found.append(descriptor)
            except OSError:
                continue
        return found


@dataclass(frozen=True)
class MapDescriptors(ReadDescriptors):
    """The same by mapping them, as chunks are mapped."""

    def do(self, check: Any, tell: Any) -> list[int]:
        place = mmap.mmap(-1, mmap.PAGESIZE)
        address = np.frombuffer(place, np.uint8).ctypes.data
        found = []
        for descriptor in range(3, 64):
            try:
                map_at(address, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, self.offset)
            except OSError:
                continue
            found.append(descriptor)
        return found
