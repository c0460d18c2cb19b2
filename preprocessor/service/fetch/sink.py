"""The interfaces between sources of files and what takes their bytes."""

from __future__ import annotations

from typing import Protocol


class Sink(Protocol):
    """Takes the bytes of one file, in order."""

    def announce(self, size_bytes: int) -> None:
        """Announce the file's size before its first byte, if it is known. No more than that may be written.

        Raises:
            LimitExceeded: The file is larger than accepted.
        """

    async def write(self, data: bytes) -> None:
        """Take the next bytes; returns when more can be taken.

        Raises:
            LimitExceeded: The file is larger than accepted.
            Overloaded: `MEMORY_BUDGET_FULL`.
        """


class Source(Protocol):
    """Reads files by one kind of URL."""

    async def fetch(self, url: str, key: str, sink: Sink) -> None:
        """Read the whole file into the sink.

        Args:
            key: The medium's, for messages.
        Raises:
            InvalidRequest: The URL is malformed or not allowed.
            FetchFailed: The URL is allowed, and its file could not be read.
            TimeoutError: A timeout of the settings has passed.
            Whatever the sink raises.
        """

    async def close(self) -> None:
        """Close connections and threads."""
