"""Parts of a message joined piece by piece are the parts, whatever their sizes."""

from __future__ import annotations

import numpy as np
import pytest

from engine_client.joining import COPY_PIECE_BYTES, join_parts


@pytest.mark.parametrize(
    "size", [0, 1, COPY_PIECE_BYTES - 1, COPY_PIECE_BYTES, COPY_PIECE_BYTES + 1, 3 * COPY_PIECE_BYTES]
)
def test_parts_are_joined_whole(size: int) -> None:
    array = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    assert join_parts([b"head", array.data, b"", array.tobytes(), b"tail"]) == b"head" + array.tobytes() * 2 + b"tail"
