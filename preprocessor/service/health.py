"""Is this replica alive, and should it get work? Answered over gRPC health and over HTTP, from one truth.

Alive means that the event loop answers. Ready means: the model is loaded, workers are there, the engine answers where there
is one, and no stop is under way. An engine that is down makes a replica unready and never restarts it.
"""

from __future__ import annotations

import asyncio
import logging

from aiohttp import web
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as grpc_health
from prometheus_client import CONTENT_TYPE_LATEST

from engine_client import EngineClient, EngineError
from preprocessor.service.metrics import Metrics
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.workers.pool import WorkerPool

logger = logging.getLogger(__name__)

CHECK_SECONDS = 2.0
SERVICE_NAME = pb.DESCRIPTOR.services_by_name["Preprocessor"].full_name


class Health:
    """Keeps the truth current: `run` watches the engine and the workers, `drain` begins the end."""

    def __init__(self, engine: EngineClient | None, pool: WorkerPool) -> None:
        self.servicer = grpc_health.HealthServicer()
        self._engine = engine
        self._pool = pool
        self._engine_trouble = "" if engine is None else "the engine has not been asked yet"
        self._is_draining = False

    @property
    def trouble(self) -> str:
        """Why this replica should get no work; empty when it should."""
        if self._is_draining:
            return "draining"
        return self._engine_trouble if self._pool.crew.count else "no worker process is running"

    @property
    def is_engine_ready(self) -> bool:
        return self._engine is not None and not self._engine_trouble

    async def run(self) -> None:
        """Look every few seconds until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(CHECK_SECONDS)

    async def refresh(self) -> None:
        """Ask the engine now, and publish."""
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
        serving = health_pb2.HealthCheckResponse.SERVING
        status = health_pb2.HealthCheckResponse.NOT_SERVING if self.trouble else serving
        for name in ("", SERVICE_NAME):
            await self.servicer.set(name, status)


def probe_application(health: Health, metrics: Metrics, pool: WorkerPool) -> web.Application:
    """`/livez`, `/readyz` and `/metrics`."""

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text=f"{health.trouble or 'ok'}\n", status=503 if health.trouble else 200)

    async def scrape(_: web.Request) -> web.Response:
        metrics.observe_pool(pool)
        metrics.engine_ready.set(health.is_engine_ready)
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", scrape)])
    return application
