"""Arrays ↔ tensor messages. Both ends of the wire use this; it is light, so that a client starts at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from google.protobuf.wrappers_pb2 import UInt64Value

from preprocessor.v1 import preprocessor_pb2 as pb

MAX_CHUNK_BYTES = 1 << 20
MAX_ROWS_BYTES = 2 << 20  # half of what gRPC takes in one message unless it is told otherwise

DTYPES: dict[pb.DataType.ValueType, np.dtype[Any]] = {
    pb.DATA_TYPE_UINT8: np.dtype(np.uint8),
    pb.DATA_TYPE_INT32: np.dtype("<i4"),
    pb.DATA_TYPE_INT64: np.dtype("<i8"),
    pb.DATA_TYPE_BF16: np.dtype(ml_dtypes.bfloat16),
    pb.DATA_TYPE_FP16: np.dtype("<f2"),
    pb.DATA_TYPE_FP32: np.dtype("<f4"),
}
DATA_TYPES = {dtype: number for number, dtype in DTYPES.items()}


def describe_tensor(
    name: str, dtype: np.dtype[Any], shape: Sequence[int], data: npt.NDArray[Any] | None = None
) -> pb.Tensor:
    """A tensor's description, with its elements where `data` is given."""
    return pb.Tensor(
        name=name,
        data_type=DATA_TYPES[dtype],
        shape=shape,
        total_bytes=math.prod(shape) * dtype.itemsize,
        data=b"" if data is None else data.tobytes(),
    )


def is_small(array: npt.NDArray[Any]) -> bool:
    """Whether a tensor travels in the header; a larger one follows in rows."""
    return array.nbytes <= MAX_CHUNK_BYTES


def write_rows(
    tensor_index: int,
    array: npt.NDArray[Any],
    first_row: int,
    row_count: int,
    piece_bytes: Callable[[], int] = lambda: MAX_ROWS_BYTES,
) -> Iterator[bytes]:
    """Rows [first_row, first_row + row_count) as serialized `PrepareResponse`s, each with at most `piece_bytes()` of data, or
    with one row.

    Serialized by hand: the bytes are copied once, where protobuf's messages would copy them four times.

    Args:
        tensor_index: The tensor's place in the header's list.
    """
    start, stop = first_row, first_row + row_count
    while start < stop:
        rows = array[start : min(start + max(1, piece_bytes() // array[0].nbytes), stop)]
        yield rows_message(tensor_index, start, len(rows), [rows.view(np.uint8).data.cast("B")])
        start += len(rows)


def rows_message(tensor_index: int, first_row: int, row_count: int, data: Sequence[bytes | memoryview]) -> bytes:
    """A serialized `PrepareResponse` with rows, whose bytes come in pieces."""
    size_bytes = sum(map(len, data))
    fields = pb.TensorRows(tensor_index=tensor_index, first_row=first_row, row_count=row_count).SerializeToString()
    fields += _DATA_TAG + _varint(size_bytes)
    return b"".join((_ROWS_TAG, _varint(len(fields) + size_bytes), fields, *data))


def read_tensor(message: pb.Tensor) -> npt.NDArray[Any]:
    """A tensor whose data came with it, read-only."""
    return np.frombuffer(message.data, DTYPES[message.data_type]).reshape(message.shape)


def allocate_tensor(message: pb.Tensor) -> npt.NDArray[Any]:
    """Room for a tensor whose rows are to follow; `store_rows` fills it."""
    return np.empty(tuple(message.shape), DTYPES[message.data_type])


def store_rows(rows: pb.TensorRows, tensor: npt.NDArray[Any]) -> None:
    """Put a run of rows in its place."""
    target = tensor[rows.first_row : rows.first_row + rows.row_count]
    target[...] = np.frombuffer(rows.data, tensor.dtype).reshape(target.shape)


def _tag(field: Any) -> bytes:
    """A field's number and the wire type of bytes and messages: length first."""
    return _varint(field.number << 3 | 2)


def _varint(number: int) -> bytes:
    """Made by protobuf itself: this message is a tag of one byte and its number, left out where it is 0."""
    return UInt64Value(value=number).SerializeToString()[1:] or b"\0"


_ROWS_TAG = _tag(pb.PrepareResponse.DESCRIPTOR.fields_by_name["rows"])
_DATA_TAG = _tag(pb.TensorRows.DESCRIPTOR.fields_by_name["data"])
