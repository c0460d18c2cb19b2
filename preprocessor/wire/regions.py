"""Tensors in shared memory of a caller's: what the service and its callers must agree on beside the proto's `RowsRegion`."""

from __future__ import annotations

from collections.abc import Mapping

NAME_PREFIX = "/vlm-preprocessor-rows-"
SECRET_BYTES = 16
ALIGNMENT_BYTES = 64  # of each tensor's first byte: a cache line


def place_tensors(sizes_bytes: Mapping[int, int], start_bytes: int) -> tuple[dict[int, int], int]:
    """Where tensors lie that follow one another from an aligned offset on.

    Args:
        sizes_bytes: Index of a tensor → its size.
    Returns:
        Index of a tensor → offset of its first byte; and the offset of the last tensor's end.
    """
    offsets: dict[int, int] = {}
    end_bytes = start_bytes
    for index, size_bytes in sizes_bytes.items():
        offsets[index] = -(-end_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        end_bytes = offsets[index] + size_bytes
    return offsets, end_bytes
