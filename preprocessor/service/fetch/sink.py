"""Where the bytes of a fetched file go."""

from __future__ import annotations

from typing import Protocol


class Sink(Protocol):
    """Takes one file, in order."""

    def announce(self, size_bytes: int) -> None:
        """Say how large the file will be, before its first byte, where that is known; no more may then be written.

        Raises:
            LimitExceeded: It is larger than accepted.
        """

    async def write(self, data: bytes) -> None:
        """Take the next bytes; returns when there is room for more.

        Raises:
            LimitExceeded: The file is larger than accepted.
            Overloaded: `MEMORY_BUDGET_FULL`.
        """


class Source(Protocol):
    """Reads files of one kind of URL."""

    async def fetch(self, url: str, key: str, sink: Sink) -> None:
        """Read the whole file into the sink.

        Args:
            key: The medium's, for messages.
        Raises:
            InvalidRequest: The URL is none, or may not be fetched.
            FetchFailed: It may, and did not give its file.
            TimeoutError: Something took too long.
            Whatever the sink raises.
        """

    async def close(self) -> None:
        """Let go of connections and threads."""
