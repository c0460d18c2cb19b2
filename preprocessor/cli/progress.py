"""One line on a terminal that says how much of a request has been sent, and how much of the result has come."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self


class ProgressLine:
    """Shown on standard error while the `with` block runs, and only if that is a terminal.

    `sent` and `received` are the two `Progress` functions of `Client`; they may be called from several threads.
    """

    def __init__(self) -> None:
        self._is_watched = sys.stderr.isatty()
        self._shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def sent(self, sent_bytes: int, total_bytes: int) -> None:
        self._show(f"sent {_megabytes(sent_bytes, total_bytes)}")

    def received(self, received_bytes: int, total_bytes: int) -> None:
        self._show(f"received {_megabytes(received_bytes, total_bytes)}")

    def clear(self) -> None:
        """Take the line away, so that other text can stand there."""
        if self._shown:
            self._show("")

    def _show(self, text: str) -> None:
        if self._is_watched and text != self._shown:
            self._shown = text
            print(end=f"\r\x1b[K{text}", file=sys.stderr, flush=True)


def _megabytes(part_bytes: int, total_bytes: int) -> str:
    return f"{part_bytes / 1e6:,.0f} of {total_bytes / 1e6:,.0f} MB"
