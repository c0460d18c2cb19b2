"""gRPC statuses → OpenAI's errors."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

_STATUSES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
_STATUSES_BY_REASON = {
    **dict.fromkeys(("MEDIA_TOO_LARGE", "REQUEST_TOO_LARGE", "INLINE_TOO_LARGE", "SPEC_TOO_LARGE"), 413),
    **dict.fromkeys(("UPLOAD_IDLE", "UPLOAD_TOO_SLOW"), 408),  # the caller's own slowness
}
_TYPES = {401: "authentication_error", 408: "timeout", 429: "rate_limit_error", 504: "timeout"}
_SPEC_PREFIX = re.compile(r"^(chat|parameters)\.")
_OTHER_NAMES = {"answer_count": "n", "stop_strings": "stop", "logprobs": "top_logprobs"}  # what OpenAI calls them


@dataclass(frozen=True, slots=True)
class HttpError:
    """An error in OpenAI's form.

    Attributes:
        status: Of HTTP.
        reason: Of `google.rpc.ErrorInfo`, or another name in capitals.
        param: Path of the field at fault; empty where there is none.
        retry_after_seconds: None where a retry would not help.
    """

    status: int
    reason: str
    message: str
    param: str = ""
    retry_after_seconds: float | None = None

    @property
    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param or None, "code": self.reason}}

    @property
    def headers(self) -> dict[str, str]:
        if self.retry_after_seconds is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_seconds)))}  # whole seconds, RFC 9110


def error_of(code: grpc.StatusCode, details: bytes) -> HttpError:
    """The error of a call that was refused.

    Args:
        details: A serialized `google.rpc.Status`, as `status.refuse` makes it.
    """
    status = status_pb2.Status.FromString(details)
    info, fields, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in status.details:
        for message in (info, fields, retry):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    http_status = _STATUSES_BY_REASON.get(info.reason, _STATUSES.get(code, 500))
    retry_after: float | None = None
    if http_status in (429, 503):
        retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    path = fields.field_violations[0].field if fields.field_violations else ""
    return HttpError(
        http_status, info.reason, status.message, _param(path, info.metadata.get("media_key", "")), retry_after
    )


def _param(path: str, media_key: str) -> str:
    """A path within the spec as one within the request."""
    if path.startswith("media["):
        return media_key  # which is the path of its part
    name = _SPEC_PREFIX.sub("", path)
    return _OTHER_NAMES.get(name, name)
