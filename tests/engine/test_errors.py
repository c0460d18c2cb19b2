"""Every gRPC status has its error, and the cause is kept."""

from __future__ import annotations

import re

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
from engine_client.triton.status import grpc_errors, reply_error


@pytest.mark.parametrize(
    ("status", "details", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, "connection refused", EngineUnavailable),
        (grpc.StatusCode.UNAVAILABLE, "too many prompts are here already", EngineOverloaded),
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
        ("[request id: a] expected 1 inputs but got 2", EngineRejected),
        ("unexpected inference input 'x' for model 'y'", EngineRejected),
        ("Unable to find shared memory region: 'x'", EngineRejected),
        ("INVALID_ARGUMENT: grid_thw is missing", EngineRejected),
        ("UNAVAILABLE: too many prompts are here already", EngineOverloaded),
        ("INTERNAL: generation: boom", EngineFailed),
        ("Failed to process the request(s) for model 'x', message: KeyError: 9", EngineFailed),
        ("Failed to increase the shared memory pool size for key 'x'", EngineFailed),
        ("NO_STATUS: boom", EngineFailed),
        ("", EngineFailed),
    ],
)
def test_an_error_in_a_reply_is_told_by_its_text(text: str, kind: type[EngineError]) -> None:
    assert type(reply_error("engine x", text)) is kind


def test_a_status_at_the_beginning_of_a_text_goes_where_those_of_grpc_go() -> None:
    assert str(reply_error("engine x", "INVALID_ARGUMENT: a: b")) == "engine x: a: b (INVALID_ARGUMENT)"


def test_reasons_are_stable() -> None:
    kinds: tuple[type[EngineError], ...] = (
        EngineError,
        *EngineError.__subclasses__(),
        *EngineUnavailable.__subclasses__(),
    )
    assert {kind.__name__: kind.reason for kind in kinds} == {
        "EngineError": "ENGINE_ERROR",
        "EngineUnavailable": "ENGINE_UNAVAILABLE",
        "EngineOverloaded": "ENGINE_OVERLOADED",
        "EngineMismatch": "ENGINE_MISMATCH",
        "EngineDeadlineExceeded": "ENGINE_DEADLINE_EXCEEDED",
        "EngineRejected": "ENGINE_REJECTED",
        "EngineFailed": "ENGINE_FAILED",
    }


@pytest.mark.parametrize(
    "details",
    [
        "Socket closed",
        "Stream removed (Socket closed)",
        "recvmsg:Connection reset by peer",
        "sendmsg: Broken pipe (32)",
    ],
)
def test_a_closed_connection_is_unavailable_and_said_to_be_closed(details: str) -> None:
    foreign = AioRpcError(grpc.StatusCode.UNAVAILABLE, Metadata(), Metadata(), details=details)
    expected = re.escape(f"engine x: the engine closed the connection during the call ({details}) (UNAVAILABLE)")
    with pytest.raises(EngineUnavailable, match=expected), grpc_errors("engine x"):
        raise foreign
