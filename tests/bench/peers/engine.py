"""An engine that speaks vLLM's gRPC, takes prompts with their tensors, and computes nothing: what gateways are put before."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import threading
import zipfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_client.shm import DIRECTORY
from engine_client.vllm.links import namespace_id
from tests.bench.peers.workloads import SERVED_NAME
from tests.engine.scripted_vllm import Script, ScriptedVllm

_CONTEXT_TOKENS = 65536
_ANSWER = (1, 2, 3)
_CHUNK_BYTES = 64 << 10
_MODEL_FILES = {"config.json", "generation_config.json", "chat_template.jinja"}  # and all of tokenizer and processors


class StandInEngine(ScriptedVllm):
    """Args:
        checkpoint: Whose tokenizer and settings it sends.
        shares_memory: Whether it says which `/dev/shm` it has, and so gets tensors there.
    Attributes:
        last: The newest prompt; its tensors are in it, however they came.
    """

    def __init__(self, checkpoint: Path, *, shares_memory: bool) -> None:
        super().__init__(Script(context_tokens=_CONTEXT_TOKENS))
        self._checkpoint = checkpoint
        self._shares_memory = shares_memory
        self.last: pb.GenerateRequest | None = None

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Any) -> pb.GetModelInfoResponse:
        info = await super().GetModelInfo(request, context)
        info.MergeFrom(
            pb.GetModelInfoResponse(
                model_path=str(self._checkpoint),
                tokenizer_path=str(self._checkpoint),
                served_model_name=SERVED_NAME,
                is_generation=True,
                supports_vision=True,
                max_req_input_len=_CONTEXT_TOKENS,
                architectures=["Qwen3VLForConditionalGeneration"],
            )
        )
        return info

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Any) -> pb.GetServerInfoResponse:
        info = await super().GetServerInfo(request, context)
        if self._shares_memory:
            info.shm_namespace_id = namespace_id()
        return info

    async def GetTokenizer(
        self, request: common_pb2.GetTokenizerRequest, context: Any
    ) -> AsyncIterator[common_pb2.GetTokenizerChunk]:
        bundle = io.BytesIO()
        with zipfile.ZipFile(bundle, "w") as files:
            for path in sorted(self._checkpoint.iterdir()):
                if path.name in _MODEL_FILES or "tokenizer" in path.name or "processor" in path.name:
                    files.write(path, path.name)
        data, digest = bundle.getvalue(), hashlib.sha256(bundle.getvalue()).hexdigest()
        for start in range(0, len(data), _CHUNK_BYTES):
            piece = data[start : start + _CHUNK_BYTES]
            is_last = start + _CHUNK_BYTES >= len(data)
            yield common_pb2.GetTokenizerChunk(data=piece, sha256=digest if is_last else "")

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        _read_shared(request.mm_inputs)
        self.last = request
        if request.stream:
            yield pb.GenerateResponse(chunk=pb.GenerateStreamChunk(token_ids=_ANSWER))
        yield pb.GenerateResponse(
            complete=pb.GenerateComplete(
                output_ids=_ANSWER,
                finish_reason="length",
                prompt_tokens=len(request.tokenized.input_ids),
                completion_tokens=len(_ANSWER),
            )
        )


def _read_shared(inputs: pb.MultimodalInputs) -> None:
    """As vLLM's servicer: read each tensor that lies in `/dev/shm`, and remove its name."""
    for tensor in (inputs.pixel_values, *inputs.model_specific_tensors.values()):
        if tensor.WhichOneof("payload") == "shm":
            path = DIRECTORY / tensor.shm.name
            with path.open("rb") as file:
                path.unlink()
                tensor.inline = os.pread(file.fileno(), tensor.shm.nbytes, tensor.shm.offset)


@contextmanager
def running_engine(checkpoint: Path, *, shares_memory: bool = False) -> Iterator[StandInEngine]:
    """Serves in a thread of this process, whose CPU is nobody's in this bench."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(step: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(step, loop).result()

    engine = StandInEngine(checkpoint, shares_memory=shares_memory)
    try:
        run(engine.__aenter__())
        try:
            yield engine
        finally:
            run(engine.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
