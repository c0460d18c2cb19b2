"""Is this replica alive, and should it get work? Answered over gRPC health and over HTTP, from one truth.

Alive means that the event loop answers: whatever stops it, a restart cures. Ready means that nothing of `Cause` holds, which
a restart would not cure: an engine that is down makes a replica unready and never restarts it.
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
from preprocessor.service.metrics import Metrics
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.workers.pool import WorkerPool

logger = logging.getLogger(__name__)

CHECK_SECONDS = 2.0
SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Preprocessor"].full_name
_FULL = 0.95  # what is left then fits no video


class Cause(enum.Enum):
    """Why a replica should get no work."""

    DRAINING = "draining"
    """A stop is under way."""
    WORKERS = "workers"
    """There is no worker process; they are being started."""
    ENGINE = "engine"
    """The engine, without which `Generate` is not served, does not answer."""
    BUDGET = "budget"
    """Memory has been full for a while: what comes would wait, or be refused, while another replica has room."""


class Health:
    """Keeps the truth current: `run` watches the engine, the workers and the memory, `drain` begins the end.

    Args:
        budget_full_seconds: How long memory may be full.
        clock: Seconds that only ever grow.
    """

    def __init__(
        self,
        engine: EngineClient | None,
        pool: WorkerPool,
        budget_full_seconds: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.servicer = grpc_health.HealthServicer()
        self._engine = engine
        self._pool = pool
        self._budget_full_seconds = budget_full_seconds
        self._clock = clock
        self._full_since: float | None = None
        self._engine_trouble = "" if engine is None else "the engine has not been asked yet"
        self._is_draining = False
        self._published: frozenset[Cause] | None = None

    @property
    def causes(self) -> Mapping[Cause, str]:
        """Why this replica should get no work, each with what to say of it; empty when it should."""
        found = {}
        if self._is_draining:
            found[Cause.DRAINING] = "draining"
        if not self._pool.crew.count:
            found[Cause.WORKERS] = "no worker process is running"
        if self._engine_trouble:
            found[Cause.ENGINE] = f"engine: {self._engine_trouble}"
        if self._full_since is not None and self._clock() - self._full_since >= self._budget_full_seconds:
            found[Cause.BUDGET] = f"the memory budget has been full for {self._clock() - self._full_since:.0f} s"
        return found

    @property
    def trouble(self) -> str:
        """The causes in a line."""
        return "; ".join(self.causes.values())

    @property
    def is_engine_ready(self) -> bool:
        return self._engine is not None and not self._engine_trouble

    async def run(self) -> None:
        """Look every few seconds until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(CHECK_SECONDS)

    async def refresh(self) -> None:
        """Look at the memory, ask the engine, and publish."""
        if self._pool.fullness < _FULL:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = self._clock()
        if self._engine is not None:
            before = self._engine_trouble
            try:
                await self._engine.check_ready()
                self._engine_trouble = ""
            except EngineError as error:
                self._engine_trouble = str(error)
            if before != self._engine_trouble:
                logger.info("engine: %s", self._engine_trouble or "ready")
        await self._publish()

    async def drain(self) -> None:
        """From now on: not ready."""
        self._is_draining = True
        await self._publish()

    async def _publish(self) -> None:
        causes = frozenset(self.causes)
        if causes == self._published:
            return
        if self._published is not None:
            logger.info("%s", f"not ready: {self.trouble}" if causes else "ready")
        self._published = causes
        serving = health_pb2.HealthCheckResponse.SERVING
        status = health_pb2.HealthCheckResponse.NOT_SERVING if causes else serving
        for name in ("", SERVICE_NAME):
            await self.servicer.set(name, status)


def probe_application(health: Health, metrics: Metrics) -> web.Application:
    """`/livez`, `/readyz` and `/metrics`."""

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        causes = health.causes
        return web.Response(text="\n".join(causes.values() or ["ok"]) + "\n", status=503 if causes else 200)

    async def scrape(request: web.Request) -> web.Response:
        body, content_type = metrics.render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    application = web.Application()
    application.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", scrape)])
    return application
