"""A gRPC server that speaks as vLLM's does, with the real messages, and says what a test has it say."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated import vllm_engine_pb2_grpc as pb_grpc

from tests.engine.scripted_server import ScriptedServer

CORE_IS_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."  # vLLM 0.32


@dataclass
class Script:
    """What it says; may be changed between prompts."""

    model_type: str = "qwen3_vl"
    vocabulary_size: int = 151936
    context_tokens: int = 8192
    normalizes: bool = True
    encoder_dtype: str = "float32"
    files: dict[str, Any] = field(default_factory=dict)
    """Of the model, by name, as `GetTokenizer` sends them; none and it has no such method."""
    files_gate: asyncio.Event | None = None
    """The files are sent once it is set."""
    token_ids: tuple[int, ...] = (1, 2, 3)
    error: tuple[grpc.StatusCode, str] | None = None
    """Ends every answer after its tokens."""
    gate: asyncio.Event | None = None
    """No token comes before it is set."""
    is_silent: bool = False
    """Whether nothing comes after the tokens."""
    unhealthy: str = ""
    """Why the health check fails."""
    health_gate: asyncio.Event | None = None
    """Health checks are answered once it is set."""


class ScriptedVllm(ScriptedServer, pb_grpc.VllmEngineServicer):  # type: ignore[misc]
    """The server.

    Attributes:
        prompts: What came, as it was read.
        left_count: Answers that their readers left.
    """

    def __init__(self, script: Script | None = None) -> None:
        super().__init__()
        self.script = script or Script()
        self.prompts: list[pb.GenerateRequest] = []
        self.left_count = self.asked_count = self.running_count = 0

    def make_server(self) -> grpc.aio.Server:
        server = grpc.aio.server(interceptors=[self], options=[("grpc.max_receive_message_length", -1)])
        pb_grpc.add_VllmEngineServicer_to_server(self, server)
        return server

    async def HealthCheck(self, request: pb.HealthCheckRequest, context: Any) -> pb.HealthCheckResponse:
        if self.script.health_gate is not None:
            await self.script.health_gate.wait()
        return pb.HealthCheckResponse(healthy=not self.script.unhealthy, message=self.script.unhealthy)

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Any) -> pb.GetModelInfoResponse:
        self.asked_count += 1
        script = self.script
        return pb.GetModelInfoResponse(
            served_model_name="scripted",
            model_type=script.model_type,
            vocab_size=script.vocabulary_size,
            max_context_length=script.context_tokens,
        )

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        return pb.GetServerInfoResponse(
            mm_device_do_normalize=self.script.normalizes, multimodal_encoder_dtype=self.script.encoder_dtype
        )

    async def GetTokenizer(
        self, request: common_pb2.GetTokenizerRequest, context: Any
    ) -> AsyncIterator[common_pb2.GetTokenizerChunk]:
        if self.script.files_gate is not None:
            await self.script.files_gate.wait()
        if not self.script.files:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no tokenizer here")
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as files:
            for name, content in self.script.files.items():
                files.writestr(name, json.dumps(content))
        yield common_pb2.GetTokenizerChunk(data=archive.getvalue())

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        self.prompts.append(request)
        self.running_count += 1
        try:
            if self.script.gate is not None:
                await self.script.gate.wait()
            for token_id in self.script.token_ids:
                yield pb.GenerateResponse(chunk=pb.GenerateStreamChunk(token_ids=[token_id]))
            if self.script.is_silent:
                await asyncio.Event().wait()
            if self.script.error is not None:
                await context.abort(*self.script.error)
            yield pb.GenerateResponse(complete=pb.GenerateComplete(finish_reason="length"))
        except asyncio.CancelledError:
            self.left_count += 1
            raise
        finally:
            self.running_count -= 1
