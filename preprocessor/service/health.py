"""Is this replica alive, and should it get work? Answered over gRPC health and over HTTP, from one truth.

Alive means that the event loop answers: whatever stops it, a restart cures. Ready is said for each method, since what keeps
one from being served may not concern the others: without an engine a replica still prepares. The replica as a whole is ready
while it prepares. No `Cause` would be cured by a restart, so none leads to one.
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
_FULL = 0.95  # what is left then fits no video


class Cause(enum.Enum):
    """Why a replica should get no work, or none of some kind."""

    DRAINING = "draining"
    """A stop is under way."""
    WORKERS = "workers"
    """There is no worker process; they are being started."""
    ENGINE = "engine"
    """The engine, without which `Generate` is not served, does not answer."""
    BUDGET = "budget"
    """Memory has been full for a while: what comes would wait, or be refused, while another replica has room."""


_PREPARING = frozenset({Cause.DRAINING, Cause.WORKERS, Cause.BUDGET})
CONCERNS: Mapping[str, frozenset[Cause]] = {
    "": _PREPARING,
    "Prepare": _PREPARING,
    "CountTokens": _PREPARING,
    "Generate": frozenset(Cause),
    "GetModel": frozenset({Cause.DRAINING}),
}
"""What keeps each method from being served; under the empty name, what takes the whole replica out."""
_NO_ENGINE = "no engine is configured here; start the service with --engine"


def health_name(method: str) -> str:
    """The name by which `grpc.health.v1` tells of a method: protobuf's own, `preprocessor.v1.Preprocessor.Generate`."""
    return f"{SERVICE_NAME}.{method}"


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
        self._engine_reason = "not asked"
        self._is_draining = False
        self._logged: frozenset[Cause] = frozenset()
        self._published: dict[str, bool] = {}

    @property
    def causes(self) -> Mapping[Cause, str]:
        """What is wrong, each with what to say of it, whichever methods it concerns."""
        found = {}
        if self._is_draining:
            found[Cause.DRAINING] = "draining"
        if not self._pool.worker_set.count:
            found[Cause.WORKERS] = "no worker process is running"
        if self._engine_trouble:
            found[Cause.ENGINE] = f"engine: {self._engine_trouble}"
        if self._full_since is not None and self._clock() - self._full_since >= self._budget_full_seconds:
            found[Cause.BUDGET] = f"the memory budget has been full for {self._clock() - self._full_since:.0f} s"
        return found

    def causes_of(self, method: str = "") -> Mapping[Cause, str]:
        """Why this replica should get no call of a method, or, without one, no call at all; empty when it should.

        Raises:
            KeyError: There is no such method.
        """
        concerns = CONCERNS[method]
        if self._engine is None and Cause.ENGINE in concerns:
            return {**self.causes, Cause.ENGINE: _NO_ENGINE}
        return {cause: text for cause, text in self.causes.items() if cause in concerns}

    @property
    def trouble(self) -> str:
        """The causes in a line, with the methods that they concern where it is not all."""
        causes = self.causes
        if not causes:
            return ""
        unready = [method for method in METHODS if CONCERNS[method] & causes.keys()]
        whom = "" if unready == list(METHODS) else f"{', '.join(unready)}: "
        return whom + "; ".join(causes.values())

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
            before, self._engine_reason = self._engine_reason, ""
            try:
                await self._engine.check_ready()
                self._engine_trouble = ""
            except EngineError as error:
                self._engine_trouble, self._engine_reason = str(error), error.reason
            if (
                before != self._engine_reason
            ):  # the text may differ each time: it tells, say, when the engine is asked next
                logger.info("engine: %s", self._engine_trouble or "ready")
        await self._publish()

    async def drain(self) -> None:
        """From now on: not ready."""
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
            return web.Response(text=f"no such method; ask for one of {', '.join(METHODS)}\n", status=404)
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
