"""The rows of one prompt's `pixel_patches`, whole or in pieces. Rows come in order, so those received are a prefix."""

from __future__ import annotations

from typing import Any, Protocol

from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.layout import ModelLayout
from engine_client.contract.prompt import Prompt, check_rows
from engine_client.contract.tensors import Array


class RowStorage(Protocol):
    """Where the rows of one prompt are kept, such as a GPU's memory. Callers have checked every index."""

    def allocate(self, row_count: int, feature_count: int) -> None:
        """Make room for all rows; called once, before the first `write`."""

    def write(self, first_row: int, rows: Array) -> None:
        """Copy rows, uint8 [n, feature_count], to their place."""

    def adopt(self, rows: Array) -> None:
        """Keep all rows as they are, without a copy; called in place of `allocate` and `write`."""

    def read(self, start: int, stop: int) -> Any:
        """Rows `start` to `stop`, uint8 [stop - start, feature_count], in the storage's own type of array."""

    def free(self) -> None:
        """Free the memory; nothing is read afterwards."""


class RowBuffer:
    """Collects the rows of one prompt.

    Args:
        prompt: Says how many rows there will be.
        layout: Says how long they are.
        storage: Where they are kept.
    """

    def __init__(self, prompt: Prompt, layout: ModelLayout, storage: RowStorage) -> None:
        self._layout = layout
        self._total = prompt.row_count
        self._storage = storage
        self._is_allocated = False
        self._count = 0

    @property
    def row_count(self) -> int:
        """Rows received."""
        return self._count

    @property
    def is_complete(self) -> bool:
        return self._count == self._total

    def take_all(self, rows: Array) -> None:
        """Take every row at once, as `check_prompt` has checked them; without a copy, so they must not change."""
        self._storage.adopt(rows)
        self._count = len(rows)

    def take_none(self) -> None:
        """No rows will come, and none are needed."""
        self._total = 0

    def add(self, first_row: int, rows: Array) -> None:
        """Take the next rows, with a copy.

        Raises:
            InvalidPrompt: they are not the next ones, too many, or of another length.
        """
        check_rows(rows, self._layout)
        if first_row != self._count:
            raise InvalidPrompt(f"first_row is {first_row}; {self._count} rows have come, and the next must follow")
        if first_row + len(rows) > self._total:
            raise InvalidPrompt(f"pixel_patches has {first_row + len(rows)} rows; grid_thw needs {self._total}")
        if not len(rows):
            return
        if not self._is_allocated:
            self._storage.allocate(self._total, self._layout.feature_count)
            self._is_allocated = True
        self._storage.write(first_row, rows)
        self._count += len(rows)  # last: another thread may read the rows before it

    def between(self, start: int, stop: int) -> Any:
        """Rows that have been received; see `RowStorage.read`.

        Raises:
            IndexError: not all of them have been.
        """
        if not 0 <= start <= stop <= self._count:
            raise IndexError(f"rows {start} to {stop} of {self._count} that have come")
        return self._storage.read(start, stop)

    def free(self) -> None:
        """Free the memory; nothing is read afterwards."""
        self._storage.free()
