"""Announcements that come once, read as often as a request is sent.

The rows of a large tensor may still be in the making while the first of them travel. What tells of each finished run of
rows is an iterator, which an attempt at one engine consumes. For another engine everything must be told again from the
beginning: the rows themselves stay where they are, and this log remembers which were finished.

    source ──▶ RunLog ──▶ reader of the first attempt
                     └──▶ reader of the second, from the start: what is remembered at once, then what comes
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, Generic, TypeVar

from engine_client.types import EngineRequest

Run = TypeVar("Run")


class RunLog(Generic[Run]):
    """Remembers what `source` yields. Iterating yields all of it from the start, any number of times.

    A reader that is cancelled leaves the source as it was: each next element is awaited by a task of the log's own.

    Args:
        source: Read no further than the foremost reader asks. An exception of it reaches every reader, in its place.
    """

    def __init__(self, source: AsyncIterable[Run]) -> None:
        self._source = aiter(source)
        self._runs: list[Run] = []
        self._ending: Exception | None = None
        self._pull: asyncio.Task[None] | None = None

    async def __aiter__(self) -> AsyncIterator[Run]:
        index = 0
        while True:
            while index < len(self._runs):
                yield self._runs[index]
                index += 1
            if isinstance(self._ending, StopAsyncIteration):
                return
            if self._ending is not None:
                raise self._ending
            await self._wait_for_next()

    async def aclose(self) -> None:
        """Stop waiting for the source, which stays its owner's to close; no reader may be under way."""
        if self._pull is not None:
            self._pull.cancel()
            await asyncio.gather(self._pull, return_exceptions=True)

    async def _wait_for_next(self) -> None:
        if self._pull is None:
            self._pull = asyncio.create_task(self._read_one())
            self._pull.add_done_callback(self._pull_is_done)
        await asyncio.shield(self._pull)

    async def _read_one(self) -> None:
        try:
            self._runs.append(await anext(self._source))
        except Exception as error:  # whatever it is, every reader raises it in its place; the end is one of them
            self._ending = error

    def _pull_is_done(self, pull: asyncio.Task[None]) -> None:
        if self._pull is pull:
            self._pull = None


class RepeatableRequest:
    """A request that can be sent again, until it is forgotten; its rows may still be announced meanwhile."""

    def __init__(self, request: EngineRequest) -> None:
        self._request: EngineRequest | None = request
        pending = getattr(request, "pending", None)
        self._log: RunLog[Any] | None = None if pending is None else RunLog(pending)

    def copy(self) -> EngineRequest:
        """The request as it was given, with an iterator of its own over the announcements, from the start."""
        assert self._request is not None, "nothing is repeated after the first token"
        if self._log is None:
            return self._request
        again: dict[str, Any] = {"pending": aiter(self._log)}
        return dataclasses.replace(self._request, **again)

    def forget(self) -> None:
        """Let its arrays go."""
        self._request = None

    async def aclose(self) -> None:
        if self._log is not None:
            await self._log.aclose()
