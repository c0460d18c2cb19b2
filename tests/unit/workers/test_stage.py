"""Bytes that wait for their file's end, in pages of their own."""

from __future__ import annotations

import random
from pathlib import Path

from preprocessor.workers.upload_buffer import Stage

MIB = 1 << 20


def anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:", 1)[1].split()[0]) << 10


def test_what_waits_comes_out_as_it_went_in() -> None:
    stage, noise = Stage(), random.Random(1)
    pieces = [noise.randbytes(noise.choice((1, 1000, 3 * MIB, 5 * MIB))) for _ in range(12)]
    for piece in pieces:
        stage.append(piece)
    came = b"".join(iter(stage.pop, b""))
    assert came == b"".join(pieces)
    assert stage.pop() == b""


def test_what_is_dropped_is_the_kernel_s_again_though_somebody_still_refers_to_it() -> None:
    stage = Stage()
    stage.append(bytes(64 * MIB).replace(b"\0", b"x"))
    held, before = list(stage._extents), anonymous_bytes()
    stage.drop()
    assert anonymous_bytes() < before - 60 * MIB
    assert len(held) == 16
