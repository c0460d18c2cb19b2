"""One number for all tensors of an answer: on the pipeline's side of arrays, on a caller's of the messages as they come.

Of `item_hash` only the shape counts: its values change with the `cache_salt` that a request is sent with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.v1 import preprocessor_pb2 as pb

_SALTED = "item_hash"


def of_tensors(tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """What `Checksum` makes of an answer that holds these."""
    return _joined((name, array.shape, _hashed(name, array.view(np.uint8).data)) for name, array in tensors.items())


class Checksum:
    """Of an answer's tensors, in whatever runs of rows they come; ids and timings, which always differ, do not count."""

    def __init__(self) -> None:
        self._tensors: list[pb.Tensor] = []
        self._hashes: list[Any] = []
        self._next_rows: list[int] = []
        self._is_ended = False

    def add(self, message: bytes) -> None:
        """Take the next `PrepareResponse`.

        Raises:
            ValueError: Rows are missing, or come twice.
        """
        response = pb.PrepareResponse.FromString(message)
        for tensor in response.header.tensors:
            self._tensors.append(tensor)
            self._hashes.append(_hashed(tensor.name, tensor.data))
            self._next_rows.append(tensor.shape[0] if tensor.data or not tensor.total_bytes else 0)
        rows = response.rows
        if rows.row_count:
            index = rows.tensor_index
            if rows.first_row != self._next_rows[index]:
                name = self._tensors[index].name
                raise ValueError(f"{name}: row {rows.first_row} where {self._next_rows[index]} was due")
            self._hashes[index].update(rows.data)
            self._next_rows[index] += rows.row_count
        self._is_ended = response.HasField("report")

    def result(self) -> str:
        """The checksum.

        Raises:
            ValueError: The answer is not whole.
        """
        for tensor, row_count in zip(self._tensors, self._next_rows, strict=True):
            if row_count != tensor.shape[0]:
                raise ValueError(f"{tensor.name}: {row_count} rows of {tensor.shape[0]}")
        if not self._is_ended:
            raise ValueError("the answer ended without a report")
        digests = zip(self._tensors, self._hashes, strict=True)
        return _joined((tensor.name, tuple(tensor.shape), digest) for tensor, digest in digests)


def _hashed(name: str, data: bytes | memoryview) -> Any:
    return hashlib.sha256(b"" if name == _SALTED else data)


def _joined(parts: Iterable[tuple[str, Sequence[int], Any]]) -> str:
    lines = sorted(f"{name} {list(shape)} {digest.hexdigest()}" for name, shape, digest in parts)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
