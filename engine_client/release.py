"""When the arrays of a request are not needed any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

_Result = TypeVar("_Result")


class Release:
    """Calls back once, when all who hold it have let go."""

    def __init__(self, callback: Callable[[], None] | None) -> None:
        self._callback = callback
        self._holder_count = 0

    def hold(self) -> Callable[[], None]:
        """Hold it, until what is returned is called; calling that again does nothing."""
        self._holder_count += 1
        is_held = True

        def let_go() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                self._holder_count -= 1
                if not self._holder_count and self._callback is not None:
                    callback, self._callback = self._callback, None
                    callback()

        return let_go

    async def hold_while(self, read: Callable[[], _Result], executor: Executor | None) -> _Result:
        """Call it on a thread, and hold until it returns: a thread reads on when the task that waits for it is cancelled.

        Args:
            read: Reads the arrays.
            executor: Where; None is the event loop's own.
        """
        reading = asyncio.get_running_loop().run_in_executor(executor, read)
        let_go = self.hold()

        def ended(_: asyncio.Future[_Result]) -> None:
            let_go()
            if not reading.cancelled():
                reading.exception()  # perhaps nobody waits for it any more

        reading.add_done_callback(ended)
        return await asyncio.shield(reading)
