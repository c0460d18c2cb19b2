"""The gRPC errors of vLLM's service as this package's errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from grpc.aio import AioRpcError

from engine_client.errors import EngineFailed, EngineOverloaded, EngineUnavailable
from engine_client.grpc_status import ERRORS_BY_STATUS

# vLLM 0.32, v1/engine/exceptions.py, EngineDeadError. The process stays, and answers every prompt with it.
_CORE_IS_DEAD = "EngineCore encountered an issue"
# A full server says UNAVAILABLE, as one that is gone does. smg-grpc-servicer 0.14.1, vllm/servicer.py, `_acquire_mm_slot`;
# vLLM 0.32, exceptions.py, QueueOverflowError and MaxQueuedTokensError.
_IS_FULL = (
    "worker is saturated",
    "The engine is currently busy and cannot accept new requests",
    "The engine has reached its prefill token backlog limit",
)


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
        elif kind is EngineUnavailable and any(text in details for text in _IS_FULL):
            kind = EngineOverloaded
        raise kind(f"{who}: {details} ({error.code().name})") from error
