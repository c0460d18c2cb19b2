"""A tensor that is sent while it is still being written."""

from __future__ import annotations

import asyncio


class PendingRows:
    """How far one tensor of a request is written: rows become final from the first on, a run at a time.

        pending = PendingRows("pixel_patches")
        request = EngineRequest("r", {"input_ids": ids, "pixel_patches": array_being_written}, pending=pending)
        ...                                     # meanwhile, where the rows are made:
        pending.finish(360)                     # rows 0 to 359 are final
        pending.finish(len(array))              # all are; or pending.fail(error), and the answer ends with that error

    It only remembers a count, so a request can be sent again, elsewhere, from its first row on. All methods belong to
    the event loop's thread.
    """

    def __init__(self, tensor_name: str) -> None:
        """`tensor_name` is one of the request's tensors; that array has its full shape from the start."""
        self.tensor_name = tensor_name
        self._finished_row_count = 0
        self._error: Exception | None = None
        self._news = asyncio.Event()

    @property
    def finished_row_count(self) -> int:
        """Rows from the first on that will not change any more."""
        return self._finished_row_count

    def finish(self, row_count: int) -> None:
        """Say that the first `row_count` rows are final; a count that is not new is fine.

        Raises:
            ValueError: more rows were final before.
        """
        if row_count < self._finished_row_count:
            raise ValueError(f"{row_count} rows are said to be final; {self._finished_row_count} were before")
        self._finished_row_count = row_count
        self._tell()

    def fail(self, error: Exception) -> None:
        """Say that no more rows will come; whoever waits for them gets `error`."""
        self._error = error
        self._tell()

    async def wait_beyond(self, row_count: int) -> int:
        """Wait until more than `row_count` rows are final, and say how many are.

        Raises:
            Exception: what `fail` was given, where there are no more final rows than that.
        """
        while self._finished_row_count <= row_count:
            if self._error is not None:
                raise self._error
            await self._news.wait()
        return self._finished_row_count

    def _tell(self) -> None:
        self._news.set()  # wakes all who wait, who then look again
        self._news = asyncio.Event()
