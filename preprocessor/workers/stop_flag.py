"""How a worker is told to stop its task: a page of its own that the service writes and the worker can only read."""

from __future__ import annotations

import mmap
import os

from preprocessor.workers.descriptors import open_read_only
from preprocessor.workers.mapping import map_file


class StopFlag:
    """The number of the task that a worker is to stop.

    Attributes:
        numbers: uint64 [1], read at every checkpoint.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self.numbers = memoryview(memory)[:8].cast("Q")

    def stop(self, task_id: int) -> None:
        """Tell the worker, on the service's side."""
        self.numbers[0] = task_id


def make() -> tuple[StopFlag, int]:
    """A flag, and the descriptor by which a worker opens it; whoever has sent that closes it.

    Raises:
        OSError: There are no descriptors.
    """
    descriptor = os.memfd_create("preprocessor-stop", os.MFD_CLOEXEC)
    try:
        os.truncate(descriptor, mmap.PAGESIZE)
        return StopFlag(map_file(descriptor, mmap.PAGESIZE)), open_read_only(descriptor)
    finally:
        os.close(descriptor)


def open_flag(descriptor: int) -> StopFlag:
    """The flag as its worker sees it: it cannot be made writable."""
    return StopFlag(map_file(descriptor, mmap.PAGESIZE, mmap.PROT_READ))
