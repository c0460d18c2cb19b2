"""Liveness and readiness of this replica, over gRPC health checking and over HTTP, from the same state.

Live: the event loop responds. Restart the process if it does not. Ready: reported for each method, because a cause may affect
only some of them: without an engine a replica still serves `Prepare`. The replica as a whole is ready if it serves `Prepare`.
A restart removes no `Cause`, so no `Cause` makes a replica fail its liveness probe.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections.abc import Callable, Mapping

from aiohttp import web
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as grpc_health

from engine_client import EngineClient, EngineError
from preprocessor.service.metrics import METHODS, Metrics
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.workers.pool import WorkerPool

logger = logging.getLogger(__name__)

CHECK_SECONDS = 2.0
SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Preprocessor"].full_name
_FULL = 0.95  # the rest is too small for a video


class Cause(enum.Enum):
    """Why a replica is not ready, for all methods or for some."""

    DRAINING = "draining"
    """The process is stopping."""
    FRONTS = "fronts"
    """No front is running, so nobody can call; new ones are being started."""
    WORKERS = "workers"
    """No worker process is running; new ones are being started."""
    ENGINE = "engine"
    """The engine, which `Generate` needs, is not ready."""
    BUDGET = "budget"
    """The memory budget has been full for `budget_full_seconds`: new requests would wait or be refused."""


_PREPARE_CAUSES = frozenset({Cause.DRAINING, Cause.FRONTS, Cause.WORKERS, Cause.BUDGET})
CONCERNS: Mapping[str, frozenset[Cause]] = {
    "": _PREPARE_CAUSES,
    "Prepare": _PREPARE_CAUSES,
    "CountTokens": _PREPARE_CAUSES,
    "Generate": frozenset(Cause),
    "GetModel": frozenset({Cause.DRAINING, Cause.FRONTS}),
}
"""The causes that make each method unready; under the empty name, those that make the whole replica unready."""
_NO_ENGINE = "no engine is configured here; start the service with --engine"


def health_name(method: str) -> str:
    """The service name of a method in `grpc.health.v1`: its full protobuf name, `preprocessor.v1.Preprocessor.Generate`."""
    return f"{SERVICE_NAME}.{method}"


class Health:
    """Tracks readiness: `run` checks engine, workers and memory, `drain` marks the replica as stopping.

    Args:
        budget_full_seconds: How long the memory budget may be full before the replica is unready.
        clock: Monotonic clock, in seconds.
        is_reachable: Whether anything listens for calls.
    """

    def __init__(
        self,
        engine: EngineClient | None,
        pool: WorkerPool,
        budget_full_seconds: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
        is_reachable: Callable[[], bool] = lambda: True,
    ) -> None:
        self.servicer = grpc_health.HealthServicer()
        self._engine = engine
        self._pool = pool
        self._budget_full_seconds = budget_full_seconds
        self._clock = clock
        self._is_reachable = is_reachable
        self._full_since: float | None = None
        self._engine_trouble = "" if engine is None else "the engine has not been checked yet"
        self._engine_reason = "not checked"
        self._is_draining = False
        self._logged: frozenset[Cause] = frozenset()
        self._published: dict[str, bool] = {}

    @property
    def causes(self) -> Mapping[Cause, str]:
        """All current causes, each with a description."""
        found = {}
        if self._is_draining:
            found[Cause.DRAINING] = "draining"
        if not self._is_reachable():
            found[Cause.FRONTS] = "no front is running"
        if not self._pool.worker_set.count:
            found[Cause.WORKERS] = "no worker process is running"
        if self._engine_trouble:
            found[Cause.ENGINE] = f"engine: {self._engine_trouble}"
        if self._full_since is not None and self._clock() - self._full_since >= self._budget_full_seconds:
            found[Cause.BUDGET] = f"the memory budget has been full for {self._clock() - self._full_since:.0f} s"
        return found

    def causes_of(self, method: str = "") -> Mapping[Cause, str]:
        """The causes that make a method unready, or, for the empty name, the whole replica; empty if it is ready.

        Raises:
            KeyError: The method does not exist.
        """
        concerns = CONCERNS[method]
        if self._engine is None and Cause.ENGINE in concerns:
            return {**self.causes, Cause.ENGINE: _NO_ENGINE}
        return {cause: text for cause, text in self.causes.items() if cause in concerns}

    @property
    def trouble(self) -> str:
        """The causes in one line, after the methods that they affect unless those are all."""
        causes = self.causes
        if not causes:
            return ""
        unready = [method for method in METHODS if CONCERNS[method] & causes.keys()]
        prefix = "" if unready == list(METHODS) else f"{', '.join(unready)}: "
        return prefix + "; ".join(causes.values())

    @property
    def is_engine_ready(self) -> bool:
        return self._engine is not None and not self._engine_trouble

    async def run(self) -> None:
        """Refresh every `CHECK_SECONDS` until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(CHECK_SECONDS)

    async def refresh(self) -> None:
        """Check memory and engine, then publish readiness over gRPC."""
        if self._pool.fullness < _FULL:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = self._clock()
        if self._engine is not None:
            before, self._engine_reason = self._engine_reason, ""
            try:
                await self._engine.check_ready()
                self._engine_trouble = ""
            except EngineError as error:
                self._engine_trouble, self._engine_reason = str(error), error.reason
            # Compared by reason: the message differs each time, for example in when the engine is checked next.
            if before != self._engine_reason:
                logger.info("engine: %s", self._engine_trouble or "ready")
        await self._publish()

    async def drain(self) -> None:
        """Mark the replica as stopping; it stays unready."""
        self._is_draining = True
        await self._publish()

    async def _publish(self) -> None:
        causes = frozenset(self.causes)
        if self._published and causes != self._logged:
            logger.info("%s", f"not ready: {self.trouble}" if causes else "ready")
        self._logged = causes
        for method in CONCERNS:
            is_ready = not self.causes_of(method)
            if is_ready is self._published.get(method):
                continue
            self._published[method] = is_ready
            serving = health_pb2.HealthCheckResponse.SERVING
            status = serving if is_ready else health_pb2.HealthCheckResponse.NOT_SERVING
            for name in (health_name(method),) if method else ("", SERVICE_NAME):
                await self.servicer.set(name, status)


def probe_application(health: Health, metrics: Metrics) -> web.Application:
    """`/livez`, `/readyz`, `/readyz?method=METHOD` and `/metrics`."""

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(request: web.Request) -> web.Response:
        method = request.query.get("method", "")
        if method not in CONCERNS:
            return web.Response(text=f"unknown method; known are {', '.join(METHODS)}\n", status=404)
        causes = health.causes_of(method)
        if causes:
            return web.Response(text="\n".join(causes.values()) + "\n", status=503)
        return web.Response(text="ok\n" if method or not health.causes else f"ok, but not for {health.trouble}\n")

    async def scrape(request: web.Request) -> web.Response:
        body, content_type = metrics.render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    application = web.Application()
    application.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", scrape)])
    return application
