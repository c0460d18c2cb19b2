"""A tensor that is sent while it is still being written."""

from __future__ import annotations

import asyncio


class RowProgress:
    """How far one tensor of a request is written: rows become final from the first on, a run at a time.

        progress = RowProgress("pixel_patches")
        request = EngineRequest("r", {"input_ids": ids, "pixel_patches": array_being_written}, pending=progress)
        ...                                     # meanwhile, where the rows are made:
        progress.finish(360)                    # rows 0 to 359 are final
        progress.finish(len(array))             # all are; or progress.fail(error), and the answer ends with that error

    It only keeps a count, so a request can be sent again, to another engine, from its first row on. All methods must be
    called on the event loop's thread.
    """

    def __init__(self, tensor_name: str) -> None:
        """`tensor_name` is one of the request's tensors; that array has its full shape from the start."""
        self.tensor_name = tensor_name
        self._finished_row_count = 0
        self.error: Exception | None = None
        """What `fail` was given."""
        self._changed = asyncio.Event()

    def finish(self, row_count: int) -> None:
        """Set how many rows, from the first on, are final; the same count again is allowed.

        Raises:
            ValueError: more rows were final before.
        """
        if row_count < self._finished_row_count:
            raise ValueError(f"{row_count} rows are said to be final; {self._finished_row_count} were before")
        self._finished_row_count = row_count
        self._notify()

    def fail(self, error: Exception) -> None:
        """Set the error that ends the rows; whoever waits for more gets it."""
        self.error = error
        self._notify()

    async def wait_past(self, row_count: int) -> int:
        """Wait until more than `row_count` rows are final; returns how many are.

        Raises:
            Exception: what `fail` was given, where there are no more final rows than that.
        """
        while self._finished_row_count <= row_count:
            if self.error is not None:
                raise self.error
            await self._changed.wait()
        return self._finished_row_count

    def _notify(self) -> None:
        self._changed.set()  # wakes all who wait, who then look again
        self._changed = asyncio.Event()
