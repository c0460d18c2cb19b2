"""A call's place in its caller's trace: W3C trace context in from the caller's metadata, and on to the engine.

Without a collector to send spans to this is all there is: what came in goes on unchanged, its id stands in logs and in
exemplars, and OpenTelemetry is not imported. With one, `otlp.OtlpTraces` takes the place of `Traces`: `server` chooses.

Source: W3C Trace Context (https://www.w3.org/TR/trace-context/), version 00.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from preprocessor.service.metrics import Exemplar
from preprocessor.types.timing import Timings

Metadata = Iterable[tuple[str, str | bytes]]

KEYS = ("traceparent", "tracestate")
# version - trace id - parent id - flags; later versions may append to it. 255 is no version, and ids are not zero.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-(?P<flags>[0-9a-f]{2})(-.*)?"
)
_SAMPLED = 1


class CallTrace:
    """One call in its trace.

    Attributes:
        trace_id: 32 hexadecimal digits; empty where the call belongs to no trace.
    """

    def __init__(self, context: Sequence[tuple[str, str]], trace_id: str = "", *, is_sampled: bool = False) -> None:
        self.trace_id = trace_id
        self._context = context
        self._is_sampled = is_sampled

    @property
    def exemplar(self) -> Exemplar | None:
        """What leads from a metric to this trace; None where nobody keeps it."""
        return {"trace_id": self.trace_id} if self._is_sampled else None

    def ask_engine(self) -> Sequence[tuple[str, str]]:
        """Metadata for the engine, which is asked from now on."""
        return self._context

    def end(self, code: str, reason: str, timings: Timings) -> None:
        """The call has ended.

        Args:
            code: gRPC's name for it.
            reason: Of its error; empty where there is none.
        """


class Traces:
    """Begins the trace of each call."""

    def begin(self, method: str, metadata: Metadata, request_id: str) -> CallTrace:
        context = context_of(metadata)
        found = _TRACEPARENT.fullmatch(context.get("traceparent", ""))
        if found is None:
            return CallTrace(tuple(context.items()))
        return CallTrace(tuple(context.items()), found["trace"], is_sampled=bool(int(found["flags"], 16) & _SAMPLED))

    def close(self) -> None:
        """Send what is still to be sent; blocks."""


def context_of(metadata: Metadata) -> Mapping[str, str]:
    """What of a caller's metadata is trace context."""
    return {key: value for key, value in metadata if key in KEYS and isinstance(value, str)}
