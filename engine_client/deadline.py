"""How long the whole answer to one prompt may take."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from engine_client.errors import EngineDeadlineExceeded


class Deadline:
    """Starts when it is made, in a running event loop.

    Args:
        who: Starts the message of the error; names the engine.
        timeout_seconds: None is never over.
    """

    def __init__(self, who: str, timeout_seconds: float | None) -> None:
        self._who = who
        self._timeout_seconds = timeout_seconds
        self._ends_at = None if timeout_seconds is None else asyncio.get_running_loop().time() + timeout_seconds

    @contextlib.asynccontextmanager
    async def enforced(self) -> AsyncGenerator[None, None]:
        """Cancel what runs inside when it is over.

        Raises:
            EngineDeadlineExceeded: it is over.
        """
        limit = asyncio.timeout_at(self._ends_at)
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise EngineDeadlineExceeded(f"{self._who} did not finish within {self._timeout_seconds} s") from error
