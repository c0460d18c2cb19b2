"""A front's side of rows in shared memory: it has their files mapped, and makes messages of what lies in them.

A file is cut only when no request holds it, and the service holds a request's rows until the front has said that it reads them no
more. So no page is read that may be gone, which would end this process by SIGBUS.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
from collections.abc import Callable, Iterator, Sequence

from preprocessor.service.fronts.frames import FILE_NUMBER, RowsPlace
from preprocessor.wire.tensors import rows_message
from preprocessor.workers.descriptors import BATCH_COUNT
from preprocessor.workers.shown_rows import Piece


class RowFiles:
    """The files that the service has given.

    Args:
        supply: The socket by which they come; it does not block.
    """

    def __init__(self, supply: socket.socket) -> None:
        self._supply = supply
        self._files: dict[int, mmap.mmap] = {}
        self._received_count = 0

    def receive(self) -> None:
        """Take what has come."""
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._supply, BATCH_COUNT * FILE_NUMBER.size, BATCH_COUNT)
            except BlockingIOError:
                return
            if not data:
                return  # the service is gone, as the other socket tells too
            for (number,), descriptor in zip(FILE_NUMBER.iter_unpack(data), descriptors, strict=True):
                if number in self._files:
                    self._files.pop(number).close()
                with contextlib.suppress(ValueError):  # it was cut to nothing meanwhile: its request has ended
                    self._files[number] = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
                os.close(descriptor)
                self._received_count += 1

    def messages(self, place: RowsPlace, message_bytes: Callable[[], int]) -> Iterator[bytes]:
        """Rows as serialized `PrepareResponse`s, each with at most `message_bytes()` of data, or with one row."""
        if self._received_count < place.descriptor_count:
            self.receive()
        row_bytes = sum(piece.size_bytes for piece in place.pieces) // place.row_count
        pieces, row, stop = list(place.pieces), place.first_row, place.first_row + place.row_count
        while row < stop:
            row_count = min(max(1, message_bytes() // row_bytes), stop - row)
            taken = _take(pieces, row_count * row_bytes)
            yield rows_message(place.tensor_index, row, row_count, [self._view(piece) for piece in taken])
            row += row_count

    def _view(self, piece: Piece) -> memoryview:
        return memoryview(self._files[piece.file])[piece.offset : piece.offset + piece.size_bytes]


def _take(pieces: list[Piece], size_bytes: int) -> Sequence[Piece]:
    """The first so many bytes of the pieces, which are then no part of them."""
    taken = []
    while size_bytes:
        first = pieces[0]
        size = min(size_bytes, first.size_bytes)
        taken.append(first._replace(size_bytes=size))
        if size == first.size_bytes:
            pieces.pop(0)
        else:
            pieces[0] = Piece(first.file, first.offset + size, first.size_bytes - size)
        size_bytes -= size
    return taken
