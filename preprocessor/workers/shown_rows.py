"""Rows of the arena for another process of this service that only reads them: a front.

It gets a descriptor of each file that the rows lie in, read-only, once, and keeps the file until another one takes its place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from preprocessor.workers.arena import Arena
from preprocessor.workers.descriptors import close_all, open_read_only

ARENA_FILE = -1
"""The number of the arena's own file. Rows lie there that are in no chunk: in an arena with a name, or written by a thread."""


class Piece(NamedTuple):
    """Bytes of one file.

    Attributes:
        file: The chunk's number, or `ARENA_FILE`.
        offset: In that file.
    """

    file: int
    offset: int
    size_bytes: int


class ShownRows:
    """What one reading process was given."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._given: dict[int, object] = {}

    def pieces_of(self, rows: npt.NDArray[Any]) -> list[Piece] | None:
        """Where rows lie, in order; None if they lie in no arena, or not as one run of bytes."""
        if not rows.flags.c_contiguous or not rows.nbytes:
            return None
        try:
            start = self._arena.offset_of(rows.reshape(-1).view(np.uint8).data)
        except ValueError:
            return None
        stop = start + rows.nbytes
        if (
            self._arena.is_named
        ):  # its file has all that is finished, and takes the chunks' place when their worker ends
            return [Piece(ARENA_FILE, start, rows.nbytes)]
        unit = self._arena.unit_bytes
        pieces = []
        for number in range(start // unit, -(-stop // unit)):
            first, last = max(start, number * unit), min(stop, (number + 1) * unit)
            is_chunk = self._arena.chunks.at(number) is not None
            file, offset = (number, first - number * unit) if is_chunk else (ARENA_FILE, first)
            pieces.append(Piece(file, offset, last - first))
        return pieces

    def missing(self, pieces: Sequence[Piece]) -> list[int]:
        """The files of these pieces that the process does not have yet."""
        files = dict.fromkeys(piece.file for piece in pieces)
        return [file for file in files if self._given.get(file) is not self._file(file)[0]]

    @contextlib.contextmanager
    def give(self, files: Sequence[int]) -> Iterator[list[int]]:
        """Their descriptors, to be sent inside; afterwards the process has the files.

        Raises:
            OSError: No descriptor can be opened.
        """
        found = [self._file(file) for file in files]
        descriptors: list[int] = []
        try:
            for _, descriptor in found:
                descriptors.append(open_read_only(descriptor))
            yield descriptors
        finally:
            close_all(descriptors)
        self._given.update(zip(files, (identity for identity, _ in found), strict=True))

    def _file(self, number: int) -> tuple[object, int]:
        """What a file is known by, and its descriptor."""
        chunk = self._arena.chunks.at(number)
        return (self._arena, self._arena.descriptor) if chunk is None else (chunk, chunk.descriptor)
