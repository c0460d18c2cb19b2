"""Around every call: its id, its deadline, what it holds, and the one edge at which it is counted and, if need be, refused."""

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
from preprocessor.service.logs import about
from preprocessor.service.metrics import Metrics
from preprocessor.service.outgoing import Outgoing
from preprocessor.service.status import Context, refuse, request_id_of, status_of
from preprocessor.service.tracing import CallTrace, Traces
from preprocessor.types.timing import Timings
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.tensors import MAX_ROWS_BYTES
from preprocessor.workers.pool import WorkerPool
from preprocessor.workers.resources import RequestResources

logger = logging.getLogger(__name__)

_FIRST_PIECE_BYTES = 256 << 10
_SLOW_SECONDS = 0.5  # for a message to be taken


@dataclass(slots=True)
class Call:
    """What one call carries from stage to stage.

    Attributes:
        claim: What it holds of the worker pool.
        trace: Its place in its caller's trace.
        deadline_seconds: On `time.monotonic`'s clock; gRPC's own account of it follows the wall clock.
        answer_idle_seconds: The longest that a message waits to be read.
        media_keys: Keys of the request's media, in the order of the spec.
        piece_bytes: Rows worth a message: few until the caller is seen to read, and while he reads slowly.
    """

    request_id: str
    resources: RequestResources
    timings: Timings
    context: Context
    deadline_seconds: float
    answer_idle_seconds: float
    trace: CallTrace
    outgoing: Outgoing
    piece_bytes: int = _FIRST_PIECE_BYTES
    received_bytes: int = 0
    media_keys: tuple[str, ...] = ()
    substitutions: list[pb.Substitution] = field(default_factory=list)

    @property
    def remaining_seconds(self) -> float:
        return max(0.0, self.deadline_seconds - time.monotonic())

    async def send(self, message: Any) -> None:
        """Write a message of the answer, once the caller has read enough of those before it.

        Raises:
            DeadlineExceeded: `ANSWER_IDLE`: it does not read, and what it holds is wanted by others.
        """
        size_bytes = len(message) if isinstance(message, bytes) else message.ByteSize()
        began_at_seconds = time.monotonic()
        async with self.outgoing.sending(size_bytes, self.answer_idle_seconds):
            await self.context.write(message)
        is_slow = time.monotonic() - began_at_seconds > _SLOW_SECONDS
        wanted_bytes = self.piece_bytes // 2 if is_slow else self.piece_bytes * 2
        self.piece_bytes = min(max(wanted_bytes, _FIRST_PIECE_BYTES), MAX_ROWS_BYTES)


class Calls:
    """Opens calls.

    Args:
        log_payloads: As `status.abort`'s.
    """

    def __init__(
        self,
        pool: WorkerPool,
        metrics: Metrics,
        wire: WireSettings,
        *,
        traces: Traces | None = None,
        log_payloads: bool = False,
    ) -> None:
        self._pool = pool
        self._traces = traces or Traces()
        self._metrics = metrics
        self._wire = wire
        self._log_payloads = log_payloads
        self._outgoing = Outgoing()

    @contextlib.asynccontextmanager
    async def open(self, method: str, context: Context) -> AsyncIterator[Call]:
        """Whatever the call holds is given back at its end, and whatever it raises becomes its status and goes no further."""
        asked_seconds = context.time_remaining()
        timeout_seconds = self._wire.default_timeout_seconds if asked_seconds is None else max(0.0, asked_seconds)
        timeout_seconds = min(timeout_seconds, self._wire.max_timeout_seconds)
        deadline_seconds = time.monotonic() + timeout_seconds
        timings = Timings()
        request_id = request_id_of(context)
        trace = self._traces.begin(method, context.invocation_metadata() or (), request_id)
        about(request_id, trace.trace_id)
        code, reason = grpc.StatusCode.OK, ""
        call: Call | None = None
        started_seconds = time.monotonic()
        self._metrics.in_flight.labels(method).inc()
        try:
            async with (
                asyncio.timeout(timeout_seconds),
                RequestResources(self._pool, deadline_seconds, timings) as resources,
            ):
                idle_seconds = self._wire.answer_idle_seconds
                call = Call(
                    request_id, resources, timings, context, deadline_seconds, idle_seconds, trace, self._outgoing
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
