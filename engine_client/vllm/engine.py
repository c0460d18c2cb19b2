"""An engine behind vLLM's own gRPC service.

A prompt is one message, so its arrays must be complete. They are free when the message is made, and pixels that the server reads
in shared memory when it has read them. Leaving an answer early cancels its call, and the server then aborts the request in its
core.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_client.capabilities import EngineCapabilities
from engine_client.client import PROBE_TIMEOUT_SECONDS, Metadata
from engine_client.compatibility import CompatibilityCheck
from engine_client.connection import Connection, ConnectionWatch
from engine_client.contract.sampling import SamplingParameters
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
from engine_client.types import EngineInfo, EngineRequest, EngineStep, FinishReason, Transport
from engine_client.vllm.links import PromptLinks, RegionLinks
from engine_client.vllm.prompt import encode_prompt
from engine_client.vllm.sampling import FEATURES, read_logprobs
from engine_client.vllm.served_model import ServedModel
from engine_client.vllm.server import VllmServer
from engine_client.vllm.status import grpc_errors

_SERVICE = "/vllm.grpc.engine.VllmEngine/"
_Call = grpc.aio.UnaryStreamCall[bytes, bytes]

# Which transformers a server has, and so what becomes of the markers around a video, it does not tell.
_UNPUBLISHED_PARTS = frozenset({"video_markers"})


class VllmEngine:
    """An `EngineClient` for one vLLM server; also an async context manager that closes itself.

    Args:
        address: host:port, or any gRPC target.
        credentials: For TLS; None is plain text.
        tls_server_name: The name in the engine's certificate, where it is not the host of `address`.
        call_metadata: Asked before every call for what to send along beside the caller's own, such as a token.
        fingerprint: What the engine must have been set up for; compared with its model's own files before the first prompt,
            and again after trouble.
        model_files: As of `EngineOptions`: prompts are checked by these where the server sends none, as one does that was started
            with a hub id.
        executor: Where prompts are encoded; None is the event loop's own.
        max_silence_seconds: How long the engine may take to the first token, waiting included, and from one to the next. None
            waits as long as the request's own timeout.
    """

    capabilities = EngineCapabilities(reads_shared_memory=True, tells_items_apart=True)

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        tls_server_name: str | None = None,
        call_metadata: Callable[[], Metadata] | None = None,
        fingerprint: Fingerprint | None = None,
        model_files: Mapping[str, Any] | None = None,
        executor: Executor | None = None,
        max_silence_seconds: float | None = 120.0,
    ) -> None:
        self._name = f"vLLM at {address}"
        self._connection = Connection(
            address,
            _SERVICE,
            self._name,
            grpc_errors,
            credentials=credentials,
            tls_server_name=tls_server_name,
            call_metadata=call_metadata,
        )
        if fingerprint is not None:
            fingerprint = replace(fingerprint, unpublished_parts=_UNPUBLISHED_PARTS)
        compatibility = CompatibilityCheck(self._name, None, fingerprint)
        self._model = ServedModel(self._connection, self._name, compatibility, model_files or {}, executor)
        self._executor = executor
        self._max_silence_seconds = max_silence_seconds
        self._links: RegionLinks | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def share(self, region: SharedRegion, *, is_required: bool = False) -> None:
        """See `EngineClient.share`. A server that takes normalized floats cannot read uint8 pixels in it."""
        self._links = RegionLinks(region, self._name, is_required=is_required)

    async def generate(
        self, request: EngineRequest, *, timeout_seconds: float | None = None, metadata: Metadata = ()
    ) -> AsyncGenerator[EngineStep, None]:
        """See `EngineClient.generate`."""
        deadline = Deadline(self._name, timeout_seconds)
        tokens_received = 0
        call: _Call | None = None
        try:
            async with deadline.enforced():
                call, step, connection = await self._start(request, metadata, Release(request.on_released))
                await connection.require()
            sampling = request.sampling
            del request
            open_answer_count = sampling.answer_count
            while True:
                if step is not None:
                    tokens_received += len(step.token_ids)
                    open_answer_count -= step.finish_reason is not None
                    yield step
                if not open_answer_count:
                    return
                async with deadline.enforced():
                    step = await self._next_step(call, sampling)
        except EngineError as error:
            error.tokens_received = tokens_received
            if isinstance(error, EngineUnavailable) and not isinstance(error, EngineOverloaded):
                self._model.forget()
            raise
        finally:
            if call is not None:
                call.cancel()

    async def check_ready(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> None:
        """See `EngineClient.check_ready`. An engine that does not fit raises EngineMismatch, which is one too."""
        await self._model.check_ready(timeout_seconds)

    async def describe(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> EngineInfo:
        """See `EngineClient.describe`."""
        return (await self._model.describe(timeout_seconds)).info

    async def sampling_features(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> frozenset[str]:
        """See `EngineClient.sampling_features`; nothing is asked."""
        return FEATURES

    async def choose_transport(self) -> Transport:
        """See `ChoosesTransport.choose_transport`. Whether the server's user may read the file shows with the first prompt."""
        server, _ = await self._model.require_server()
        can_refer = self._links is not None and self._links.references(server) is not None
        return Transport.SHARED_MEMORY if can_refer else Transport.GRPC

    async def close(self) -> None:
        """See `EngineClient.close`."""
        await self._connection.close()
        await self._model.close()
        if self._links is not None:
            self._links.close()

    # -- the prompt ----------------------------------------------------------------------------------------------------

    async def _start(
        self, request: EngineRequest, metadata: Metadata, release: Release
    ) -> tuple[_Call, EngineStep | None, ConnectionWatch]:
        """Send the prompt and wait for the first reply; returns it as `_next_step` does, and by which connection it must come.

        A server that could not read what a link names has done nothing yet, so the prompt is sent to it once more, by bytes.
        """
        let_go = release.hold()
        try:
            server, connection = await self._model.require_server()
            while True:
                wire, links = await self._encode(request, server, release)
                if connection.has_ended:
                    if links is not None:
                        links.finish()
                    server, connection = await self._model.require_server()
                    continue
                let_go()  # where there are links, they hold the arrays from here on
                call: _Call | None = None
                try:
                    call = self._connection.ask_for_stream("Generate", wire, metadata)
                    del wire
                    step = await self._next_step(call, request.sampling)
                except BaseException as error:
                    if call is not None:
                        call.cancel()
                    let_go = release.hold()
                    if links is None or not links.failed(error):
                        raise
                    continue
                if links is not None:
                    links.replied()
                return call, step, connection
        finally:
            let_go()

    async def _encode(
        self, request: EngineRequest, server: VllmServer, release: Release
    ) -> tuple[bytes, PromptLinks | None]:
        """The message, and the links that it names."""
        references = None if self._links is None else self._links.references(server)
        encode = partial(encode_prompt, self._name, request, server, references)
        wire = await release.hold_while(encode, self._executor)
        if self._links is None or references is None or not references.names:
            return wire, None
        try:
            return wire, self._links.open(references.names, release)
        except OSError as error:
            self._links.refuse(f"its file cannot be linked: {error.strerror}")
            return await self._encode(request, server, release)

    # -- the answer ----------------------------------------------------------------------------------------------------

    async def _next_step(self, call: _Call, sampling: SamplingParameters) -> EngineStep | None:
        """The next message as a step; None where it has nothing new."""
        try:
            async with asyncio.timeout(self._max_silence_seconds):
                with self._connection.errors():
                    wire = await call.read()
                    reply = pb.GenerateResponse.FromString(wire) if isinstance(wire, bytes) else None
        except TimeoutError as error:
            raise EngineUnavailable(f"{self._name} sent nothing for {self._max_silence_seconds} s") from error
        if reply is None:
            raise EngineFailed(f"{self._name} ended its answer without a finish reason")
        self._model.note_reply()
        if reply.HasField("chunk"):
            chunk = reply.chunk
            if not chunk.token_ids:
                return None
            logprobs = read_logprobs(self._name, chunk.token_ids, chunk.output_logprobs, sampling.logprobs)
            return EngineStep(tuple(chunk.token_ids), None, chunk.index, logprobs)
        # The last tokens have come in a chunk; what ends the answer repeats them.
        reason = reply.complete.finish_reason
        if reason == "error" and sampling.constraint:  # vLLM 0.32, Scheduler.grammar_compile_error_reqs
            raise EngineRejected(f"{self._name} cannot enforce the {sampling.constraint} of the request")
        if reason not in tuple(FinishReason):
            raise EngineFailed(f"{self._name} ended its answer with {reason or 'no reason'}")
        return EngineStep((), FinishReason(reason), reply.complete.index)
