"""The gRPC errors of vLLM's service as this package's errors."""

from __future__ import annotations

from contextlib import AbstractContextManager

from grpc.aio import AioRpcError

from engine_client.errors import EngineError, EngineOverloaded, EngineUnavailable
from engine_client.grpc_status import errors_by_status

# vLLM 0.32, v1/engine/exceptions.py, EngineDeadError. The process stays, and answers every prompt with it.
_CORE_IS_DEAD = "EngineCore encountered an issue"
# A full server says UNAVAILABLE, as one that is gone does. smg-grpc-servicer 0.14.1, vllm/servicer.py, `_acquire_mm_slot`;
# vLLM 0.32, exceptions.py, QueueOverflowError and MaxQueuedTokensError.
_IS_FULL = (
    "worker is saturated",
    "The engine is currently busy and cannot accept new requests",
    "The engine has reached its prefill token backlog limit",
)


def grpc_errors(who: str) -> AbstractContextManager[None]:
    """See `errors_by_status`."""
    return errors_by_status(who, _explain)


def _explain(error: AioRpcError, kind: type[EngineError]) -> tuple[type[EngineError], str]:
    details = error.details() or "no details"
    if _CORE_IS_DEAD in details:
        return EngineUnavailable, details
    if kind is EngineUnavailable and any(text in details for text in _IS_FULL):
        return EngineOverloaded, details
    return kind, details
