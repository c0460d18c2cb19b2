"""Bytes of a file that wait in pages of their own."""

from __future__ import annotations

import random
from pathlib import Path

from preprocessor.workers.upload_buffer import StagingBuffer

MIB = 1 << 20


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:", 1)[1].split()[0]) << 10


def test_bytes_are_popped_in_the_order_they_were_appended() -> None:
    staging, noise = StagingBuffer(), random.Random(1)
    pieces = [noise.randbytes(noise.choice((1, 1000, 3 * MIB, 5 * MIB))) for _ in range(12)]
    for piece in pieces:
        staging.append(piece)
    popped = b"".join(iter(staging.pop, b""))
    assert popped == b"".join(pieces)
    assert staging.pop() == b""


def test_dropped_pages_return_to_the_kernel_even_if_something_still_refers_to_them() -> None:
    staging = StagingBuffer()
    staging.append(bytes(64 * MIB).replace(b"\0", b"x"))
    held, before = list(staging._extents), anonymous_bytes()
    staging.drop()
    assert anonymous_bytes() < before - 60 * MIB
    assert len(held) == 16
