"""Spans of each call for an OpenTelemetry collector: the call, its stages in every process, and the engine request.

Workers create no spans. They report their timings on the monotonic clock that all processes of a machine share, and the
spans are created from those when the call ends. `server` imports this file only if a collector is configured.

A span holds times, sizes and names chosen by this service; never a prompt, a file, or a token.
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

# Status codes that make a server span an error, by OpenTelemetry's semantic conventions for gRPC.
_ERROR_CODES = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
_PROPAGATOR = TraceContextTextMapPropagator()
_ENGINE_STAGE = "generate"
_CLOSE_SECONDS = 2.0


class OtlpTraces(Traces):
    """Implements `Traces`. A background thread exports spans in batches, and drops spans if the collector is too slow.

    `OTEL_RESOURCE_ATTRIBUTES` is added to the resource; `OTEL_EXPORTER_OTLP_*` and `OTEL_BSP_*` apply where the settings here
    have no counterpart.
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
        """Start the call's span, as a child of the caller's span if there is one."""
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
        """Export the remaining spans, for `_CLOSE_SECONDS` at most; the exporter's own limit is 30 s."""
        give_up_timer = threading.Timer(_CLOSE_SECONDS, self._exporter.shutdown)
        give_up_timer.start()
        self._provider.shutdown()
        give_up_timer.cancel()


class _RecordedTrace(CallTrace):
    def __init__(self, tracer: trace.Tracer, span: Span) -> None:
        context = span.get_span_context()
        super().__init__((), f"{context.trace_id:032x}", is_sampled=context.trace_flags.sampled)
        self._tracer = tracer
        self._span = span
        self._parent_context = trace.set_span_in_context(span)
        self._engine_span: Span | None = None

    def start_engine_request(self) -> Sequence[tuple[str, str]]:
        self._engine_span = self._tracer.start_span("engine", context=self._parent_context, kind=SpanKind.CLIENT)
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(self._engine_span))
        return tuple(carrier.items())

    def end(self, code: str, reason: str, timings: Timings) -> None:
        """Create the stages' spans and end the call's."""
        if self._span.is_recording():
            for process_id, stage, spent in timings.shares():
                if stage != _ENGINE_STAGE:  # the engine span covers it
                    self._add_stage(process_id, stage, spent)
            self._span.set_attribute("rpc.grpc.status_code", code)
            if reason:
                self._span.set_attribute("error.type", reason)
            if code in _ERROR_CODES:
                self._span.set_status(Status(StatusCode.ERROR, reason))
        if self._engine_span is not None:
            generated = timings.stages.get(_ENGINE_STAGE)
            self._engine_span.end(None if generated is None else _epoch_ns(generated.ended_seconds))
        self._span.end()

    def _add_stage(self, process_id: int, stage: str, spent: StageTime) -> None:
        """Add a span from a stage's first start to its last end; attributes give the time spent in it."""
        span = self._tracer.start_span(
            stage,
            context=self._parent_context,
            start_time=_epoch_ns(spent.started_seconds),
            attributes={
                "process.pid": process_id,
                "preprocessor.stage.wall_seconds": spent.wall_ms / 1e3,
                "preprocessor.stage.cpu_seconds": spent.cpu_ms / 1e3,
            },
        )
        span.end(_epoch_ns(spent.ended_seconds))


def _epoch_ns(monotonic_seconds: float) -> int:
    """A time of `time.monotonic` in nanoseconds since the epoch. The wall clock is read each time, because it may be set."""
    return time.time_ns() - int((time.monotonic() - monotonic_seconds) * 1e9)
