"""An engine behind Triton's KServe v2 gRPC service.

One `ModelStreamInfer` stream a request, on one shared connection: errors, deadline and cancellation then belong to the
request alone. The stream is asked for true gRPC statuses (`triton_grpc_error`), so that a model's error has a code and
not only a text; what Triton itself turns away comes as text even so (2.51). And it is asked for the empty final
response, because a stream that merely ends may have been cut off.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
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
    refusal,
)
from engine_client.fingerprint import Fingerprint
from engine_client.profiles import Profile
from engine_client.types import EngineInfo, EngineRequest, EngineStep, FinishReason

# Below this, encoding takes less time than handing it to a thread.
INLINE_ENCODE_BYTES = 1 << 20

_CHANNEL_OPTIONS: Sequence[tuple[str, int | str]] = (
    ("grpc.max_send_message_length", kserve.MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", kserve.MAX_MESSAGE_BYTES),
    # Not more often than gRPC servers allow by default (Triton's `grpc-http2-min-recv-ping-interval-without-data`): a
    # server counts faster pings as abuse and drops the connection with every answer on it, during a long prefill too.
    # The timeout also bounds how long sent bytes may stay unacknowledged, which finds a dead host much sooner.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # An engine that restarted is found again within this; gRPC's own limit is two minutes.
    ("grpc.max_reconnect_backoff_ms", 5_000),
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
        executor: Where large requests are encoded; None is the event loop's own.
        max_silence_seconds: How long the engine may take to the first token, waiting included, and from one to the
            next. When the process of a Python model dies in mid-answer, Triton (2.51) leaves the stream open and says
            nothing; this is what ends it. None waits as long as the request's own timeout.
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
        self._is_closed = False

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
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        tokens_received = 0
        last_token_ids: tuple[int, ...] = ()
        finish_reason: FinishReason | None = None
        try:
            if self._needs_agreement():
                await self._require_agreement(_seconds_left(deadline, PROBE_TIMEOUT_SECONDS))
            sampling = request.sampling
            answer = self._infer(await self._encode(request), deadline, metadata)
            del request  # so that its arrays need not stay until the last token
            async with aclosing(answer) as replies:
                async for reply in replies:
                    finish_reason = _finish_reason(reply) or finish_reason
                    tokens_received += len(reply.token_ids)
                    last_token_ids = reply.token_ids or last_token_ids
                    if reply.token_ids or reply.finish_reason:
                        yield EngineStep(reply.token_ids, finish_reason)
            if finish_reason is None and self._profile.outputs.finish_reason is None:
                yield EngineStep((), finish_reason_of(last_token_ids, tokens_received, sampling))
            elif finish_reason is None:
                raise EngineFailed(f"{self._name} ended its answer without a finish reason")
        except EngineError as error:
            if isinstance(error, EngineUnavailable):
                self._is_agreed = False  # what comes back may be another model
            error.tokens_received = tokens_received
            raise

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

    async def _infer(
        self, wire: bytes, deadline: float | None, metadata: Metadata
    ) -> AsyncGenerator[kserve.InferReply, None]:
        """Send one encoded request and yield the replies, the final one included."""
        remaining_seconds = None if deadline is None else _seconds_left(deadline)
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
        method = self._connect().stream_stream(kserve.SERVICE + "ModelStreamInfer")
        call = method(_once(wire), timeout=remaining_seconds, metadata=self._sent_along(metadata))
        del wire  # nor need this
        try:
            with grpc_errors(self._name):
                while (answer := await self._read(call)) is not None:
                    reply = self._decode(answer)
                    yield reply
                    if reply.is_final:
                        return
        except asyncio.CancelledError:
            # gRPC cancels the calls of a channel that closes; only a task that was itself cancelled may see that.
            if self._is_closed and not _is_task_cancelling():
                raise EngineUnavailable(f"the client of {self._name} was closed") from None
            raise
        finally:
            call.cancel()  # nothing to a call that is over; else the engine would generate on for nobody
        raise EngineUnavailable(f"{self._name} broke off before the end of its answer")

    async def _read(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> bytes | None:
        """The next message; None when the stream has ended."""
        try:
            async with asyncio.timeout(self._max_silence_seconds):
                answer = await call.read()
                return answer if isinstance(answer, bytes) else None
        except TimeoutError as error:
            raise EngineUnavailable(f"{self._name} sent nothing for {self._max_silence_seconds} s") from error

    async def _encode(self, request: EngineRequest) -> bytes:
        tensors = {**request.tensors, **kserve.sampling_tensors(request.sampling)}
        try:
            tensors = self._profile.wire_tensors(tensors)
            if sum(array.nbytes for array in tensors.values()) <= INLINE_ENCODE_BYTES:
                return kserve.encode_infer_request(self._model_name, request.request_id, tensors)
            return await asyncio.get_running_loop().run_in_executor(
                self._executor, kserve.encode_infer_request, self._model_name, request.request_id, tensors
            )
        except ValueError as error:
            raise EngineRejected(f"the request cannot be sent to {self._name}: {error}") from error

    def _decode(self, answer: bytes) -> kserve.InferReply:
        try:
            reply = kserve.decode_infer_reply(answer, self._profile.outputs)
        except ValueError as error:
            raise EngineFailed(f"{self._name} answered against the contract: {error}") from error
        if reply.error_message:
            raise refusal(self._name, reply.error_message)
        return reply

    async def _ask(self, method: str, wire: bytes, timeout_seconds: float) -> bytes:
        with grpc_errors(self._name):
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._connect().unary_unary(kserve.SERVICE + method)
            return await call(wire, timeout=timeout_seconds, metadata=tuple(self._call_metadata()))

    def _sent_along(self, metadata: Metadata) -> Metadata:
        return (*metadata, *self._call_metadata(), ("triton_grpc_error", "true"))

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


def _seconds_left(deadline: float | None, at_most: float = math.inf) -> float:
    return at_most if deadline is None else min(at_most, max(0.0, deadline - time.monotonic()))


def _is_task_cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _once(wire: bytes) -> AsyncIterator[bytes]:
    yield wire
