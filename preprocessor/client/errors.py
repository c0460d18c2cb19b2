"""What a caller is told where a call fails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import grpc
from google.rpc import error_details_pb2, status_pb2

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A field of the request that was not accepted.

    Attributes:
        field: Its path in the spec, such as `media[0].sampling.fps`.
        description: What was wrong with it.
    """

    field: str
    description: str


class CallFailed(Exception):
    """The service refused a call, or the call broke.

    Attributes:
        code: gRPC status code.
        reason: `ErrorInfo.reason`, stable across releases; empty where the answer did not come from the service, as when
            nothing listens at the address.
        message: What was wrong, and what would be accepted.
        retry_after_seconds: How long the service asks to wait before the same call is made again; None where it does not.
        field_violations: The fields that were not accepted, where the service names them.
        metadata: Further facts for programs (`ErrorInfo.metadata`), such as request_id and media_key.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        retry_after_seconds: float | None = None,
        field_violations: tuple[FieldViolation, ...] = (),
        metadata: Mapping[str, str] = _NOTHING,
    ) -> None:
        super().__init__(f"{reason or code.name}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after_seconds = retry_after_seconds
        self.field_violations = field_violations
        self.metadata = metadata

    @property
    def fields(self) -> tuple[str, ...]:
        """Paths of the fields that were not accepted."""
        return tuple(violation.field for violation in self.field_violations)


def failure_of(error: grpc.RpcError) -> CallFailed:
    """An error of `grpc` or `grpc.aio`, read."""
    status = status_pb2.Status()
    trailing: dict[str, Any] = dict(cast("Iterable[tuple[str, Any]]", error.trailing_metadata() or ()))
    status.ParseFromString(trailing.get("grpc-status-details-bin", b""))
    info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        for message in (info, retry, bad):
            detail.Unpack(message)
    return CallFailed(
        error.code(),
        info.reason,
        error.details() or "",
        retry.retry_delay.ToTimedelta().total_seconds() or None,
        tuple(FieldViolation(one.field, one.description) for one in bad.field_violations),
        dict(info.metadata),
    )
