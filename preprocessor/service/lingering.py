"""Refusals of callers on `grpc.aio`, who would not learn the reason.

A service that ends a call in the midst of an upload has its status read by the blocking Python client, by Go, Java and Node:
a write fails, and the status says why. `grpc.aio` puts INTERNAL, "Internal error from Core", in its place where a write was
under way (grpc/grpc#36066, open in grpcio 1.85), and with large messages one always is. So what such a caller still sends is
read and dropped before the status goes out, as web servers do (nginx, lingering_close): of few callers at a time, a message
at a time, and not for long. Of everybody else nothing more is read.
"""

from __future__ import annotations

import asyncio

import grpc.aio

from preprocessor.service.status import Context

_AT_ONCE = 2
_MAX_WAITING = 64
_SECONDS = 5.0  # of waiting for a place, and of reading
_AGENT = "grpc-python-asyncio/"


class Lingering:
    """Those who linger now."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._waiting_count = 0

    async def linger(self, context: Context) -> None:
        """Where this caller was refused and needs it, read and drop the rest of his stream within bounds."""
        if not context.code() or self._waiting_count >= _MAX_WAITING:
            return
        agent = dict(context.invocation_metadata() or ()).get("user-agent", "")
        if not isinstance(agent, str) or not agent.startswith(_AGENT):
            return
        self._waiting_count += 1
        try:
            async with asyncio.timeout(_SECONDS), self._places, asyncio.timeout(_SECONDS):
                while await context.read() is not grpc.aio.EOF:
                    pass
        except TimeoutError:
            return  # the status goes out all the same
        finally:
            self._waiting_count -= 1
