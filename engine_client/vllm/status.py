"""The gRPC errors of vLLM's service as this package's errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from grpc.aio import AioRpcError

from engine_client.errors import (
    EngineFailed,
    EngineUnavailable,
)
from engine_client.grpc_status import ERRORS_BY_STATUS

# vLLM 0.32, v1/engine/exceptions.py, EngineDeadError. The process stays, and answers every prompt with it.
_CORE_IS_DEAD = "EngineCore encountered an issue"


@contextmanager
def grpc_errors(who: str) -> Iterator[None]:
    """Turn gRPC's errors into this package's.

    Args:
        who: Starts the message; names the engine.
    Raises:
        EngineError: of the class that stands for the status.
    """
    try:
        yield
    except AioRpcError as error:
        details = error.details() or "no details"
        kind = ERRORS_BY_STATUS.get(error.code(), EngineFailed)
        if _CORE_IS_DEAD in details:
            kind = EngineUnavailable
        raise kind(f"{who}: {details} ({error.code().name})") from error
