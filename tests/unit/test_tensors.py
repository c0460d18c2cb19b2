"""Tensors on the wire: made by hand, byte for byte what protobuf would make."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.tensors import MAX_ROWS_BYTES, write_rows


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float16, np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    ("row_count", "features"), [(1, 1), (7, 1536), (2000, 1536), (3, MAX_ROWS_BYTES + 5), (200_000, 3)]
)
def test_rows_are_the_bytes_that_protobuf_would_write(dtype: type[Any], row_count: int, features: int) -> None:
    array = np.random.default_rng(0).integers(0, 100, (row_count, features)).astype(dtype)
    first_row = row_count // 3
    read = np.zeros_like(array)
    next_row = first_row
    for wire in write_rows(3, array, first_row, row_count - first_row):
        message = pb.PrepareResponse.FromString(wire)
        assert message.SerializeToString() == wire
        assert (message.rows.tensor_index, message.rows.first_row) == (3, next_row)
        assert len(message.rows.data) <= max(MAX_ROWS_BYTES, array[0].nbytes)
        next_row += message.rows.row_count
        read[message.rows.first_row : next_row] = np.frombuffer(message.rows.data, dtype).reshape(-1, features)
    assert next_row == row_count
    assert read[first_row:].tobytes() == array[first_row:].tobytes()
