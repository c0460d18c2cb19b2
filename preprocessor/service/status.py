"""Errors → gRPC statuses: one table, one place where a call is refused."""

from __future__ import annotations

import logging
import traceback
import uuid
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

import engine_client
from preprocessor import errors

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

REQUEST_ID_KEY = "x-request-id"
ERROR_DOMAIN = "preprocessor"
DETAILS_KEY = "grpc-status-details-bin"

# Clients reject a status of more than 8 to 16 KiB (gRPC's limit on metadata), and the reason is lost. A status holds the message
# three times, once percent-encoded with up to three bytes for one, and messages quote what the caller sent, such as a key.
_MAX_MESSAGE_BYTES = 600
_MAX_METADATA_BYTES = 128

# The first class that matches is used.
_CODES: tuple[tuple[type[BaseException], grpc.StatusCode], ...] = (
    (errors.InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (errors.ModelNotFound, grpc.StatusCode.NOT_FOUND),
    (errors.UnsupportedMedia, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.CorruptMedia, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.MediaNotCached, grpc.StatusCode.FAILED_PRECONDITION),
    # Not UNAVAILABLE: a proxy with outlier detection would eject this service because another host failed.
    (errors.FetchFailed, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.LimitExceeded, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.Draining, grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.Cancelled, grpc.StatusCode.CANCELLED),
    # Not UNAVAILABLE: a gateway would retry the request, which has killed two workers here, on every other replica.
    (errors.WorkerLost, grpc.StatusCode.INTERNAL),
    (errors.PreprocessorError, grpc.StatusCode.INTERNAL),
    (engine_client.EngineOverloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (engine_client.EngineUnavailable, grpc.StatusCode.UNAVAILABLE),
    (engine_client.EngineDeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    # What only the engine can check, such as a prompt and max_tokens beyond the model's context length.
    (engine_client.EngineRejected, grpc.StatusCode.INVALID_ARGUMENT),
    (engine_client.EngineError, grpc.StatusCode.INTERNAL),
    (TimeoutError, grpc.StatusCode.DEADLINE_EXCEEDED),
)


def status_of(error: BaseException) -> tuple[grpc.StatusCode, str, str]:
    """The gRPC code, reason and message that a caller gets for an error. They reveal nothing internal."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            if isinstance(error, TimeoutError):
                return code, errors.DeadlineExceeded.default_reason, "the request took longer than its deadline allows"
            return code, str(getattr(error, "reason", "")), str(error)
    return grpc.StatusCode.INTERNAL, "INTERNAL", "an internal error; the request id finds it in the service's log"


def request_id_of(context: Context) -> str:
    """The caller's own request id if it is fit for a log line, else a new one."""
    given = dict(context.invocation_metadata() or ()).get(REQUEST_ID_KEY, "")
    return given if isinstance(given, str) and 0 < len(given) <= 128 and given.isprintable() else uuid.uuid4().hex


def refuse(
    context: Context,
    error: BaseException,
    request_id: str,
    *,
    media_keys: Sequence[str] = (),
    log_payloads: bool = False,
) -> None:
    """End a call with the status of an error.

    Details are `ErrorInfo`, `BadRequest` where a field of the request is at fault, and `RetryInfo` where a retry may help.

    The call ends when its handler returns. gRPC's own `abort` is not used: its exception, the frames in its traceback and all
    that they hold would stay in memory until the next garbage collection. The error's own traceback is cleared for the same
    reason.

    Args:
        media_keys: Keys of the request's media, in the order of the spec.
        log_payloads: Whether the text of an internal error may be logged: it may quote a prompt.
    """
    code, reason, message = status_of(error)
    message = _cut(message, _MAX_MESSAGE_BYTES)
    if reason == "INTERNAL":
        # Never rate-limited in the log, since the caller was told to look there: each is a kind of its own.
        fault = describe_fault(error, log_payloads=log_payloads)
        logger.error("request %s failed\n%s", request_id, fault, extra={"kind": request_id})
    elif isinstance(error, errors.PreprocessorError) and error.trace:
        logger.warning(
            "request %s refused: %s %s\n%s", request_id, code.name, reason, error.trace, extra={"kind": reason}
        )
    else:
        logger.info("request %s refused: %s %s", request_id, code.name, reason, extra={"kind": reason})
    info = error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN, metadata={"request_id": request_id})
    if isinstance(error, errors.PreprocessorError):
        info.metadata.update({name: _cut(value, _MAX_METADATA_BYTES) for name, value in error.metadata.items()})
    details = [info, *_bad_request(error, code, message, media_keys), *_retry_info(error)]
    packed = [any_pb2.Any() for _ in details]
    for box, detail in zip(packed, details, strict=True):
        box.Pack(detail)
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    context.set_code(code)
    context.set_details(message)
    context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()),))
    errors.forget_frames(error)


def describe_fault(error: BaseException, *, log_payloads: bool) -> str:
    """The traceback of an internal error; its text only if payloads may be logged."""
    return "".join(traceback.format_exception(error)) if log_payloads else errors.trace_of(error)


def _cut(text: str, most_bytes: int) -> str:
    """The text, cut and ended with "…" if it is longer."""
    encoded = text.encode()
    return text if len(encoded) <= most_bytes else encoded[: most_bytes - 3].decode(errors="ignore") + "…"


def _bad_request(
    error: BaseException, code: grpc.StatusCode, message: str, media_keys: Sequence[str]
) -> list[error_details_pb2.BadRequest]:
    """The path of the field at fault: from the spec on, or for a chunk from the request message on."""
    if code is not grpc.StatusCode.INVALID_ARGUMENT or not isinstance(error, errors.PreprocessorError):
        return []
    key = error.metadata.get("media_key")
    path = error.field or ("media[]" if key in media_keys else "")
    if "media[]" in path:
        path = path.replace("media[]", f"media[{media_keys.index(key)}]" if key in media_keys else "media")
    if not path:
        return []
    violation = error_details_pb2.BadRequest.FieldViolation(field=path, description=message)
    return [error_details_pb2.BadRequest(field_violations=[violation])]


def _retry_info(error: BaseException) -> list[error_details_pb2.RetryInfo]:
    if not isinstance(error, (errors.Overloaded, engine_client.EngineOverloaded)):
        return []
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(int(getattr(error, "retry_after_seconds", 1.0) * 1e3))
    return [error_details_pb2.RetryInfo(retry_delay=delay)]
