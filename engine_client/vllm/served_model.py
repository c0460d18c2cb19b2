"""What one server says of itself and its model: whether it is ready and fits. Asked, and remembered while it is connected."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import partial
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_client.compatibility import CompatibilityCheck
from engine_client.connection import Connection, ConnectionWatch
from engine_client.errors import EngineDeadlineExceeded, EngineError, EngineUnavailable
from engine_client.shared_task import UNSEEN_SECONDS, SharedTask
from engine_client.vllm.server import VllmServer, read_bundle, read_server

_Answer = TypeVar("_Answer", bound=Message)

_LATELY_SECONDS = 10.0
_DESCRIBE_TIMEOUT_SECONDS = 30.0  # at least; the tokenizer alone has some 10 MB


class ServedModel:
    """The model of one server.

    Args:
        connection: To the server.
        who: Starts the messages of errors.
        compatibility: What must hold before it gets a prompt.
        own_files: As `EngineOptions.model_files`.
        executor: Where its model's files are read; None is the event loop's own.
    """

    def __init__(
        self,
        connection: Connection,
        who: str,
        compatibility: CompatibilityCheck,
        own_files: Mapping[str, Any],
        executor: Executor | None,
    ) -> None:
        self._connection = connection
        self._who = who
        self._compatibility = compatibility
        self._own_files = own_files
        self._executor = executor
        self._known: tuple[VllmServer, ConnectionWatch] | None = None
        self._reading = SharedTask(self._read)
        self._replied_at_seconds = -math.inf

    async def check_ready(self, timeout_seconds: float) -> None:
        """Return if it is ready and fits.

        A server that takes in many large prompts may be seconds late with everything: one that has answered a prompt lately
        is ready, although it does not say so in time. What it is may take longer to tell than `timeout_seconds`, up to
        `_DESCRIBE_TIMEOUT_SECONDS`; for a caller who waits less the next one gets it.

        Raises:
            EngineUnavailable: it is not, or does not say; EngineMismatch where it does not fit.
        """
        self._current()
        try:
            health = await self._ask("HealthCheck", pb.HealthCheckRequest(), pb.HealthCheckResponse, timeout_seconds)
        except EngineDeadlineExceeded as error:
            if time.monotonic() - self._replied_at_seconds < _LATELY_SECONDS:
                return
            raise EngineUnavailable(f"{self._who} did not say within {timeout_seconds} s that it is ready") from error
        except EngineUnavailable:
            self.forget()
            raise
        except EngineError as error:
            raise EngineUnavailable(str(error)) from error
        if not health.healthy:
            self.forget()
            raise EngineUnavailable(f"{self._who} is not healthy: {health.message or 'it does not say why'}")
        if self._current() is None:
            await self._reading.outcome(unseen_seconds=UNSEEN_SECONDS)

    async def describe(self, timeout_seconds: float) -> VllmServer:
        """Ask what it is.

        Raises:
            EngineError: it does not say; EngineMismatch where nothing can be sent to it from here.
        """
        self._current()
        return await self._read_server(max(timeout_seconds, _DESCRIBE_TIMEOUT_SECONDS))

    async def require_server(self) -> tuple[VllmServer, ConnectionWatch]:
        """What the server says, where it fits; asked again where it may be another one since.

        Returns:
            It, and the connection by which it said so: who relies on it checks, once an answer has begun, that it came by that.
        Raises:
            EngineUnavailable: it does not say; EngineMismatch where it does not fit.
        """
        return self._current() or await self._reading.outcome()

    def forget(self) -> None:
        """What answers next may be another process, with another model."""
        self._known = None
        self._reading.forget()

    async def close(self) -> None:
        """Wait until nothing is asked any more; to be called when the connection is closed."""
        await self._reading.ended()

    def note_reply(self) -> None:
        """It has just replied to a prompt."""
        self._replied_at_seconds = time.monotonic()

    def _current(self) -> tuple[VllmServer, ConnectionWatch] | None:
        """What is known of the server as long as its connection stands. To be called before anything is sent, since that connects
        again: maybe to another process, with another model."""
        if self._known is not None and self._known[1].has_ended:
            self.forget()
        return self._known

    async def _read(self) -> tuple[VllmServer, ConnectionWatch]:
        read = partial(self._read_server, _DESCRIBE_TIMEOUT_SECONDS)
        server, watch = await self._connection.ask_by_one(read, _DESCRIBE_TIMEOUT_SECONDS)
        self._compatibility.require(server.info)
        self._known = server, watch
        return self._known

    async def _read_server(self, timeout_seconds: float) -> VllmServer:
        model, server, chunks = await asyncio.gather(
            self._ask("GetModelInfo", pb.GetModelInfoRequest(), pb.GetModelInfoResponse, timeout_seconds),
            self._ask("GetServerInfo", pb.GetServerInfoRequest(), pb.GetServerInfoResponse, timeout_seconds),
            self._tokenizer_chunks(timeout_seconds),
        )
        bundle = await asyncio.get_running_loop().run_in_executor(self._executor, read_bundle, chunks)
        return read_server(self._who, model, server, bundle, self._own_files)

    async def _tokenizer_chunks(self, timeout_seconds: float) -> list[bytes]:
        """The archive of the model's files; none where the server cannot give it, as of a model that it knows by a hub id.

        Source: smg-grpc-servicer 0.14.1, vllm/servicer.py, GetTokenizer.
        """
        with self._connection.errors():
            question = common_pb2.GetTokenizerRequest().SerializeToString()
            call = self._connection.ask_for_stream("GetTokenizer", question, (), timeout_seconds)
            try:
                return [common_pb2.GetTokenizerChunk.FromString(chunk).data async for chunk in call]
            except grpc.aio.AioRpcError as error:
                if error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL):
                    return []
                raise

    async def _ask(self, method: str, message: Message, answer: type[_Answer], timeout_seconds: float) -> _Answer:
        wire = await self._connection.ask(method, message.SerializeToString(), timeout_seconds)
        with self._connection.errors():
            return answer.FromString(wire)
