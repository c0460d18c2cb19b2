"""Files that stay in the arena after their request, so that their callers need not send them again.

They give way to files that arrive, least recently used first. A file is found by its SHA-256 within its scope, so nobody gets
a file that it could not have sent.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from preprocessor.workers.ranges import Lease

FileKey = tuple[str, bytes]
"""Scope, SHA-256 of the file."""


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A file in the arena.

    Attributes:
        lease: The cache's own.
        size_bytes: Of the file; its range is larger.
    """

    lease: Lease
    size_bytes: int


class FileCache:
    """Finds and keeps files; on the event loop alone.

    Args:
        max_bytes: What all of them may take together; 0 keeps nothing.
    Attributes:
        hit_count, miss_count: Files that callers named by digest, and that were found or not.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._files: OrderedDict[FileKey, CachedFile] = OrderedDict()
        self.size_bytes = 0
        self.hit_count = 0
        self.miss_count = 0

    def __len__(self) -> int:
        return len(self._files)

    def find(self, key: FileKey) -> CachedFile | None:
        """A file, which counts as used now."""
        found = self._files.get(key)
        if found is None:
            self.miss_count += 1
            return None
        self.hit_count += 1
        self._files.move_to_end(key)
        return found

    def add(self, key: FileKey, lease: Lease, size_bytes: int) -> None:
        """Keep a file.

        Args:
            lease: Of its range; the cache takes one of its own.
        """
        if lease.size_bytes > self._max_bytes:
            return
        if key in self._files:
            self._files.move_to_end(key)
            return
        self._files[key] = CachedFile(lease.share(is_kept=True), size_bytes)
        self.size_bytes += lease.size_bytes
        while self.size_bytes > self._max_bytes:
            self._drop(next(iter(self._files)))

    def give_way(self) -> bool:
        """Drop the least recently used file that nobody reads; False if there is none."""
        for key, file in self._files.items():
            if file.lease.is_sole:
                self._drop(key)
                return True
        return False

    def clear(self) -> None:
        """Drop everything."""
        while self._files:
            self._drop(next(iter(self._files)))

    def _drop(self, key: FileKey) -> None:
        lease = self._files.pop(key).lease
        self.size_bytes -= lease.size_bytes
        lease.release()
