"""Shared memory of callers that send requests in turn: each open request has a region of its own, used again by later ones."""

from __future__ import annotations

import numpy as np

from preprocessor.client.errors import CallFailed
from preprocessor.client.shared_memory import RowsRegion
from preprocessor.v1 import preprocessor_pb2 as pb

_FIRST_BYTES = 16 << 20


class Regions:
    """The regions of a process of callers."""

    def __init__(self) -> None:
        self._free: list[RowsRegion] = []
        self._size_bytes = _FIRST_BYTES

    def take(self) -> RowsRegion:
        """A region for one request.

        Raises:
            OSError: There is no space left for it.
        """
        return self._free.pop() if self._free else RowsRegion.create(self._size_bytes)

    def give(self, region: RowsRegion, *, is_answered: bool) -> None:
        """A request has ended. If it was not answered, the service may still write to its region."""
        if is_answered and region.size_bytes >= self._size_bytes:
            self._free.append(region)
        else:
            region.close()

    def grow(self, failure: CallFailed) -> None:
        """A request was refused with `REGION_TOO_SMALL`."""
        self._size_bytes = max(self._size_bytes, int(failure.metadata["needed_bytes"]))

    def close(self) -> None:
        """Remove all that are free."""
        while self._free:
            self._free.pop().close()


class RowsReader:
    """Reads one answer whose rows go to a region, for a `Check`."""

    def __init__(self, region: RowsRegion) -> None:
        self._region = region
        self._row_bytes: list[int] = []

    def as_rows(self, message: bytes) -> bytes:
        """The message that would have carried the rows, where this one says that they are ready; else the same message."""
        response = pb.PrepareResponse.FromString(message)
        for tensor in response.header.tensors:
            self._row_bytes.append(tensor.total_bytes // tensor.shape[0] if tensor.total_bytes else 0)
        if not response.HasField("rows_ready"):
            return message
        ready = response.rows_ready
        size_bytes = ready.row_count * self._row_bytes[ready.tensor_index]
        data = self._region.array(ready.offset_bytes, np.dtype(np.uint8), (size_bytes,)).tobytes()
        rows = pb.TensorRows(
            tensor_index=ready.tensor_index, first_row=ready.first_row, row_count=ready.row_count, data=data
        )
        return pb.PrepareResponse(rows=rows).SerializeToString()
