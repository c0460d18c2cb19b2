"""The fronts of a service, in the place of its gRPC server: they are started, replaced when they end, and stopped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import grpc.aio

from preprocessor.config import ServeSettings
from preprocessor.service import addresses, listening
from preprocessor.service.auth_interceptor import AuthInterceptor
from preprocessor.service.concurrency import run_concurrently
from preprocessor.service.fronts.front import Setup
from preprocessor.service.fronts.process import FrontProcess
from preprocessor.workers.arena import Arena

logger = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 10.0
_MOST_DOUBLINGS = 7
_STEADY_SECONDS = 30.0
"""A front that has lived so long is replaced without a pause of those before it."""
_STOP_SECONDS = 5.0  # beside the grace


class Fronts:
    """As `grpc.aio.Server`, of which this has the methods that are used; the names of services are added in the same way.

    Args:
        arena: Where rows lie.
        on_restart: Called when a front has ended and another one is about to be started.
    """

    def __init__(
        self,
        settings: ServeSettings,
        auth_interceptor: AuthInterceptor,
        arena: Arena,
        on_restart: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._auth_interceptor = auth_interceptor
        self._arena = arena
        self._on_restart = on_restart
        self._methods: dict[str, Any] = {}
        self._running: set[FrontProcess] = set()
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    @property
    def running(self) -> Sequence[FrontProcess]:
        """The fronts that listen."""
        return tuple(self._running)

    @property
    def as_grpc(self) -> grpc.aio.Server:
        """The same, for those who ask for gRPC's type."""
        return cast("grpc.aio.Server", self)

    # -- as a gRPC server ----------------------------------------------------------------------------------------------

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Nothing: each service that is added says the same by `add_registered_method_handlers`."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        for method, handler in handlers.items():
            path = f"/{service}/{method}"
            self._methods[path] = self._auth_interceptor.guard_handler(handler, path)

    def bind(self) -> str:
        """Keep the port for the fronts; returns the address with it.

        Raises:
            SettingError: As `listening.bind`.
        """
        address = self._settings.address
        host = listening.check_address(address, self._settings.access)
        written_host, _, wanted_port = address.rpartition(":")
        try:
            self._port_holder = addresses.bound_socket(host, int(wanted_port), is_shared=True)
        except OSError as error:
            raise addresses.unusable_address("--address", address, error) from error
        port = self._port_holder.getsockname()[1]
        self._address = f"{written_host}:{port}"
        return f"{host}:{port}"

    async def start(self) -> None:
        """Start all fronts; returns once they listen.

        Raises:
            RuntimeError, OSError: One cannot be started.
        """
        fronts = [self._make() for _ in range(self._settings.front_count)]
        try:
            await run_concurrently(*(front.start() for front in fronts))
        except BaseException:
            for front in fronts:
                if front.is_listening:
                    front.kill()
                    await front.wait()
            self._port_holder.close()
            raise
        self._running.update(fronts)
        self._keepers = [asyncio.create_task(self._keep(front)) for front in fronts]

    async def stop(self, grace: float | None) -> None:
        """Accept no more, and wait until calls have ended, at most for so many seconds. Calling it again is fine."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        seconds = grace or 0.0
        for front in self._running:
            front.drain(seconds)
        if self._keepers:
            _, late = await asyncio.wait(self._keepers, timeout=seconds + _STOP_SECONDS)
            for front in self._running:
                logger.error("a front did not end; it is killed, and its %d calls with it", front.open_count)
                front.kill()
            if late:
                _, late = await asyncio.wait(late, timeout=_STOP_SECONDS)
            for keeper in late:  # it starts a front
                keeper.cancel()
            if late:
                await asyncio.wait(late)
        self._port_holder.close()

    # -- their lives ---------------------------------------------------------------------------------------------------

    def _make(self) -> FrontProcess:
        settings = self._settings
        setup = Setup(
            os.getpid(), self._address, settings.access, settings.wire, settings.log_level, settings.log_format
        )
        return FrontProcess(setup, self._methods, self._arena)

    async def _keep(self, front: FrontProcess) -> None:
        """Until the stop, replace a front whenever it has ended."""
        failure_count = 0
        while True:
            started_seconds = time.monotonic()
            await front.lost.wait()
            self._running.discard(front)
            code = await front.wait()
            if self._stopping.is_set():
                return
            if time.monotonic() - started_seconds > _STEADY_SECONDS:
                failure_count = 0
            logger.error("a front ended (exit code %s), and its calls with it; another one is started", code)
            replacement = await self._replace(failure_count)
            if replacement is None:
                return
            front, failure_count = replacement
            self._running.add(front)

    async def _replace(self, failure_count: int) -> tuple[FrontProcess, int] | None:
        """A front that listens, with how many have ended one after another; None if the service stops."""
        while True:
            pause_seconds = min(_FIRST_PAUSE_SECONDS * 2**failure_count, _LONGEST_PAUSE_SECONDS)
            failure_count = min(failure_count + 1, _MOST_DOUBLINGS)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_seconds):
                    await self._stopping.wait()
            if self._stopping.is_set():
                return None
            self._on_restart()
            front = self._make()
            try:
                await front.start()
            except (OSError, RuntimeError) as error:
                logger.error("a front cannot be started: %s", error)
                continue
            if self._stopping.is_set():
                front.kill()
                await front.wait()
                return None
            return front, failure_count
