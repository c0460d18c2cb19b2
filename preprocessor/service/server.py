"""The server's life cycle: load, listen, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from types import TracebackType

import av
from aiohttp import web
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from engine_client import Endpoints, EngineClient
from preprocessor.config import ServeSettings, SettingError, TraceSettings, split_address
from preprocessor.models.loaded import LoadedModel
from preprocessor.models.registry import load_model
from preprocessor.service import addresses, listening
from preprocessor.service.auth_interceptor import AuthInterceptor
from preprocessor.service.caller_region import COPYING_THREADS
from preprocessor.service.endpoint_metrics import EndpointMetrics
from preprocessor.service.engine import arena_in, connect_engines, remove_abandoned, share_region
from preprocessor.service.fetch.fetcher import Fetcher
from preprocessor.service.fronts.supervisor import Fronts
from preprocessor.service.health import SERVICE_NAME, Health, probe_application
from preprocessor.service.inspection import Inspection
from preprocessor.service.logs import keep_writing_summaries
from preprocessor.service.metrics import Metrics
from preprocessor.service.openai.server import OpenAIServer
from preprocessor.service.servicer import PreprocessorServicer
from preprocessor.service.state_metrics import StateMetrics
from preprocessor.service.tracing import Traces
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from preprocessor.workers.fork_server import ForkServer
from preprocessor.workers.heap import give_back_large_blocks
from preprocessor.workers.pool import PoolSettings, WorkerPool

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 2.0  # for callers to read the rest of completed responses
_POLL_SECONDS = 0.05
_SETTLING_SECONDS = 0.1  # without a call, when callers are held
_GOAWAY_SECONDS = 1.0  # until every connection has received GOAWAY


class Server:
    """A running service, as an async context manager; leaving it drains and stops.

    Attributes:
        address, http_address, openai_address: Where it listens, with the bound ports; empty where it does not.
    """

    def __init__(
        self,
        settings: ServeSettings,
        model: LoadedModel | None = None,
        engine: EngineClient | None = None,
        fork_server: ForkServer | None = None,
    ) -> None:
        """`model`, `engine` and `fork_server` replace those that the server would create from the settings."""
        self.settings = settings
        self.model = model or load_model(settings.model, settings.video_markers, settings.preparation)
        self.engine = engine
        self._fork_server = fork_server
        self.address = ""
        self.http_address = ""
        self.openai_address = ""
        self._drain_seconds = settings.drain_seconds

    async def __aenter__(self) -> Server:
        # A start that fails midway releases everything, in particular files in /dev/shm.
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def retire(self) -> None:
        """Become unready, and wait for calls in flight while connections stay open, for half of the drain time at most.

        The stop that follows closes a connection together with its last call. A proxy that is still forwarding that call's
        response to a slow caller may then discard the rest, as Envoy 1.40 does. New calls are refused meanwhile, so that callers
        use another replica.
        """
        await self.health.drain()
        self.auth_interceptor.is_draining = True
        started_seconds = time.monotonic()
        if self.metrics.open_call_count():
            for _ in range(int(self._drain_seconds / 2 / _POLL_SECONDS)):
                if not self.metrics.open_call_count():
                    break
                await asyncio.sleep(_POLL_SECONDS)
            await asyncio.sleep(min(_FLUSH_SECONDS, self._drain_seconds / 4))
        self._drain_seconds -= time.monotonic() - started_seconds

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Become unready, let calls in flight finish within the drain time, then cancel the rest."""
        await self._stack.aclose()

    async def _start(self, stack: AsyncExitStack) -> None:
        settings = self.settings
        self.traces = _create_traces(settings.trace)
        stack.push_async_callback(asyncio.to_thread, self.traces.close)
        self.metrics = Metrics()
        self.metrics.describe_build(self.model)
        self.fetcher = await stack.enter_async_context(Fetcher(settings.fetch, self.metrics))
        # Encoding copies a prompt's tensors into a message. That takes milliseconds, so threads suffice.
        encoding = ThreadPoolExecutor(2, "encode")
        stack.callback(encoding.shutdown, wait=False, cancel_futures=True)
        copying = ThreadPoolExecutor(COPYING_THREADS, "copy-rows")
        stack.callback(copying.shutdown, wait=False, cancel_futures=True)
        if settings.access.is_caller_shared_memory_on:
            remove_abandoned()
        if self.engine is None and settings.engine.address:
            self.engine = connect_engines(settings.engine, self.model, encoding)
        self._region = None
        if self.engine is not None:
            self._region = share_region(self.engine, settings.engine, settings.memory_budget_bytes)
            if self._region is not None:
                stack.callback(self._region.close)
        if isinstance(self.engine, Endpoints):
            self.metrics.registry.register(EndpointMetrics(self.engine.states))
        arena = None if self._region is None else arena_in(self._region, settings.memory_budget_bytes)
        self.pool = WorkerPool(
            self.model, _pool_settings(settings), self.metrics.count_worker_end, self._fork_server, arena
        )
        await self.pool.start()
        stack.push_async_callback(self.pool.close)
        if self.engine is not None:
            stack.push_async_callback(self.engine.close)
        self.auth_interceptor = AuthInterceptor(settings.access, settings.wire, self.metrics)
        self.fronts: Fronts | None = None
        if settings.front_count > 1:
            self.fronts = Fronts(settings, self.auth_interceptor, self.pool.arena, self.metrics.front_restarts.inc)
            self._grpc = self.fronts.as_grpc
        else:
            self._grpc = listening.create_server(settings.wire, self.auth_interceptor)
        self.health = Health(
            self.engine,
            self.pool,
            settings.budget_full_seconds,
            is_reachable=lambda: self.fronts is None or bool(self.fronts.running),
        )
        self.metrics.registry.register(StateMetrics(self.pool, self.health))
        servicer = PreprocessorServicer(
            self.model,
            settings,
            self.pool,
            self.metrics,
            self.fetcher,
            self.engine,
            copying,
            self.traces,
        )
        pb_grpc.add_PreprocessorServicer_to_server(servicer, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, self._grpc)
        # `enable_server_reflection` would take the fronts for a server of the blocking API.
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(names), self._grpc)
        self.address = (
            listening.bind(self._grpc, settings.address, settings.access) if self.fronts is None else self.fronts.bind()
        )
        await self._grpc.start()
        stack.push_async_callback(self._grpc.stop, grace=None)
        http = probe_application(self.health, self.metrics)
        if settings.is_inspectable:
            pages = ThreadPoolExecutor(1, "page")
            stack.callback(pages.shutdown, wait=False, cancel_futures=True)
            Inspection(self.model, settings, servicer, self.auth_interceptor, pages).add_to(http)
        self._http = web.AppRunner(http, access_log=None, handler_cancellation=True)
        await self._http.setup()
        stack.push_async_callback(self._http.cleanup)
        self.http_address = await self._bind_http(settings.http_address)
        self._openai = None
        if settings.openai_address:
            self._openai = OpenAIServer(self.model, settings, servicer, self.auth_interceptor)
            stack.push_async_callback(self._openai.stop, 0.0)
            self.openai_address = await self._openai.start()
        await self.health.refresh()
        stack.callback(asyncio.create_task(self.health.run()).cancel)
        stack.callback(asyncio.create_task(self.metrics.watch_event_loop()).cancel)
        stack.push_async_callback(self._drain_calls)

    async def _drain_calls(self) -> None:
        """Stop the servers of calls once these have ended; readiness probes report "draining" meanwhile."""
        await self.health.drain()
        if self._openai is None:
            await self._drain_grpc()
        else:
            await asyncio.gather(self._drain_grpc(), self._openai.stop(self._drain_seconds))

    async def _drain_grpc(self) -> None:
        if not self.auth_interceptor.is_draining:
            await self._grpc.stop(grace=self._drain_seconds)
            return
        # gRPC ends a call with CANCELLED if it arrives after the stop and before its caller has received GOAWAY. Callers that
        # retry at once after a refusal would run into this, so their calls are held: before the stop until all of them have
        # arrived, and then until every connection has received GOAWAY.
        longest_seconds = min(_GOAWAY_SECONDS, max(0.0, self._drain_seconds / 4))
        with self.auth_interceptor.hold_new_calls():
            await self._no_more_calls(longest_seconds)
            stopping = asyncio.create_task(self._grpc.stop(grace=self._drain_seconds))
            await asyncio.wait([stopping], timeout=longest_seconds)
        await stopping

    async def _no_more_calls(self, longest_seconds: float) -> None:
        """Wait until for a moment no call has arrived that is held, but not longer than that."""
        deadline_seconds = time.monotonic() + longest_seconds
        held_count = -1
        while held_count != self.auth_interceptor.held_count and time.monotonic() < deadline_seconds:
            held_count = self.auth_interceptor.held_count
            await asyncio.sleep(_SETTLING_SECONDS)

    async def _bind_http(self, address: str) -> str:
        host, port = split_address("--http-address", address)
        site = web.TCPSite(self._http, host, port)
        try:
            await site.start()
        except OSError as error:
            raise addresses.unusable_address("--http-address", address, error) from error
        return f"{host}:{self._http.addresses[0][1]}"


