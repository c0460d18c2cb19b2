"""Prompts whose calls begin late: as gRPC may carry a call by the connection after the one that stood when it was made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from engine_client.connection import Connection


class LateCalls:
    """Context manager: the prompts that are sent by this connection inside it begin when `go_on` says so, inside or after it.

    Attributes:
        count: Such prompts, which wait.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._goes_on = asyncio.Event()
        self.count = 0

    def __enter__(self) -> Self:
        for name in ("ask_for_stream", "open_stream"):
            setattr(self._connection, name, self._late(getattr(self._connection, name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in ("ask_for_stream", "open_stream"):
            delattr(self._connection, name)

    def go_on(self) -> None:
        """Let them begin."""
        self._goes_on.set()

    def _late(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def begin(method: str, *arguments: Any) -> Any:
            if method not in ("Generate", "ModelStreamInfer"):
                return real(method, *arguments)
            self.count += 1
            return _LateCall(lambda: real(method, *arguments), self._goes_on)

        return begin


class _LateCall:
    def __init__(self, make: Callable[[], Any], goes_on: asyncio.Event) -> None:
        self._make = make
        self._goes_on = goes_on
        self._made: Any = None

    async def read(self) -> Any:
        return await (await self._call()).read()

    async def write(self, wire: bytes) -> None:
        await (await self._call()).write(wire)

    async def done_writing(self) -> None:
        await (await self._call()).done_writing()

    def cancel(self) -> None:
        if self._made is not None:
            self._made.cancel()

    async def _call(self) -> Any:
        await self._goes_on.wait()
        self._made = self._made or self._make()
        return self._made
