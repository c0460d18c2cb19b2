"""One message from its parts, copied so that other threads get their turn."""

from __future__ import annotations

import io
from collections.abc import Iterable

COPY_PIECE_BYTES = 1 << 20
"""Copying holds the interpreter's lock, piece by piece: between two pieces other threads, such as an event loop, get it."""


def join_parts(parts: Iterable[bytes | memoryview]) -> bytes:
    """All parts, one after another, in one copy.

    Args:
        parts: Memoryviews are of bytes and contiguous.
    """
    joined = io.BytesIO()
    for part in parts:
        for start in range(0, len(part), COPY_PIECE_BYTES):
            joined.write(part[start : start + COPY_PIECE_BYTES] if len(part) > COPY_PIECE_BYTES else part)
    return joined.getvalue()  # hands its buffer over, without a copy
