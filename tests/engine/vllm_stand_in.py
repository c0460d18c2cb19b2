"""vLLM's gRPC service without vLLM: it reads pixels as smg-grpc-servicer 0.14.1 does, and answers with their checksums.

Source: vllm/servicer.py (`Generate`, `_off_the_event_loop`), mm_shm.py (`tensor_payload_bytes_from_shm`), vllm/errors.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import threading
import zlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated import vllm_engine_pb2_grpc as pb_grpc

from engine_client.connection import MAX_MESSAGE_BYTES
from engine_client.vllm.links import namespace_id
from tests.waiting import PATIENCE_SECONDS

_SIZE_LIMITS = (("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),)


@dataclass
class StandIn(pb_grpc.VllmEngineServicer):  # type: ignore[misc]
    """One server; its attributes may be changed between prompts."""

    namespace: str = field(default_factory=namespace_id)
    normalizes: bool = True
    removes_links: bool = True
    refusal: tuple[grpc.StatusCode, str] | None = None
    """Instead of reading."""
    open_error: OSError | None = None
    """Raised in place of opening a link, with the path in its text; a test runs as the user who owns the link."""
    remove_error: OSError | None = None
    """The same in place of removing a link."""
    may_read: threading.Event = field(default_factory=threading.Event)
    """Awaited between opening and reading; set at first."""
    may_reply: asyncio.Event = field(default_factory=asyncio.Event)
    """Awaited after reading; set at first."""
    opened: threading.Event = field(default_factory=threading.Event)
    """A link was opened."""
    read: list[bytes] = field(default_factory=list)
    """The pixels of each batch, in order."""
    by_link: list[bool] = field(default_factory=list)
    """How they came."""
    address: str = ""

    def __post_init__(self) -> None:
        self._threads = ThreadPoolExecutor(8)  # not the loop's own, in which callers wait
        self.may_read.set()
        self.may_reply.set()

    async def HealthCheck(self, request: Any, context: Any) -> pb.HealthCheckResponse:
        return pb.HealthCheckResponse(healthy=True)

    async def GetModelInfo(self, request: Any, context: Any) -> pb.GetModelInfoResponse:
        return pb.GetModelInfoResponse(
            model_type="qwen3_vl", served_model_name="stand-in", vocab_size=151936, max_context_length=100_000
        )

    async def GetServerInfo(self, request: Any, context: Any) -> pb.GetServerInfoResponse:
        return pb.GetServerInfoResponse(
            multimodal_encoder_dtype="bfloat16",
            mm_device_do_normalize=self.normalizes,
            shm_namespace_id=self.namespace,
        )

    async def GetTokenizer(self, request: Any, context: Any) -> AsyncIterator[common_pb2.GetTokenizerChunk]:
        await context.abort(grpc.StatusCode.NOT_FOUND, "its model has no files")
        yield

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        if self.refusal is not None:
            await context.abort(*self.refusal)
        try:
            # As there: a thread goes on reading when its caller has gone.
            reading = asyncio.get_running_loop().run_in_executor(self._threads, self._read_all, request)
            checksums = await asyncio.shield(reading)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except OSError as error:
            await context.abort(grpc.StatusCode.INTERNAL, str(error))
        await self.may_reply.wait()
        yield pb.GenerateResponse(chunk=pb.GenerateStreamChunk(token_ids=checksums))
        yield pb.GenerateResponse(complete=pb.GenerateComplete(finish_reason="stop"))

    def _read_all(self, request: pb.GenerateRequest) -> list[int]:
        batches = [request.mm_inputs] if request.HasField("mm_inputs") else []
        pixels = [self._read(batch.pixel_values) for batch in (*batches, *request.extra_mm_inputs)]
        return [zlib.crc32(each) & 0x7FFFFFFF for each in pixels]

    def _read(self, tensor: pb.TensorData) -> bytes:
        is_link = tensor.WhichOneof("payload") == "shm"
        self.by_link.append(is_link)
        if is_link:
            return self._read_link(tensor.shm)
        self.read.append(tensor.inline)
        return tensor.inline

    def _read_link(self, handle: common_pb2.ShmHandle) -> bytes:
        path = os.path.join("/dev/shm", handle.name)  # noqa: PTH118
        descriptor = None
        is_read = False
        try:
            if self.open_error is not None:
                raise OSError(*self.open_error.args, path)
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            self.opened.set()
            assert stat.S_ISREG(os.fstat(descriptor).st_mode)
            is_read = self.removes_links
            assert self.may_read.wait(PATIENCE_SECONDS)
            content = os.pread(descriptor, handle.nbytes, handle.offset)
            self.read.append(content)  # before the link goes, which tells the client that it is read
        finally:
            if descriptor is not None:
                os.close(descriptor)
            if is_read:
                if self.remove_error is not None:
                    raise OSError(*self.remove_error.args, path)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # noqa: PTH108
        if len(content) != handle.nbytes:
            raise ValueError(f"length mismatch for name={handle.name!r}: expected {handle.nbytes}, got {len(content)}")
        return content


@contextlib.asynccontextmanager
async def serving_stand_in(change: Callable[[StandIn], object] = lambda _: None) -> AsyncIterator[StandIn]:
    """A stand-in on a free port, changed before it serves."""
    made = StandIn()
    change(made)
    server = grpc.aio.server(options=_SIZE_LIMITS)
    pb_grpc.add_VllmEngineServicer_to_server(made, server)
    made.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield made
    finally:
        made.may_read.set()
        made.may_reply.set()
        await server.stop(None)
