"""The gRPC errors of vLLM's service as this package's errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import grpc
from grpc.aio import AioRpcError

from engine_client.errors import (
    EngineDeadlineExceeded,
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineRejected,
    EngineUnavailable,
)

# Source: smg-grpc-servicer 0.14.1, vllm/errors.py. Not listed: EngineFailed.
_BY_STATUS: Mapping[grpc.StatusCode, type[EngineError]] = {
    grpc.StatusCode.UNAVAILABLE: EngineUnavailable,
    grpc.StatusCode.UNIMPLEMENTED: EngineUnavailable,  # something else listens there
    grpc.StatusCode.UNAUTHENTICATED: EngineUnavailable,
    grpc.StatusCode.PERMISSION_DENIED: EngineUnavailable,
    grpc.StatusCode.CANCELLED: EngineUnavailable,  # not by this side: the server shuts down
    grpc.StatusCode.NOT_FOUND: EngineUnavailable,
    grpc.StatusCode.RESOURCE_EXHAUSTED: EngineOverloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: EngineDeadlineExceeded,
    grpc.StatusCode.INVALID_ARGUMENT: EngineRejected,
    grpc.StatusCode.OUT_OF_RANGE: EngineRejected,
    grpc.StatusCode.FAILED_PRECONDITION: EngineRejected,
}
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
        kind = _BY_STATUS.get(error.code(), EngineFailed)
        if _CORE_IS_DEAD in details:
            kind = EngineUnavailable
        raise kind(f"{who}: {details} ({error.code().name})") from error
