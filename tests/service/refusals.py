"""The status of a refused call, of any kind of client."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2


@dataclass(frozen=True, slots=True)
class Refusal:
    """A status, its `ErrorInfo.reason` (empty where gRPC itself has refused), `RetryInfo`'s seconds, if any, and the paths
    of `BadRequest`.
    """

    code: grpc.StatusCode
    reason: str
    message: str
    retry_seconds: float | None
    fields: tuple[str, ...] = ()


async def refusal_of(
    call: Awaitable[Any] | grpc.aio.StreamStreamCall[Any, Any] | grpc.aio.UnaryStreamCall[Any, Any],
) -> Refusal:
    """The error of a call, whose response is read up to it."""
    with pytest.raises(grpc.RpcError) as caught:
        if isinstance(call, grpc.aio.StreamStreamCall | grpc.aio.UnaryStreamCall):
            while await call.read() is not grpc.aio.EOF:
                pass
        else:
            await call
    assert isinstance(caught.value, grpc.aio.AioRpcError | grpc.Call)
    return read_refusal(caught.value)


def read_refusal(error: grpc.aio.AioRpcError | grpc.Call) -> Refusal:
    trailing: dict[str, Any] = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailing.get("grpc-status-details-bin", b""))
    info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    retry_seconds = None
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
        if detail.Unpack(retry):
            retry_seconds = retry.retry_delay.ToTimedelta().total_seconds()
    fields = tuple(violation.field for violation in bad.field_violations)
    return Refusal(error.code(), info.reason, error.details() or "", retry_seconds, fields)
