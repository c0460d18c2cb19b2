"""The life of a gRPC server that says what a test has it say: its port, its starts and its stops."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from deploy.child_process import held_ports


class ScriptedServer(ABC, grpc.aio.ServerInterceptor):
    """Async context manager around the server; `start` and `stop` are a restart, at the same address.

    Attributes:
        garbled: Methods whose answers are no messages.
    """

    def __init__(self) -> None:
        self.garbled: set[str] = set()
        self._ports = contextlib.ExitStack()

    async def __aenter__(self) -> Self:
        (self._port,) = self._ports.enter_context(held_ports(1))
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
        self._ports.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def start(self) -> None:
        self._server = self.make_server()
        self._server.add_insecure_port(self.address)
        await self._server.start()

    async def stop(self) -> None:
        """As a process that was killed: answers break off."""
        await self._server.stop(grace=None)

    @abstractmethod
    def make_server(self) -> grpc.aio.Server:
        """A server with its handlers and with this as an interceptor, that listens nowhere yet."""

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """See `grpc.aio.ServerInterceptor`."""
        handler = await continuation(handler_call_details)
        if handler_call_details.method.rpartition("/")[2] in self.garbled:
            return handler._replace(response_serializer=lambda _: b"\xff")
        return handler
