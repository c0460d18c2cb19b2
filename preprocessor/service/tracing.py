"""Trace context propagation: W3C trace context from the caller's metadata to the engine's.

Without a collector this is all: the context is forwarded unchanged, its trace ID appears in logs and exemplars, and
OpenTelemetry is not imported. With a collector, `server` uses `otlp.OtlpTraces` in place of `Traces`.

Source: W3C Trace Context (https://www.w3.org/TR/trace-context/), version 00.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from preprocessor.service.metrics import Exemplar
from preprocessor.types.timing import Timings

Metadata = Iterable[tuple[str, str | bytes]]

KEYS = ("traceparent", "tracestate")
# version - trace ID - parent ID - flags; later versions may append to it. Version ff and all-zero IDs are invalid.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})(-.*)?"
)
_SAMPLED = 1


class CallTrace:
    """The trace of one call.

    Attributes:
        trace_id: 32 hexadecimal digits; empty if the call belongs to no trace.
    """

    def __init__(self, context: Sequence[tuple[str, str]], trace_id: str = "", *, is_sampled: bool = False) -> None:
        self.trace_id = trace_id
        self._context = context
        self._is_sampled = is_sampled

    @property
    def exemplar(self) -> Exemplar | None:
        """Labels that link a metric to this trace; None unless the trace is sampled."""
        return {"trace_id": self.trace_id} if self._is_sampled else None

    def start_engine_request(self) -> Sequence[tuple[str, str]]:
        """Trace metadata for the engine request, which starts now."""
        return self._context

    def end(self, code: str, reason: str, timings: Timings) -> None:
        """End the call's trace.

        Args:
            code: Name of the gRPC status code.
            reason: The error's reason; empty on success.
        """


class Traces:
    """Starts the trace of each call."""

    def begin(self, method: str, metadata: Metadata, request_id: str) -> CallTrace:
        context = context_of(metadata)
        found = _TRACEPARENT.fullmatch(context.get("traceparent", ""))
        if found is None:
            return CallTrace(tuple(context.items()))
        return CallTrace(tuple(context.items()), found["trace"], is_sampled=bool(int(found["flags"], 16) & _SAMPLED))

    def close(self) -> None:
        """Export the remaining spans; blocks."""


def context_of(metadata: Metadata) -> Mapping[str, str]:
    """The trace context in a caller's metadata."""
    return {key: value for key, value in metadata if key in KEYS and isinstance(value, str)}
