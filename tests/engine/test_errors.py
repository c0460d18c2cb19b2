"""Every gRPC status has its error, and the cause is kept."""

from __future__ import annotations

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from engine_client import (
    EngineDeadlineExceeded,
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineRejected,
    EngineUnavailable,
)
from engine_client.errors import grpc_errors, refusal


@pytest.mark.parametrize(
    ("status", "details", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "connection refused", EngineUnavailable),
        (grpc.StatusCode.UNAVAILABLE, "too many prompts wait already", EngineOverloaded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "full", EngineOverloaded),
        (grpc.StatusCode.NOT_FOUND, "unknown model", EngineUnavailable),
        (grpc.StatusCode.UNIMPLEMENTED, "", EngineUnavailable),
        (grpc.StatusCode.CANCELLED, "", EngineUnavailable),
        (grpc.StatusCode.UNAUTHENTICATED, "", EngineUnavailable),
        (grpc.StatusCode.INTERNAL, "Stub process 'x' is not healthy.", EngineUnavailable),
        (grpc.StatusCode.INTERNAL, "generation: boom", EngineFailed),
        (grpc.StatusCode.UNKNOWN, "", EngineFailed),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "", EngineDeadlineExceeded),
        (grpc.StatusCode.INVALID_ARGUMENT, "grid_thw", EngineRejected),
    ],
)
def test_a_status_becomes_an_error_with_its_cause(
    status: grpc.StatusCode, details: str, kind: type[EngineError]
) -> None:
    foreign = AioRpcError(status, Metadata(), Metadata(), details=details)
    with pytest.raises(kind, match=f"engine x: .*{status.name}") as raised, grpc_errors("engine x"):
        raise foreign
    assert type(raised.value) is kind
    assert raised.value.__cause__ is foreign


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Request for unknown model: 'x' is not found", EngineUnavailable),
        ("[request id: a] Exceeds maximum queue size", EngineOverloaded),
        ("unexpected inference input 'x' for model 'y'", EngineRejected),
    ],
)
def test_a_refusal_without_a_status_is_told_by_its_text(text: str, kind: type[EngineError]) -> None:
    assert type(refusal("engine x", text)) is kind


def test_reasons_are_stable() -> None:
    kinds = (EngineError, *EngineError.__subclasses__(), *EngineUnavailable.__subclasses__())
    assert {kind.__name__: kind.reason for kind in kinds} == {
        "EngineError": "ENGINE_ERROR",
        "EngineUnavailable": "ENGINE_UNAVAILABLE",
        "EngineOverloaded": "ENGINE_OVERLOADED",
        "EngineMismatch": "ENGINE_MISMATCH",
        "EngineDeadlineExceeded": "ENGINE_DEADLINE_EXCEEDED",
        "EngineRejected": "ENGINE_REJECTED",
        "EngineFailed": "ENGINE_FAILED",
    }
