"""The statuses of gRPC as this package's errors, whichever engine answers."""

from __future__ import annotations

from collections.abc import Mapping

import grpc

from engine_client.errors import (
    EngineDeadlineExceeded,
    EngineError,
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
