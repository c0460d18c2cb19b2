"""The status of a refused call, of any kind of client."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import grpc
import grpc.aio
import pytest

from preprocessor.client import CallFailed
from preprocessor.client.errors import failure_of


async def refusal_of(
    call: Awaitable[Any] | grpc.aio.StreamStreamCall[Any, Any] | grpc.aio.UnaryStreamCall[Any, Any],
) -> CallFailed:
    """The error of a call, whose response is read up to it."""
    with pytest.raises(grpc.RpcError) as caught:
        if isinstance(call, grpc.aio.StreamStreamCall | grpc.aio.UnaryStreamCall):
            while await call.read() is not grpc.aio.EOF:
                pass
        else:
            await call
    return failure_of(caught.value)
