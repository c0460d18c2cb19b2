"""What every call needs: a request ID, a deadline, resources, and one place that counts it and maps errors to statuses."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from preprocessor.config import WireSettings
from preprocessor.service.caller_region import CallerRegion
from preprocessor.service.logs import set_request
from preprocessor.service.metrics import Metrics
from preprocessor.service.quotas import current_caller
from preprocessor.service.response_buffer import ResponseBuffer
from preprocessor.service.sender import Sender
from preprocessor.service.status import Context, refuse, request_id_of, status_of
from preprocessor.service.tracing import CallTrace, Traces
from preprocessor.types.timing import Timings
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.resources import RequestResources

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Call:
    """The state of one call.

    Attributes:
        resources: Worker pool resources held by the call.
        trace: The call's span in the caller's trace.
        deadline_seconds: On `time.monotonic`'s clock; gRPC's own deadline follows the wall clock.
        media_keys: Keys of the request's media, in the order of the spec.
        region: The caller's shared memory, which rows go to in place of messages.
    """

    request_id: str
    resources: RequestResources
    timings: Timings
    context: Context
    deadline_seconds: float
    trace: CallTrace
    sender: Sender
    received_bytes: int = 0
    media_keys: tuple[str, ...] = ()
    substitutions: list[pb.Substitution] = field(default_factory=list)
    cached_item_count: int = 0
    early_row_count: int = 0
    region: CallerRegion | None = None

    @property
    def remaining_seconds(self) -> float:
        return max(0.0, self.deadline_seconds - time.monotonic())

    async def send(self, message: Any) -> None:
        """See `Sender.send`."""
        await self.sender.send(message)


class Calls:
    """Opens calls.

    Args:
        log_payloads: As in `status.refuse`.
        are_callers_named: Callers prove who they are, or a proxy tells: each has cached pixels of its own.
    """

    def __init__(
        self,
        pool: WorkerPool,
        metrics: Metrics,
        wire: WireSettings,
        *,
        traces: Traces | None = None,
        log_payloads: bool = False,
        are_callers_named: bool = False,
    ) -> None:
        self._pool = pool
        self._traces = traces or Traces()
        self._metrics = metrics
        self._wire = wire
        self._log_payloads = log_payloads
        self._are_callers_named = are_callers_named
        self._response_buffer = ResponseBuffer()

    @contextlib.asynccontextmanager
    async def open(self, method: str, context: Context) -> AsyncIterator[Call]:
        """The state of a call. On leaving, resources are released, and an exception becomes the call's status."""
        requested_seconds = context.time_remaining()
        timeout_seconds = (
            self._wire.default_timeout_seconds if requested_seconds is None else max(0.0, requested_seconds)
        )
        timeout_seconds = min(timeout_seconds, self._wire.max_timeout_seconds)
        deadline_seconds = time.monotonic() + timeout_seconds
        timings = Timings()
        request_id = request_id_of(context)
        trace = self._traces.begin(method, context.invocation_metadata() or (), request_id)
        set_request(request_id, trace.trace_id)
        code, reason = grpc.StatusCode.OK, ""
        call: Call | None = None
        started_seconds = time.monotonic()
        self._metrics.in_flight.labels(method).inc()
        try:
            async with (
                asyncio.timeout(timeout_seconds),
                RequestResources(self._pool, deadline_seconds, timings, self._cache_scope()) as resources,
            ):
                sender = Sender(context.write, self._response_buffer, self._wire.answer_idle_seconds)
                call = Call(
                    request_id,
                    resources,
                    timings,
                    context,
                    deadline_seconds,
                    trace,
                    sender,
                )
                yield call
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            code, reason, _ = status_of(error)
            media_keys = () if call is None else call.media_keys
            refuse(context, error, request_id, media_keys=media_keys, log_payloads=self._log_payloads)
        finally:
            self._metrics.in_flight.labels(method).dec()
            seconds = time.monotonic() - started_seconds
            self._metrics.end_call(method, code.name, reason, seconds, timings, trace.exemplar)
            trace.end(code.name, reason, timings)
            logger.debug("%s ended: %s after %.3f s", method, code.name, seconds)

    def _cache_scope(self) -> str:
        """Within which media of several calls may share pixels, beside the salt that each call may give."""
        return current_caller().name if self._are_callers_named else ""
