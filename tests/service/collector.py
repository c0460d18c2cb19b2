"""An OTLP receiver in this process, in place of an OpenTelemetry collector."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True, slots=True)
class Received:
    """A span with its resource."""

    span: Span
    resource: Mapping[str, Any]

    @property
    def attributes(self) -> Mapping[str, Any]:
        return _values(self.span.attributes)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]  # generated, untyped
    """Keeps what it gets.

    Attributes:
        address: As `--trace-endpoint` takes it.
    """

    def __init__(self) -> None:
        self.address = ""
        self.spans: list[Received] = []

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for sender in request.resource_spans:
            resource = _values(sender.resource.attributes)
            self.spans += [Received(span, resource) for scope in sender.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Received]:
        return [one for one in self.spans if one.span.name == name]


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector that listens on a free port."""
    collector = Collector()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield collector
    finally:
        await server.stop(grace=None)


async def flush(traces: Any) -> None:
    """Export all ended spans now; otherwise they are exported in batches, seconds later."""
    force: Callable[[], bool] = traces._provider.force_flush
    assert await asyncio.to_thread(force)


def _values(attributes: Any) -> dict[str, Any]:
    pairs: list[KeyValue] = list(attributes)
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in pairs}
