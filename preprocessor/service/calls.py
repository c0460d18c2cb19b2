"""Around every call: its id, its deadline, what it holds, and the one edge at which it is counted and, if need be, aborted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from preprocessor.service.logs import about
from preprocessor.service.metrics import Metrics
from preprocessor.service.status import abort, status_of
from preprocessor.service.tracing import CallTrace, Traces
from preprocessor.timing import Timings
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.workers.claim import Claim
from preprocessor.workers.pool import WorkerPool

logger = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class Call:
    """What one call carries from stage to stage.

    Attributes:
        claim: What it holds of the worker pool.
        trace: Its place in its caller's trace.
    """

    request_id: str
    claim: Claim
    timings: Timings
    trace: CallTrace
    received_bytes: int = 0
    substitutions: list[pb.Substitution] = field(default_factory=list)


class Calls:
    """Opens calls.

    Args:
        default_timeout_seconds: The deadline of a call that brings none.
    """

    def __init__(
        self, pool: WorkerPool, metrics: Metrics, default_timeout_seconds: float, traces: Traces | None = None
    ) -> None:
        self._pool = pool
        self._traces = traces or Traces()
        self._metrics = metrics
        self._default_timeout_seconds = default_timeout_seconds

    @contextlib.asynccontextmanager
    async def open(self, method: str, context: Context) -> AsyncIterator[Call]:
        """Whatever the call holds is given back at its end, and whatever it raises becomes its status."""
        timeout_seconds = context.time_remaining() or self._default_timeout_seconds
        timings = Timings()
        request_id = _request_id(context)
        trace = self._traces.begin(method, context.invocation_metadata() or (), request_id)
        about(request_id, trace.trace_id)
        code, reason = grpc.StatusCode.OK, ""
        started_seconds = time.monotonic()
        self._metrics.in_flight.labels(method).inc()
        try:
            async with (
                asyncio.timeout(timeout_seconds),
                Claim(self._pool, time.monotonic() + timeout_seconds, timings) as claim,
            ):
                yield Call(request_id, claim, timings, trace)
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            code, reason, _ = status_of(error)
            await abort(context, error, request_id)
        finally:
            self._metrics.in_flight.labels(method).dec()
            seconds = time.monotonic() - started_seconds
            self._metrics.end_call(method, code.name, reason, seconds, timings, trace.exemplar)
            trace.end(code.name, reason, timings)
            logger.debug("%s ended: %s after %.3f s", method, code.name, seconds)


def _request_id(context: Context) -> str:
    """The caller's own id where he sends one that is fit for a log line, else a new one."""
    given = dict(context.invocation_metadata() or ()).get(REQUEST_ID_KEY, "")
    return given if isinstance(given, str) and 0 < len(given) <= 128 and given.isprintable() else uuid.uuid4().hex
