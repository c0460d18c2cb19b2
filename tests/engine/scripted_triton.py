"""A gRPC server that speaks as Triton does, with the real messages, and says and reads what a test has it say and read."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2 as pb

from engine_client.contract.tensors import FINISH_REASON, FIRST_ROW, STOP, TOKEN_IDS
from tests.engine.scripted_server import ScriptedServer


@dataclass
class TritonScript:
    """What it does; may be changed between prompts."""

    takes_pieces: bool = False
    parameters: dict[str, str] = field(default_factory=dict)
    """Of the model."""
    gates: dict[str, asyncio.Event] = field(default_factory=dict)
    """A method by this name answers once its gate is set."""
    is_reading: bool = True
    """Whether it reads prompts; else it takes their streams, and nothing comes of it."""
    is_silent: bool = False
    """Whether nothing comes after the prompt."""
    token_ids: tuple[int, ...] = (1, 2, 3)


class ScriptedTriton(ScriptedServer, grpc.GenericRpcHandler):
    """The server.

    Attributes:
        asked: How often each method was called.
    """

    def __init__(self, script: TritonScript | None = None) -> None:
        super().__init__()
        self.script = script or TritonScript()
        self.asked = Counter[str]()

    def make_server(self) -> grpc.aio.Server:
        # Without the probe windows stay small, so that a few MB fill them.
        return grpc.aio.server(handlers=[self], interceptors=[self], options=[("grpc.http2.bdp_probe", 0)])

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """See `grpc.GenericRpcHandler.service`."""
        method = call.method.rpartition("/")[2]
        if method == "ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(self._generate)
        says = getattr(self, f"_{method}", None)
        return None if says is None else grpc.unary_unary_rpc_method_handler(self._answering(method, says))

    def _answering(self, method: str, says: Callable[[], Any]) -> Callable[[bytes, Any], Awaitable[bytes]]:
        async def answer(question: bytes, context: Any) -> bytes:
            self.asked[method] += 1
            await self._pass_gate(method)
            wire: bytes = says().SerializeToString()
            return wire

        return answer

    def _ServerReady(self) -> Any:
        return pb.ServerReadyResponse(ready=True)

    def _ModelReady(self) -> Any:
        return pb.ModelReadyResponse(ready=True)

    def _ServerMetadata(self) -> Any:
        return pb.ServerMetadataResponse(name="triton", version="2")

    def _ModelMetadata(self) -> Any:
        model = pb.ModelMetadataResponse(name="scripted")
        if self.script.takes_pieces:
            model.inputs.add(name=FIRST_ROW, datatype="INT64", shape=[1])
        return model

    def _ModelConfig(self) -> Any:
        answer = pb.ModelConfigResponse()
        for name, value in self.script.parameters.items():
            answer.config.parameters[name].string_value = value
        return answer

    async def _generate(self, messages: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        self.asked["ModelStreamInfer"] += 1
        await self._pass_gate("ModelStreamInfer")
        if not self.script.is_reading:
            await asyncio.Event().wait()
        question = pb.ModelInferRequest.FromString(await anext(messages))
        if self.script.is_silent:
            await asyncio.Event().wait()
        reply = pb.ModelStreamInferResponse()
        reply.infer_response.id = question.id
        reply.infer_response.parameters["triton_final_response"].bool_param = True
        for name, datatype, content in (
            (TOKEN_IDS, "INT32", np.array(self.script.token_ids, "<i4").tobytes()),
            (FINISH_REASON, "BYTES", len(STOP).to_bytes(4, "little") + STOP.encode()),
        ):
            reply.infer_response.outputs.add(name=name, datatype=datatype, shape=[1])
            reply.infer_response.raw_output_contents.append(content)
        yield reply.SerializeToString()
        async for _ in messages:
            pass

    async def _pass_gate(self, method: str) -> None:
        if method in self.script.gates:
            await self.script.gates[method].wait()
