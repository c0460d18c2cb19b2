"""Spans of each call, sent to an OpenTelemetry collector: the call itself, its stages in every process, the engine's part.

Workers know nothing of this. They send their timings along, on a clock that all processes of a machine share, and the
spans are made of those when the call has ended. `server` imports this file only where there is a collector to send to.

A span holds times, sizes and names that this service gave; never a prompt, a file, or a token.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from preprocessor import __version__
from preprocessor.config import TraceSettings
from preprocessor.service.health import SERVICE_NAME as GRPC_SERVICE_NAME
from preprocessor.service.tracing import CallTrace, Metadata, Traces, context_of
from preprocessor.types.timing import StageTime, Timings

# The codes that are the server's fault, by OpenTelemetry's conventions for gRPC; the others are no errors of a server's span.
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
_PROPAGATOR = TraceContextTextMapPropagator()
_ENGINE_STAGE = "generate"
_CLOSE_SECONDS = 2.0


class OtlpTraces(Traces):
    """See `Traces`. Sends in a thread of its own, in batches, and drops spans when the collector does not keep up.

    What `OTEL_RESOURCE_ATTRIBUTES` says of this replica goes along; `OTEL_EXPORTER_OTLP_*` and `OTEL_BSP_*` hold where the
    settings here say nothing.
    """

    def __init__(self, settings: TraceSettings) -> None:
        resource = Resource.create({SERVICE_NAME: "vlm-preprocessor", SERVICE_VERSION: __version__})
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)), resource=resource, shutdown_on_exit=False
        )
        self._exporter = OTLPSpanExporter(endpoint=settings.endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("preprocessor", __version__)

    def begin(self, method: str, metadata: Metadata, request_id: str) -> CallTrace:
        """Begin the call's span, below the caller's where there is one."""
        span = self._tracer.start_span(
            f"{GRPC_SERVICE_NAME}/{method}",
            context=_PROPAGATOR.extract(context_of(metadata)),
            kind=SpanKind.SERVER,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": GRPC_SERVICE_NAME,
                "rpc.method": method,
                "preprocessor.request_id": request_id,
            },
        )
        return _RecordedTrace(self._tracer, span)

    def close(self) -> None:
        """Send what is left, unless the collector does not take it soon: a stop has no half minute for that."""
        giving_up = threading.Timer(_CLOSE_SECONDS, self._exporter.shutdown)
        giving_up.start()
        self._provider.shutdown()
        giving_up.cancel()


class _RecordedTrace(CallTrace):
    def __init__(self, tracer: trace.Tracer, span: Span) -> None:
        context = span.get_span_context()
        super().__init__((), f"{context.trace_id:032x}", is_sampled=context.trace_flags.sampled)
        self._tracer = tracer
        self._span = span
        self._inside = trace.set_span_in_context(span)
        self._engine_span: Span | None = None

    def ask_engine(self) -> Sequence[tuple[str, str]]:
        self._engine_span = self._tracer.start_span("engine", context=self._inside, kind=SpanKind.CLIENT)
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(self._engine_span))
        return tuple(carrier.items())

    def end(self, code: str, reason: str, timings: Timings) -> None:
        """Make the stages' spans and end the call's."""
        if self._span.is_recording():
            for process_id, stage, spent in timings.shares():
                if stage != _ENGINE_STAGE:  # the engine's own span shows it
                    self._add_stage(process_id, stage, spent)
            self._span.set_attribute("rpc.grpc.status_code", code)
            if reason:
                self._span.set_attribute("error.type", reason)
            if code in _FAULTS:
                self._span.set_status(Status(StatusCode.ERROR, reason))
        if self._engine_span is not None:
            generated = timings.stages.get(_ENGINE_STAGE)
            self._engine_span.end(None if generated is None else _epoch_ns(generated.ended_seconds))
        self._span.end()

    def _add_stage(self, process_id: int, stage: str, spent: StageTime) -> None:
        """A span from a stage's first beginning to its last end; what it spent of that stands in its attributes."""
        span = self._tracer.start_span(
            stage,
            context=self._inside,
            start_time=_epoch_ns(spent.started_seconds),
            attributes={
                "process.pid": process_id,
                "preprocessor.stage.wall_seconds": spent.wall_ms / 1e3,
                "preprocessor.stage.cpu_seconds": spent.cpu_ms / 1e3,
            },
        )
        span.end(_epoch_ns(spent.ended_seconds))


def _epoch_ns(monotonic_seconds: float) -> int:
    """A time of `time.monotonic` as a span tells it. The wall clock is read for this alone, and anew: it may be set."""
    return time.time_ns() - int((time.monotonic() - monotonic_seconds) * 1e9)
