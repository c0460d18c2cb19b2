"""One request to Triton, from its first message to its last token.

One `ModelStreamInfer` stream a request, on one shared connection: errors, deadline and cancellation then belong to the
request alone. The stream is asked for the empty final response, because one that merely ends may have been cut off. It is
not asked for true gRPC statuses (`triton_grpc_error`), though errors then come as mere text: a stream that Triton 2.51 ends
with a status while its client has not ended it can crash the server, one in a few hundred wrong prompts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from types import TracebackType
from typing import Self

import grpc

from engine_client.capabilities import EngineCapabilities
from engine_client.client import PROBE_TIMEOUT_SECONDS, Metadata
from engine_client.compatibility import CompatibilityCheck
from engine_client.connection import Connection
from engine_client.contract.tensors import ITEM_HASH, USES_HELD_ITEMS, Array
from engine_client.deadline import Deadline
from engine_client.errors import (
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineRejected,
    EngineUnavailable,
)
from engine_client.fingerprint import Fingerprint
from engine_client.release import Release
from engine_client.shm import SharedRegion
from engine_client.triton import kserve
from engine_client.triton.held_items import HeldItems, hashes_of
from engine_client.triton.kserve import InferReply
from engine_client.triton.messages import RequestMessages
from engine_client.triton.outputs import finish_reason_of, read_finish_reason
from engine_client.triton.registration import RegionRegistration
from engine_client.triton.served_model import ServedModel
from engine_client.triton.status import grpc_errors, is_not_held, is_region_unknown
from engine_client.triton.stream import PromptStream
from engine_client.triton.tensor_mapping import TensorMapping
from engine_client.types import EngineInfo, EngineRequest, EngineStep, Transport

# How often one request may find that the engine has forgotten the region, before its tensors go as bytes.
MAX_REGION_LOSSES = 2


class TritonEngine:
    """An `EngineClient` for one Triton server; also an async context manager that closes itself.

    Args:
        address: host:port, or any gRPC target.
        model_name: The model to ask; it takes and gives the engine contract's tensors.
        credentials: For TLS; None is plain text. `engine_client.credentials` makes them from files.
        tls_server_name: The name in the engine's certificate, where it is not the host of `address`.
        call_metadata: Asked before every call for what to send along beside the caller's own, such as a token.
        mapping: How this engine wants the tensors; checked against its model before the first prompt, and again after
            trouble and with each `check_ready`. None sends the engine contract's, unchecked.
        fingerprint: What the engine must have been set up for; checked with the mapping.
        executor: Where large messages are encoded; None is the event loop's own.
        max_silence_seconds: How long the engine may take to the first token, waiting included, and from one to the
            next; and to read one message of a prompt. When the process of a Python model dies in mid-answer, Triton (2.51)
            leaves the stream open and says nothing; this is what ends it. None waits as long as the request's own timeout.
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
        mapping: TensorMapping | None = None,
        fingerprint: Fingerprint | None = None,
        executor: Executor | None = None,
        max_silence_seconds: float | None = 120.0,
        shared_region: SharedRegion | None = None,
        transport: Transport = Transport.AUTO,
    ) -> None:
        self._model_name = model_name
        self._name = f"model {model_name} at {address}"
        self._connection = Connection(
            address,
            kserve.SERVICE,
            self._name,
            grpc_errors,
            credentials=credentials,
            tls_server_name=tls_server_name,
            call_metadata=call_metadata,
        )
        self._mapping = mapping or TensorMapping()
        self._model = ServedModel(
            self._connection,
            model_name,
            self._name,
            CompatibilityCheck(self._name, None if mapping is None else mapping.mismatches, fingerprint),
        )
        self._executor = executor
        self._max_silence_seconds = max_silence_seconds
        self._held = HeldItems()
        self._is_closing = False
        self._streams: set[PromptStream] = set()
        self._shutdowns: set[asyncio.Task[None]] = set()
        self._transport = Transport(transport)
        self._registration: RegionRegistration | None = None
        if shared_region is not None:
            self.share(shared_region)
        elif self._transport is Transport.SHARED_MEMORY:
            raise ValueError(f"transport is {transport} without a shared_region; give one, or choose {Transport.AUTO}")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def capabilities(self) -> EngineCapabilities:
        """See `EngineClient.capabilities`. Whether its model takes pieces is asked of each engine, and handled here."""
        return EngineCapabilities(
            pixel_types=(self._mapping.pixel_type,),
            takes_pieces=True,
            reads_shared_memory=self._transport is not Transport.GRPC,
        )

    def share(self, region: SharedRegion, *, is_required: bool = False) -> None:
        """See `EngineClient.share`."""
        if self._transport is Transport.GRPC:
            return
        is_required = is_required or self._transport is Transport.SHARED_MEMORY
        self._registration = RegionRegistration(region, self._connection.ask, self._name, is_required=is_required)

    def holds(self, item_hashes: Array) -> bool:
        """See `HoldsItems.holds`."""
        return self._held.has(hashes_of(item_hashes))

    async def generate(
        self, request: EngineRequest, *, timeout_seconds: float | None = None, metadata: Metadata = ()
    ) -> AsyncGenerator[EngineStep, None]:
        """See `EngineClient.generate`."""
        deadline = Deadline(self._name, timeout_seconds)
        release = Release(request.on_released)
        let_go = release.hold()
        tokens_received = 0
        last_token_ids: tuple[int, ...] = ()
        stream: PromptStream | None = None
        try:
            sampling = request.sampling
            open_answer_count = sampling.answer_count
            async with deadline.enforced():
                compared = await self._model.require_compatible()
                stream, reply = await self._start(request, metadata, release)
                if compared is not None:
                    await compared.require()
            let_go()  # the stream holds the arrays as long as it needs them
            if reply is not None and reply.held_items and self._mapping.wire_name(USES_HELD_ITEMS) == USES_HELD_ITEMS:
                self._held.learn(hashes_of(request.tensors.get(ITEM_HASH)), reply.held_items)
            del request  # so that its arrays need not stay until the last token
            while reply is not None:
                finish_reason = read_finish_reason(reply.finish_reason)
                open_answer_count -= finish_reason is not None
                tokens_received += len(reply.token_ids)
                last_token_ids = reply.token_ids or last_token_ids
                yield EngineStep(reply.token_ids, finish_reason, reply.answer_index, reply.logprobs)
                async with deadline.enforced():
                    reply = await stream.next_reply()
            if self._mapping.outputs.finish_reason is None:
                yield EngineStep((), finish_reason_of(last_token_ids, tokens_received, sampling))
            elif open_answer_count > 0:
                raise EngineFailed(f"{self._name} ended its answer without a finish reason")
        except EngineError as error:
            error.tokens_received = tokens_received
            if isinstance(error, EngineUnavailable):
                self._forget_engine()
                if not isinstance(error, EngineOverloaded):
                    self._held.clear()
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
        await self._model.check_ready(timeout_seconds)

    async def describe(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> EngineInfo:
        """See `EngineClient.describe`."""
        return await self._model.describe(timeout_seconds)

    async def sampling_features(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> frozenset[str]:
        """See `EngineClient.sampling_features`."""
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._model.sampling_features(self._mapping)
        except EngineUnavailable:
            raise
        except TimeoutError as error:
            raise EngineUnavailable(f"{self._name} did not say within {timeout_seconds} s what it takes") from error
        except EngineError as error:
            raise EngineUnavailable(f"{self._name} does not say what it takes: {error}") from error

    async def choose_transport(self) -> Transport:
        """See `ChoosesTransport.choose_transport`."""
        known = None if self._registration is None else await self._registration.acquire()
        return Transport.GRPC if known is None else Transport.SHARED_MEMORY

    async def close(self) -> None:
        """See `EngineClient.close`."""
        if self._is_closing:
            return
        self._is_closing = True
        for stream in tuple(self._streams):
            stream.fail(EngineUnavailable(f"the client of {self._name} was closed"))
            self._leave(stream)
        if self._shutdowns:
            await asyncio.wait(self._shutdowns)  # each ends by itself, within SHUTDOWN_SECONDS
        if self._registration is not None:
            await self._registration.close()
        await self._connection.close()
        await self._model.close()

    async def _start(
        self, request: EngineRequest, metadata: Metadata, release: Release
    ) -> tuple[PromptStream, InferReply | None]:
        """Send the prompt and wait for the first reply; without pixels only if the engine holds its items."""
        if request.pixels_on_demand is None:
            return await self._send(request, metadata, release)
        hashes = hashes_of(request.tensors[ITEM_HASH])
        if self._held.has(hashes):
            try:
                return await self._send(request, metadata, release)
            except EngineRejected as error:
                if not is_not_held(error):
                    raise
            self._held.forget(hashes)
        return await self._send(await request.with_pixels(), metadata, release)

    async def _send(
        self, request: EngineRequest, metadata: Metadata, release: Release
    ) -> tuple[PromptStream, InferReply | None]:
        """Send the prompt as it is and wait for the first reply.

        An engine that has forgotten the region has generated nothing, so the prompt is sent to it once more.
        """
        takes_pieces = await self._model.takes_pieces()
        if wanted := request.sampling.features:
            lacking = wanted - await self._model.sampling_features(self._mapping)
            if lacking:
                raise EngineRejected(f"{self._name} has no {', '.join(sorted(lacking))}")
        for loss_count in range(1, MAX_REGION_LOSSES + 2):
            known = None if self._registration is None else await self._registration.acquire()
            messages = RequestMessages(
                self._model_name,
                request,
                mapping=self._mapping,
                takes_pieces=takes_pieces,
                known=known,
                executor=self._executor,
                release=release,
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
        stream = PromptStream(
            self._connection.open_stream("ModelStreamInfer", metadata),
            self._name,
            messages,
            outputs=self._mapping.outputs,
            release=release,
            max_silence_seconds=self._max_silence_seconds,
        )
        self._streams.add(stream)
        return stream

    def _leave(self, stream: PromptStream) -> None:
        """Let the stream end by itself, in the background; leaving twice is fine."""
        if stream in self._streams:
            self._streams.discard(stream)
            shutdown = asyncio.create_task(stream.leave())
            self._shutdowns.add(shutdown)
            shutdown.add_done_callback(self._shutdowns.discard)

    def _forget_engine(self) -> None:
        """What answers next may be another process, with another model."""
        self._model.forget()
        if self._registration is not None:
            self._registration.forget()
