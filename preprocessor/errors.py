"""The errors of this package, as one tree.

    PreprocessorError
    ├── InvalidRequest       the request is contradictory or out of range
    ├── Unauthenticated      the caller is unknown
    ├── ModelNotFound        this service does not serve the model
    ├── UnsupportedMedia     a file, or a feature of it, that this service does not support
    ├── CorruptMedia         a damaged media file
    ├── MediaNotCached       a file that the caller has only named, and that is not here
    ├── FetchFailed          a URL that is allowed and could not be fetched
    ├── LimitExceeded        a request beyond this deployment's limits
    ├── Overloaded           a lack of capacity; the same request may succeed later
    ├── Draining             this process is stopping; use another replica
    ├── DeadlineExceeded     the deadline of the call has passed
    ├── Cancelled            the caller cancelled
    └── WorkerLost           the worker process died during the request

The engine's own errors come from `engine_client.errors` and are mapped beside these in `service/status.py`.

Each error has a `reason`: UPPER_SNAKE, stable across releases, sent to callers as `google.rpc.ErrorInfo.reason`. The message
says what is wrong, the value, and what is accepted; it never contains prompt text or media bytes.
"""

from __future__ import annotations

import traceback


class PreprocessorError(Exception):
    """Base of all errors that callers may receive.

    Args:
        message: One or two sentences for the caller.
        reason: Stable UPPER_SNAKE identifier; by default the class's own.
        field: Path of the request's field at fault, such as "media[].sampling.fps", where `media[]` stands for the medium with
            the key `media_key`. Empty where no single field is at fault.
        metadata: Short strings for programs, such as the media key.

    Attributes:
        trace: `trace_of` the foreign error that caused this one, for the log only; empty if there is none.
    """

    default_reason = "PREPROCESSOR_ERROR"

    def __init__(self, message: str, *, reason: str | None = None, field: str = "", **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.field = field
        self.metadata = metadata
        self.trace = ""

    def about(self, media_key: str) -> PreprocessorError:
        """The same error about a medium of another key."""
        message = self.message
        old_start = f"{self.metadata.get('media_key')}: "
        if message.startswith(old_start):
            message = f"{media_key}: {message.removeprefix(old_start)}"
        return _rebuild(
            type(self), message, self.reason, self.field, {**self.metadata, "media_key": media_key}, self.trace
        )

    def __reduce__(self) -> tuple[object, ...]:
        # By default exceptions pickle only their positional arguments; workers send these errors to the service.
        return _rebuild, (type(self), self.message, self.reason, self.field, self.metadata, self.trace)


def _rebuild(
    kind: type[PreprocessorError], message: str, reason: str, field: str, metadata: dict[str, str], trace: str
) -> PreprocessorError:
    error = kind(message, reason=reason, field=field, **metadata)
    error.trace = trace
    return error


class InvalidRequest(PreprocessorError):
    default_reason = "INVALID_REQUEST"


class Unauthenticated(PreprocessorError):
    default_reason = "UNAUTHENTICATED"


class ModelNotFound(PreprocessorError):
    default_reason = "MODEL_NOT_FOUND"


class UnsupportedMedia(PreprocessorError):
    default_reason = "UNSUPPORTED_MEDIA"


class CorruptMedia(PreprocessorError):
    default_reason = "CORRUPT_MEDIA"


class MediaNotCached(PreprocessorError):
    default_reason = "MEDIA_NOT_CACHED"


class FetchFailed(PreprocessorError):
    default_reason = "FETCH_FAILED"


class LimitExceeded(PreprocessorError):
    default_reason = "LIMIT_EXCEEDED"


class Overloaded(PreprocessorError):
    """A lack of capacity. `retry_after_seconds` is sent to the caller as `RetryInfo`."""

    default_reason = "OVERLOADED"

    def __init__(
        self, message: str, *, reason: str | None = None, retry_after_seconds: float = 1.0, **metadata: str
    ) -> None:
        super().__init__(message, reason=reason, **metadata)
        self.retry_after_seconds = retry_after_seconds


class Draining(PreprocessorError):
    """This process is stopping; use another replica."""

    default_reason = "DRAINING"


class DeadlineExceeded(PreprocessorError):
    default_reason = "DEADLINE_EXCEEDED"


class Cancelled(PreprocessorError):
    default_reason = "CANCELLED"


class WorkerLost(PreprocessorError):
    default_reason = "WORKER_LOST"


def trace_of(error: BaseException) -> str:
    """The traceback of an error and its causes, with their types and without their messages.

    Messages of foreign exceptions quote their input, which may be a part of a prompt.
    """
    text, seen = "", error
    while True:
        frames = "".join(traceback.format_list(traceback.extract_tb(seen.__traceback__)))
        text = f"{getattr(seen, 'trace', '')}{frames}{type(seen).__qualname__}\n{text}"
        before = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
        if before is None:
            return text.rstrip()
        seen = before


def forget_frames(error: BaseException) -> None:
    """Remove the tracebacks of an error and its causes, once it has been reported.

    A frame that refers to its own error is a reference cycle, which keeps all objects of the frame until garbage collection.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = None
        waiting += [one.__cause__, one.__context__, *(one.exceptions if isinstance(one, BaseExceptionGroup) else ())]
