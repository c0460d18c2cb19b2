"""An engine behind vLLM's own gRPC service.

A prompt is one message, so its arrays must be complete, and they are free when the message is made. Leaving an answer early
cancels its call, and the server then aborts the request in its core.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_client.capabilities import EngineCapabilities
from engine_client.client import PROBE_TIMEOUT_SECONDS, Metadata
from engine_client.compatibility import CompatibilityCheck
from engine_client.errors import EngineDeadlineExceeded, EngineError, EngineFailed, EngineUnavailable
from engine_client.fingerprint import Fingerprint
from engine_client.release import Release
from engine_client.shm import SharedRegion
from engine_client.types import EngineInfo, EngineRequest, EngineStep, FinishReason
from engine_client.vllm.prompt import encode_prompt
from engine_client.vllm.server import VllmServer, read_bundle, read_server
from engine_client.vllm.status import grpc_errors

_SERVICE = "/vllm.grpc.engine.VllmEngine/"
_CONNECT_TIMEOUT_SECONDS = 30.0  # the tokenizer alone has some 10 MB
_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # gRPC would move a prompt to the next connection by itself: to an engine that has not been compared yet.
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.dns_min_time_between_resolutions_ms", 2_000),
)


class VllmEngine:
    """An `EngineClient` for one vLLM server; also an async context manager that closes itself.

    Args:
        address: host:port, or any gRPC target.
        credentials: For TLS; None is plain text.
        tls_server_name: The name in the engine's certificate, where it is not the host of `address`.
        call_metadata: Asked before every call for what to send along beside the caller's own, such as a token.
        fingerprint: What the engine must have been set up for; compared with its model's own files before the first prompt,
            and again after trouble.
        executor: Where prompts are encoded; None is the event loop's own.
        max_silence_seconds: How long the engine may take to the first token, waiting included, and from one to the next. None
            waits as long as the request's own timeout.
    """

    capabilities = EngineCapabilities()

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        tls_server_name: str | None = None,
        call_metadata: Callable[[], Metadata] | None = None,
        fingerprint: Fingerprint | None = None,
        executor: Executor | None = None,
        max_silence_seconds: float | None = 120.0,
    ) -> None:
        self._address = address
        self._name = f"vLLM at {address}"
        self._credentials = credentials
        self._options: list[tuple[str, int | str]] = list(_OPTIONS)
        if tls_server_name is not None:
            self._options.append(("grpc.ssl_target_name_override", tls_server_name))
        self._call_metadata = call_metadata or (lambda: ())
        self._check = CompatibilityCheck(self._name, None, fingerprint)
        self._executor = executor
        self._max_silence_seconds = max_silence_seconds
        self._channel: grpc.aio.Channel | None = None
        self._server: VllmServer | None = None
        self._asking = asyncio.Lock()
        self._is_closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def share(self, region: SharedRegion, *, is_required: bool = False) -> None:
        """See `EngineClient.share`.

        Raises:
            ValueError: always: vLLM unlinks what it reads, so that it can be given no region of many requests.
        """
        raise ValueError(f"{self._name} reads no shared region")

    async def generate(
        self, request: EngineRequest, *, timeout_seconds: float | None = None, metadata: Metadata = ()
    ) -> AsyncGenerator[EngineStep, None]:
        """See `EngineClient.generate`."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout_seconds is None else loop.time() + timeout_seconds
        release = Release(request.on_released)
        let_go = release.hold()
        tokens_received = 0
        call: grpc.aio.UnaryStreamCall[bytes, pb.GenerateResponse] | None = None
        try:
            async with self._within(deadline, timeout_seconds):
                server = await self._agreed_server(_CONNECT_TIMEOUT_SECONDS)
                wire = await loop.run_in_executor(self._executor, encode_prompt, self._name, request, server)
            let_go()
            del request
            method: grpc.aio.UnaryStreamMultiCallable[bytes, pb.GenerateResponse] = self._opened().unary_stream(
                _SERVICE + "Generate", response_deserializer=pb.GenerateResponse.FromString
            )
            call = method(wire, metadata=(*metadata, *self._call_metadata()))
            del wire
            has_ended = False
            while not has_ended:
                async with self._within(deadline, timeout_seconds):
                    step = await self._next_step(call)
                if step is None:
                    continue
                tokens_received += len(step.token_ids)
                has_ended = step.finish_reason is not None
                yield step
        except EngineError as error:
            error.tokens_received = tokens_received
            if isinstance(error, EngineUnavailable):
                self._server = None  # what answers next may be another process, with another model
            raise
        finally:
            let_go()
            if call is not None:
                call.cancel()

    async def check_ready(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> None:
        """See `EngineClient.check_ready`. An engine that does not fit raises EngineMismatch, which is one too."""
        try:
            health = await self._ask("HealthCheck", pb.HealthCheckRequest(), pb.HealthCheckResponse, timeout_seconds)
        except EngineDeadlineExceeded as error:
            raise EngineUnavailable(f"{self._name} did not say within {timeout_seconds} s that it is ready") from error
        except EngineUnavailable:
            self._server = None
            raise
        except EngineError as error:
            raise EngineUnavailable(str(error)) from error
        if not health.healthy:
            self._server = None
            raise EngineUnavailable(f"{self._name} is not healthy: {health.message or 'it does not say why'}")
        await self._agreed_server(max(timeout_seconds, _CONNECT_TIMEOUT_SECONDS))

    async def describe(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> EngineInfo:
        """See `EngineClient.describe`."""
        return (await self._read_server(max(timeout_seconds, _CONNECT_TIMEOUT_SECONDS))).info

    async def close(self) -> None:
        """See `EngineClient.close`."""
        self._is_closed = True
        if self._channel is not None:
            await self._channel.close()

    # -- the server ----------------------------------------------------------------------------------------------------

    async def _agreed_server(self, timeout_seconds: float) -> VllmServer:
        """What the server says, where it fits; asked again where it may be another one since.

        Raises:
            EngineUnavailable: it does not say; EngineMismatch where it does not fit.
        """
        async with self._asking:
            if self._server is None or self._opened().get_state() is not grpc.ChannelConnectivity.READY:
                try:
                    server = await self._read_server(timeout_seconds)
                except EngineUnavailable:
                    raise
                except EngineError as error:
                    raise EngineUnavailable(f"{self._name} does not say what it is: {error}") from error
                self._check.require(server.info)
                self._server = server
            return self._server

    async def _read_server(self, timeout_seconds: float) -> VllmServer:
        model, server, chunks = await asyncio.gather(
            self._ask("GetModelInfo", pb.GetModelInfoRequest(), pb.GetModelInfoResponse, timeout_seconds),
            self._ask("GetServerInfo", pb.GetServerInfoRequest(), pb.GetServerInfoResponse, timeout_seconds),
            self._tokenizer_chunks(timeout_seconds),
        )
        bundle = await asyncio.get_running_loop().run_in_executor(self._executor, read_bundle, chunks)
        return read_server(self._name, model, server, bundle)

    async def _tokenizer_chunks(self, timeout_seconds: float) -> list[bytes]:
        """The archive of the model's files; none where the server cannot give it, as of a model without files."""
        with grpc_errors(self._name):
            call = self._opened().unary_stream(
                _SERVICE + "GetTokenizer",
                request_serializer=common_pb2.GetTokenizerRequest.SerializeToString,
                response_deserializer=common_pb2.GetTokenizerChunk.FromString,
            )(common_pb2.GetTokenizerRequest(), timeout=timeout_seconds, metadata=tuple(self._call_metadata()))
            try:
                return [chunk.data async for chunk in call]
            except grpc.aio.AioRpcError as error:
                if error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL):
                    return []
                raise

    async def _ask(self, method: str, message: Any, answer: Any, timeout_seconds: float) -> Any:
        with grpc_errors(self._name):
            call: Any = self._opened().unary_unary(
                _SERVICE + method,
                request_serializer=type(message).SerializeToString,
                response_deserializer=answer.FromString,
            )
            return await call(message, timeout=timeout_seconds, metadata=tuple(self._call_metadata()))

    def _opened(self) -> grpc.aio.Channel:
        """The channel, made on first use: it belongs to the event loop that is running then."""
        if self._is_closed:
            raise EngineUnavailable(f"the client of {self._name} is closed")
        if self._channel is None:
            self._channel = (
                grpc.aio.insecure_channel(self._address, options=self._options)
                if self._credentials is None
                else grpc.aio.secure_channel(self._address, self._credentials, options=self._options)
            )
        return self._channel

    # -- the answer ----------------------------------------------------------------------------------------------------

    async def _next_step(self, call: grpc.aio.UnaryStreamCall[bytes, pb.GenerateResponse]) -> EngineStep | None:
        """The next message as a step; None where it has nothing new."""
        try:
            async with asyncio.timeout(self._max_silence_seconds):
                with grpc_errors(self._name):
                    reply = await call.read()
        except TimeoutError as error:
            raise EngineUnavailable(f"{self._name} sent nothing for {self._max_silence_seconds} s") from error
        if not isinstance(reply, pb.GenerateResponse):
            raise EngineFailed(f"{self._name} ended its answer without a finish reason")
        if reply.HasField("chunk"):
            return EngineStep(tuple(reply.chunk.token_ids)) if reply.chunk.token_ids else None
        # The last tokens have come in a chunk; what ends the answer repeats them.
        reason = reply.complete.finish_reason
        if reason not in tuple(FinishReason):
            raise EngineFailed(f"{self._name} ended its answer with {reason or 'no reason'}")
        return EngineStep((), FinishReason(reason))

    @contextlib.asynccontextmanager
    async def _within(self, deadline: float | None, timeout_seconds: float | None) -> AsyncGenerator[None, None]:
        limit = asyncio.timeout_at(deadline)
        try:
            async with limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise EngineDeadlineExceeded(f"{self._name} did not finish within {timeout_seconds} s") from error
