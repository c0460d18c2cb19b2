"""Reading the rest of a refused upload, for clients on `grpc.aio`, which would otherwise not receive the reason.

A server may end a call while the client is still uploading. The blocking Python client, Go, Java and Node then report the
server's status. `grpc.aio` reports INTERNAL, "Internal error from Core", if a write was in progress (grpc/grpc#36066, open in
grpcio 1.85), and with large messages one always is. For these clients the service reads and discards the rest of the upload
before it sends the status, as nginx does with `lingering_close`. It does so for few clients at a time, one message at a time,
and for a limited time. From all other refused clients it reads nothing more.
"""

from __future__ import annotations

import asyncio

import grpc.aio

from preprocessor.service.status import Context

MAX_CONCURRENT = 2
_MAX_WAITING = 64
TIMEOUT_SECONDS = 5.0  # for waiting, and again for reading
_USER_AGENT = "grpc-python-asyncio/"


class RefusedUploads:
    """Discards what refused clients still send."""

    def __init__(self) -> None:
        self._semaphore = asyncio.Semaphore(MAX_CONCURRENT)
        self._waiting_count = 0

    async def discard(self, context: Context) -> None:
        """Read the rest of the call's messages, within the limits, if the call was refused and its client needs it."""
        if not context.code() or self._waiting_count >= _MAX_WAITING:
            return
        user_agent = dict(context.invocation_metadata() or ()).get("user-agent", "")
        if not isinstance(user_agent, str) or not user_agent.startswith(_USER_AGENT):
            return
        self._waiting_count += 1
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS), self._semaphore, asyncio.timeout(TIMEOUT_SECONDS):
                while await context.read() is not grpc.aio.EOF:
                    pass
        except TimeoutError:
            return  # the status is sent all the same
        finally:
            self._waiting_count -= 1
