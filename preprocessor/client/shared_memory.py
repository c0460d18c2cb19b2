"""Shared memory for the rows of answers, from a service on the same host (`--caller-shared-memory`)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from engine_client.shm import OwnedRegion
from preprocessor.client.errors import CallFailed
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.regions import NAME_PREFIX, SECRET_BYTES

_LEAST_BYTES = 16 << 20
_NO_BYTES = np.empty(0, np.uint8)


class RowsRegion:
    """Shared memory of this process that `prepare` may use for one call at a time; also a context manager.

    The arrays of an answer lie in it, and hold the rows of the last call that used it. Their memory stays until the last of them
    is gone. After a call that was cancelled or failed, use another region: the service may write to this one for a moment. If the
    process is killed, what is left in `/dev/shm` is removed by a service when it starts.
    """

    def __init__(self, region: OwnedRegion, *, is_for_one_call: bool = False) -> None:
        self._region = region
        self._bytes = np.frombuffer(region.buffer, np.uint8)  # keeps the memory when the name is removed
        self._is_for_one_call = is_for_one_call

    @classmethod
    def create(cls, size_bytes: int, *, mode: int = 0o600, is_for_one_call: bool = False) -> Self:
        """Allocate shared memory.

        Args:
            size_bytes: At least 1; rounded up to whole pages. All of it is taken at once.
            mode: Of the file; 0o660 where the service runs as another user of the same group.
            is_for_one_call: Its name is removed as soon as the service has opened it.
        Raises:
            OSError: ENOSPC: `/dev/shm` has less space left.
        """
        region = OwnedRegion.create(size_bytes, mode=mode, prefix=NAME_PREFIX, is_allocated=True)
        return cls(region, is_for_one_call=is_for_one_call)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._region.key!r}, {self.size_bytes} bytes)"

    @property
    def size_bytes(self) -> int:
        return self._bytes.size

    def message(self) -> pb.RowsRegion:
        """What tells the service of it, for one call: a new secret is written to its beginning."""
        secret = secrets.token_bytes(SECRET_BYTES)
        self._bytes[:SECRET_BYTES] = np.frombuffer(secret, np.uint8)
        return pb.RowsRegion(name=self._region.key, size_bytes=self.size_bytes, secret=secret)

    def opened(self) -> None:
        """The service has opened it for a call."""
        if self._is_for_one_call:
            self._region.close()

    def array(self, offset_bytes: int, dtype: np.dtype[Any], shape: Sequence[int]) -> npt.NDArray[Any]:
        """A tensor in it; no copy."""
        count = int(np.prod(shape, dtype=np.int64))
        return self._bytes[offset_bytes : offset_bytes + count * dtype.itemsize].view(dtype).reshape(shape)

    def close(self) -> None:
        """Remove its name. A call that the service has begun goes on, and arrays keep their memory. Closing twice is fine."""
        self._bytes = _NO_BYTES
        self._region.close()
        with suppress(BufferError):  # arrays of an answer still lie in it
            self._region.buffer.close()


class CallRegions:
    """The regions that a client makes for single calls, each as large as the largest that a call needed so far."""

    def __init__(self) -> None:
        self._size_bytes = _LEAST_BYTES

    @contextmanager
    def region(self, shared_memory: bool | RowsRegion) -> Iterator[RowsRegion | None]:
        """The region for a call of `prepare`, by its argument `shared_memory`; None where rows come in messages.

        Raises:
            OSError: As `RowsRegion.create`.
        """
        if isinstance(shared_memory, RowsRegion):
            yield shared_memory
        elif shared_memory:
            with RowsRegion.create(self._size_bytes, is_for_one_call=True) as region:
                yield region
        else:
            yield None

    def grow(self, region: RowsRegion | None, shared_memory: bool | RowsRegion, failure: CallFailed) -> bool:
        """Returns whether a call failed because the region was too small that was made for it: the next one will be larger."""
        if shared_memory is not True or region is None or failure.reason != "REGION_TOO_SMALL":
            return False
        needed_bytes = int(failure.metadata.get("needed_bytes", 0))
        self._size_bytes = max(self._size_bytes, needed_bytes)
        return needed_bytes > region.size_bytes
