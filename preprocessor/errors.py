"""What can go wrong, as one tree.

    PreprocessorError
    ├── InvalidRequest       the caller asked for something contradictory or out of range
    ├── Unauthenticated      nobody knows who the caller is
    ├── ModelNotFound        no such model here
    ├── UnsupportedMedia     a file or a feature of it that this service does not read
    ├── CorruptMedia         a file that claims to be media and cannot be decoded
    ├── FetchFailed          a URL that may be fetched and did not give its file
    ├── LimitExceeded        a request larger than this deployment accepts
    ├── Overloaded           no room right now; the same request may succeed later
    ├── Draining             this process is about to end; another replica has room
    ├── DeadlineExceeded     the caller's time ran out
    ├── Cancelled            the caller went away
    └── WorkerLost           the worker that held the request died

The engine's own errors come from `engine_client.errors` and are mapped beside these in `service/status.py`.

Each error carries a `reason`: UPPER_SNAKE, stable across releases, sent to callers as `google.rpc.ErrorInfo.reason`. The
message says what was wrong, the value, and what would be accepted; it never holds prompt text or media bytes.
"""

from __future__ import annotations

import traceback


class PreprocessorError(Exception):
    """Base of every error a caller may see.

    Args:
        message: One or two sentences for the caller.
        reason: Stable UPPER_SNAKE identifier; the class's own when not given.
        field: Path of the request's field at fault, such as "media[].sampling.fps", where `media[]` stands for the medium with
            the key `media_key`. Empty where no single field is at fault.
        metadata: Short strings that help a program react, such as the media key.

    Attributes:
        trace: Where a foreign error arose that this one tells of, as `trace_of`; for the log alone. Empty where there is none.
    """

    default_reason = "PREPROCESSOR_ERROR"

    def __init__(self, message: str, *, reason: str | None = None, field: str = "", **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.field = field
        self.metadata = metadata
        self.trace = ""

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions pickle by their positional arguments alone; workers send these errors across processes whole.
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


class FetchFailed(PreprocessorError):
    default_reason = "FETCH_FAILED"


class LimitExceeded(PreprocessorError):
    default_reason = "LIMIT_EXCEEDED"


class Overloaded(PreprocessorError):
    """No room now. `retry_after_seconds` is a hint for the caller's back-off."""

    default_reason = "OVERLOADED"

    def __init__(
        self, message: str, *, reason: str | None = None, retry_after_seconds: float = 1.0, **metadata: str
    ) -> None:
        super().__init__(message, reason=reason, **metadata)
        self.retry_after_seconds = retry_after_seconds


class Draining(PreprocessorError):
    """This process is about to end; another replica has room."""

    default_reason = "DRAINING"


class DeadlineExceeded(PreprocessorError):
    default_reason = "DEADLINE_EXCEEDED"


class Cancelled(PreprocessorError):
    default_reason = "CANCELLED"


class WorkerLost(PreprocessorError):
    default_reason = "WORKER_LOST"


def trace_of(error: BaseException) -> str:
    """Where in the program an error arose, and the types of it and its causes, without a word of what they say.

    The texts of foreign exceptions quote what they were given: a piece of a prompt, say.
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
    """Cut an error, and those that it came of, loose from the frames that it went through, once it has been told.

    A frame that holds its own error is a cycle, which keeps all that the frame holds until a collector comes by.
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
