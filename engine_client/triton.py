"""An engine behind Triton's KServe v2 gRPC service.

One `ModelStreamInfer` stream a request, on one shared connection: errors, deadline and cancellation then belong to the
request alone. The stream is asked for the empty final response, because one that merely ends may have been cut off. It is
not asked for true gRPC statuses (`triton_grpc_error`), though errors then come as mere text: a stream that Triton 2.51 ends
with a status while its client has not ended it can crash the server, one in a few hundred wrong prompts.

    messages       a request, cut into messages: whole or in pieces, tensors inside or by reference
    registration   the shared memory that references point into
    stream         one stream, written, read and left
    triton         here: one request from its first message to its last token
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from engine_client import kserve
from engine_client.agreement import Agreement
from engine_client.client import PROBE_TIMEOUT_SECONDS, Metadata
from engine_client.contract import finish_reason_of
from engine_client.errors import (
    EngineDeadlineExceeded,
    EngineError,
    EngineFailed,
    EngineRejected,
    EngineUnavailable,
    grpc_errors,
    is_region_unknown,
)
from engine_client.fingerprint import Fingerprint
from engine_client.kserve import InferReply
from engine_client.messages import RequestMessages
from engine_client.profiles import Profile
from engine_client.registration import CALL_TIMEOUT_SECONDS, RegionRegistration
from engine_client.shm import SharedRegion
from engine_client.stream import PromptStream, Release
from engine_client.types import EngineInfo, EngineRequest, EngineStep, FinishReason, Transport

# How often one request may find that the engine has forgotten the region, before its tensors go as bytes.
MAX_REGION_LOSSES = 2

_CHANNEL_OPTIONS: Sequence[tuple[str, int | str]] = (
    ("grpc.max_send_message_length", kserve.MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", kserve.MAX_MESSAGE_BYTES),
    # Not more often than gRPC servers allow by default (Triton's `grpc-http2-min-recv-ping-interval-without-data`): a
    # server counts faster pings as abuse and drops the connection with every answer on it, during a long prefill too.
    # The timeout also bounds how long sent bytes may stay unacknowledged, which finds a dead host much sooner.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # gRPC would move a prompt whose connection has just ended to the next one by itself: to an engine not compared yet.
    ("grpc.enable_retries", 0),
    # An engine that restarted is found again within these, and until then each request fails at once. gRPC's own are a
    # second, for one that was away for a moment, and two minutes; on a local network a vain attempt costs next to nothing.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)


class TritonEngine:
    """An `EngineClient` for one Triton server; also an async context manager that closes itself.

    Args:
        address: host:port, or any gRPC target.
        model_name: The model to ask; it takes and gives the engine contract's tensors.
        credentials: For TLS; None is plain text. `engine_client.credentials` makes them from files.
        tls_server_name: The name in the engine's certificate, where it is not the host of `address`.
        call_metadata: Asked before every call for what to send along beside the caller's own, such as a token.
        profile: How this engine wants the tensors; checked against its model before the first prompt, and again after
            trouble and with each `check_ready`. None sends the engine contract's, unchecked.
        fingerprint: What the engine must have been set up for; checked with the profile.
        executor: Where large messages are encoded; None is the event loop's own.
        max_silence_seconds: How long the engine may take to the first token, waiting included, and from one to the
            next. When the process of a Python model dies in mid-answer, Triton (2.51) leaves the stream open and says
            nothing; this is what ends it. None waits as long as the request's own timeout.
        shared_region: Memory whose arrays an engine on this host reads where they lie; None sends everything.
        transport: Whether to use it; AUTO does if the engine sees the same memory, and says which in the log.
    """

    def __init__(
        self,
        address: str,
        model_name: str = "vlm_transformers",
        *,
        credentials: grpc.ChannelCredentials | None = None,
        tls_server_name: str | None = None,
        call_metadata: Callable[[], Metadata] | None = None,
        profile: Profile | None = None,
        fingerprint: Fingerprint | None = None,
        executor: Executor | None = None,
        max_silence_seconds: float | None = 120.0,
        shared_region: SharedRegion | None = None,
        transport: Transport = Transport.AUTO,
    ) -> None:
        self._model_name = model_name
        self._name = f"model {model_name} at {address}"
        self._address = address
        self._credentials = credentials
        self._tls_server_name = tls_server_name
        self._call_metadata = call_metadata or (lambda: ())
        self._profile = profile or Profile()
        self._agreement = Agreement(self._name, profile, fingerprint)
        self._is_agreed = False
        self._executor = executor
        self._max_silence_seconds = max_silence_seconds
        self._channel: grpc.aio.Channel | None = None
        self._is_closing = False
        self._is_closed = False
        self._takes_pieces: bool | None = None
        self._streams: set[PromptStream] = set()
        self._farewells: set[asyncio.Task[None]] = set()
        self._registration = self._plan_registration(shared_region, Transport(transport))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def generate(
        self, request: EngineRequest, *, timeout_seconds: float | None = None, metadata: Metadata = ()
    ) -> AsyncGenerator[EngineStep, None]:
        """See `EngineClient.generate`."""
        deadline = None if timeout_seconds is None else asyncio.get_running_loop().time() + timeout_seconds
        release = Release(request.on_released)
        let_go = release.hold()
        tokens_received = 0
        last_token_ids: tuple[int, ...] = ()
        finish_reason: FinishReason | None = None
        stream: PromptStream | None = None
        try:
            if self._needs_agreement():
                await self._require_agreement(_seconds_left(deadline, PROBE_TIMEOUT_SECONDS))
            sampling = request.sampling
            async with self._within(deadline, timeout_seconds):
                stream, reply = await self._start(request, metadata, release)
            let_go()  # the stream holds the arrays as long as it needs them
            del request  # so that its arrays need not stay until the last token
            while reply is not None:
                finish_reason = _finish_reason(reply) or finish_reason
                tokens_received += len(reply.token_ids)
                last_token_ids = reply.token_ids or last_token_ids
                yield EngineStep(reply.token_ids, finish_reason)
                async with self._within(deadline, timeout_seconds):
                    reply = await stream.next_reply()
            if finish_reason is None and self._profile.outputs.finish_reason is None:
                yield EngineStep((), finish_reason_of(last_token_ids, tokens_received, sampling))
            elif finish_reason is None:
                raise EngineFailed(f"{self._name} ended its answer without a finish reason")
        except EngineError as error:
            error.tokens_received = tokens_received
            if isinstance(error, EngineUnavailable):
                self._forget_engine()
            raise
        finally:
            let_go()
            if stream is not None:
                self._leave(stream)

    async def check_ready(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> None:
        """See `EngineClient.check_ready`. An engine that does not fit raises EngineMismatch, which is one too.

        Triton answers this for the server's side of the model: the process of a Python model that crashed is not
        noticed (2.51), only the requests that then fail.
        """
        try:
            server, model = await asyncio.gather(
                self._ask("ServerReady", kserve.encode_server_ready(), timeout_seconds),
                self._ask("ModelReady", kserve.encode_model_ready(self._model_name), timeout_seconds),
            )
        except EngineDeadlineExceeded as error:
            raise EngineUnavailable(f"{self._name} did not say within {timeout_seconds} s that it is ready") from error
        except EngineUnavailable:
            raise
        except EngineError as error:
            raise EngineUnavailable(str(error)) from error
        if not kserve.decode_model_ready(model):
            raise EngineUnavailable(f"{self._name} is not loaded")
        if not kserve.decode_server_ready(server):
            raise EngineUnavailable(f"{self._name} is loaded, but its server is not ready")
        if not self._agreement.is_trivial:
            await self._require_agreement(timeout_seconds)

    async def describe(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> EngineInfo:
        """See `EngineClient.describe`."""
        server, model, config = await asyncio.gather(
            self._ask("ServerMetadata", kserve.encode_server_metadata(), timeout_seconds),
            self._ask("ModelMetadata", kserve.encode_model_metadata(self._model_name), timeout_seconds),
            self._ask("ModelConfig", kserve.encode_model_config(self._model_name), timeout_seconds),
        )
        return kserve.with_model_config(kserve.decode_engine_info(server, model), config)

    async def close(self) -> None:
        """See `EngineClient.close`."""
        if self._is_closing:
            return
        self._is_closing = True
        for stream in tuple(self._streams):
            stream.fail(EngineUnavailable(f"the client of {self._name} was closed"))
            self._leave(stream)
        if self._farewells:
            await asyncio.wait(self._farewells)  # each ends by itself, within FAREWELL_SECONDS
        if self._registration is not None:
            await self._registration.close()
        self._is_closed = True
        if self._channel is not None:
            await self._channel.close()

    def _needs_agreement(self) -> bool:
        """Whether to ask the engine what it is: not asked yet, or it may be another since, after trouble or a restart."""
        if self._agreement.is_trivial:
            return False
        return not self._is_agreed or self._connect().get_state() is not grpc.ChannelConnectivity.READY

    async def _require_agreement(self, timeout_seconds: float) -> None:
        """Ask the engine what it is, and go on only if it fits; raises EngineUnavailable otherwise."""
        try:
            self._agreement.require(await self.describe(timeout_seconds))
        except EngineUnavailable:
            raise
        except EngineError as error:
            raise EngineUnavailable(f"{self._name} does not say what it is: {error}") from error
        self._is_agreed = True

    def _plan_registration(self, region: SharedRegion | None, transport: Transport) -> RegionRegistration | None:
        is_required = transport is Transport.SHARED_MEMORY
        if is_required and region is None:
            raise ValueError(f"transport is {transport} without a shared_region; give one, or choose {Transport.AUTO}")
        if region is None or transport is Transport.GRPC:
            return None
        return RegionRegistration(region, self._ask, self._name, is_required=is_required)

    async def _start(
        self, request: EngineRequest, metadata: Metadata, release: Release
    ) -> tuple[PromptStream, InferReply | None]:
        """Send the prompt and wait for the first reply.

        An engine that has forgotten the region has generated nothing, so the prompt is sent to it once more.
        """
        takes_pieces = await self._model_takes_pieces()
        for loss_count in range(1, MAX_REGION_LOSSES + 2):
            known = None if self._registration is None else await self._registration.acquire()
            messages = RequestMessages(
                self._model_name,
                request,
                profile=self._profile,
                takes_pieces=takes_pieces,
                known=known,
                executor=self._executor,
            )
            stream = self._open(messages, metadata, release)
            try:
                return stream, await stream.next_reply()
            except EngineRejected as error:
                self._leave(stream)
                if self._registration is None or known is None or not is_region_unknown(error):
                    raise
                self._registration.lost(known)
                if loss_count == MAX_REGION_LOSSES:
                    self._registration.give_up(f"it forgets it: {error}")
            except BaseException:
                self._leave(stream)
                raise
        raise AssertionError("the last attempt refers to no region, and so none can be unknown")

    def _open(self, messages: RequestMessages, metadata: Metadata, release: Release) -> PromptStream:
        if self._is_closing:
            raise EngineUnavailable(f"the client of {self._name} is closed")
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
        method = self._connect().stream_stream(kserve.SERVICE + "ModelStreamInfer")
        call = method(metadata=(*metadata, *self._call_metadata()))
        stream = PromptStream(
            call,
            self._name,
            messages,
            outputs=self._profile.outputs,
            release=release,
            max_silence_seconds=self._max_silence_seconds,
        )
        self._streams.add(stream)
        return stream

    def _leave(self, stream: PromptStream) -> None:
        """Let the stream end by itself, in the background; leaving twice is fine."""
        if stream in self._streams:
            self._streams.discard(stream)
            farewell = asyncio.create_task(stream.leave())
            self._farewells.add(farewell)
            farewell.add_done_callback(self._farewells.discard)

    async def _model_takes_pieces(self) -> bool:
        """Whether the model can be sent a prompt in several messages; asked once as long as the engine is there."""
        if self._takes_pieces is None:
            question = kserve.encode_model_metadata(self._model_name)
            try:
                wire = await self._ask("ModelMetadata", question, CALL_TIMEOUT_SECONDS)
            except EngineDeadlineExceeded as error:  # this call's, not the request's
                raise EngineUnavailable(f"{self._name} does not say what it takes: {error}") from error
            self._takes_pieces = kserve.FIRST_ROW_TENSOR in kserve.decode_input_names(wire)
        return self._takes_pieces

    def _forget_engine(self) -> None:
        """What answers next may be another process, with another model."""
        self._is_agreed = False
        self._takes_pieces = None
        if self._registration is not None:
            self._registration.forget()

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

    async def _ask(self, method: str, wire: bytes, timeout_seconds: float) -> bytes:
        with grpc_errors(self._name):
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._connect().unary_unary(kserve.SERVICE + method)
            return await call(wire, timeout=timeout_seconds, metadata=tuple(self._call_metadata()))

    def _connect(self) -> grpc.aio.Channel:
        """The channel, made on first use: it belongs to the event loop that is running then."""
        if self._is_closed:
            raise EngineUnavailable(f"the client of {self._name} is closed")
        if self._channel is None:
            if self._credentials is None:
                self._channel = grpc.aio.insecure_channel(self._address, options=_CHANNEL_OPTIONS)
            else:
                name = self._tls_server_name
                options = (
                    _CHANNEL_OPTIONS if name is None else (*_CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", name))
                )
                self._channel = grpc.aio.secure_channel(self._address, self._credentials, options=options)
        return self._channel


def _finish_reason(reply: kserve.InferReply) -> FinishReason | None:
    if reply.finish_reason is None:
        return None
    try:
        return FinishReason(reply.finish_reason)
    except ValueError as error:
        known = ", ".join(FinishReason)
        raise EngineFailed(f"finish_reason is {reply.finish_reason!r}; the contract has {known}") from error


def _seconds_left(deadline: float | None, at_most: float) -> float:
    return at_most if deadline is None else min(at_most, max(0.0, deadline - asyncio.get_running_loop().time()))
