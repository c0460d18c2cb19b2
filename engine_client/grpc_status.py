"""The statuses of gRPC as this package's errors, whichever engine answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import AioRpcError

from engine_client.errors import (
    EngineDeadlineExceeded,
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineRejected,
    EngineUnavailable,
)

ERRORS_BY_STATUS: Mapping[grpc.StatusCode, type[EngineError]] = {
    grpc.StatusCode.UNAVAILABLE: EngineUnavailable,  # nobody listens, or the connection broke
    grpc.StatusCode.RESOURCE_EXHAUSTED: EngineOverloaded,
    grpc.StatusCode.NOT_FOUND: EngineUnavailable,  # the model is not loaded; a deployment may be under way
    grpc.StatusCode.UNIMPLEMENTED: EngineUnavailable,  # something else listens there
    grpc.StatusCode.UNAUTHENTICATED: EngineUnavailable,  # this side's credentials are not taken there
    grpc.StatusCode.PERMISSION_DENIED: EngineUnavailable,
    grpc.StatusCode.CANCELLED: EngineUnavailable,  # not by us: the server shuts down
    grpc.StatusCode.DEADLINE_EXCEEDED: EngineDeadlineExceeded,
    grpc.StatusCode.INVALID_ARGUMENT: EngineRejected,
    grpc.StatusCode.OUT_OF_RANGE: EngineRejected,
    grpc.StatusCode.FAILED_PRECONDITION: EngineRejected,
}
"""Of any other status an engine broke: EngineFailed."""

Explain = Callable[[AioRpcError, type[EngineError]], tuple[type[EngineError], str]]
"""What an error means, of the class that stands for its status: (error, class) → (the class that it is, its text)."""


@contextmanager
def errors_by_status(who: str, explain: Explain) -> Iterator[None]:
    """Turn errors of gRPC, and of reading what came by it, into this package's.

    Args:
        who: Starts the message; names the engine.
        explain: What the engine's own texts tell beside the status.
    Raises:
        EngineError: Of the class that `explain` names; EngineFailed for an answer that is not of the engine's protocol.
    """
    try:
        yield
    except AioRpcError as error:
        kind, text = explain(error, ERRORS_BY_STATUS.get(error.code(), EngineFailed))
        raise kind(f"{who}: {text} ({error.code().name})") from error
    except DecodeError as error:
        raise EngineFailed(f"{who} answers in another protocol: {error}") from error