def _pool_settings(settings: ServeSettings) -> PoolSettings:
    return PoolSettings(
        worker_count=settings.worker_count,
        max_queued_count=settings.max_queued_count,
        memory_budget_bytes=settings.memory_budget_bytes,
        worker_memory_bytes=settings.worker_memory_bytes or settings.memory_budget_bytes,
        max_cpu_seconds=settings.max_cpu_seconds,
        max_jobs_a_worker=settings.max_jobs_a_worker,
        is_in_process=settings.is_in_process,
        is_isolation_required=settings.isolation == "required",
        has_workers_a_caller=settings.worker_reuse == "caller",
        cache_bytes=int(settings.cache_share * settings.memory_budget_bytes),
    )


async def serve(settings: ServeSettings, model: LoadedModel, fork_server: ForkServer | None = None) -> None:
    """Serve until SIGTERM or SIGINT; a second signal stops without draining."""
    give_back_large_blocks()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    summaries = asyncio.create_task(keep_writing_summaries())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if fork_server is not None:
        await fork_server.start()
    async with Server(settings, model, fork_server=fork_server) as server:
        logger.info(
            "serving %s on grpc %s, http %s;%s %s; %s; memory budget %d MiB; engine %s; FFmpeg %s",
            server.model.name,
            server.address,
            server.http_address,
            f" openai {server.openai_address};" if server.openai_address else "",
            _counted(settings.worker_count, "worker"),
            _counted(settings.front_count, "front"),
            settings.memory_budget_bytes >> 20,
            settings.engine.address or "none",
            av.ffmpeg_version_info,
        )
        await stop.wait()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        logger.info("stopping; calls in flight may take %g more seconds", settings.drain_seconds)
        await server.retire()
    if fork_server is not None:
        fork_server.close()
    summaries.cancel()
    await asyncio.wait([summaries])
    logger.info("stopped")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _create_traces(settings: TraceSettings) -> Traces:
    """Traces as configured.

    Raises:
        SettingError: A trace endpoint is set, and OpenTelemetry is not installed.
    """
    if not settings.endpoint:
        return Traces()
    try:
        from preprocessor.service.otlp import OtlpTraces
    except ImportError as error:
        raise SettingError(
            "--trace-endpoint", settings.endpoint, "OpenTelemetry to be installed: pip install 'vlm-preprocessor[otel]'"
        ) from error
    return OtlpTraces(settings)
