"""What the process of a front runs: a gRPC server on the shared port that relays every call to the service.

It ends with the service: when the connection closes, or when the service is killed.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import logging
import os
import pickle
import signal
import socket
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from preprocessor.config import AccessSettings, WireSettings
from preprocessor.service import listening
from preprocessor.service.event_loop import event_loop_runner
from preprocessor.service.fronts.frames import Body, FrameProtocol, Kind, unpack_seconds
from preprocessor.service.fronts.relay import RelayedCall, describe_call
from preprocessor.service.fronts.rows import RowFiles
from preprocessor.service.logs import configure, keep_writing_summaries
from preprocessor.service.response_buffer import ResponseBuffer
from preprocessor.workers.descriptors import allow_descriptors
from preprocessor.workers.heap import give_back_large_blocks

logger = logging.getLogger(__name__)

MAX_SETUP_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Setup:
    """Service → front, before everything else: where to listen, and how.

    Attributes:
        service_process_id: Of the process that ends this one with its own end.
        address: With its port.
    """

    service_process_id: int
    address: str
    access: AccessSettings
    wire: WireSettings
    log_level: str
    log_format: str


def main(connection: int, supply: int) -> None:
    """Run a front until the service says so, or is gone.

    Args:
        connection, supply: Descriptors of the sockets for frames and for descriptors.
    """
    descriptors = socket.socket(fileno=supply)
    setup: Setup = pickle.loads(descriptors.recv(MAX_SETUP_BYTES))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != setup.service_process_id:
        return  # it ended before
    # Only the service reacts to a stop, and lets calls end first. Some send the signal to every process, as systemd does.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    configure(setup.log_level, setup.log_format)
    give_back_large_blocks()
    allow_descriptors()
    descriptors.setblocking(False)
    event_loop_runner()(_Front(setup, descriptors).run(socket.socket(fileno=connection)))


class _Front(grpc.GenericRpcHandler):
    """The state of the process."""

    def __init__(self, setup: Setup, supply: socket.socket) -> None:
        self._setup = setup
        self._supply = supply
        self._row_files = RowFiles(supply)
        self._response_buffer = ResponseBuffer()
        self._protocol = FrameProtocol(self._on_frame, self._on_lost)
        self._ids = itertools.count(1)
        self._calls: dict[int, RelayedCall] = {}
        self._drain_seconds = 0.0
        self._ended = asyncio.Event()

    async def run(self, connection: socket.socket) -> None:
        setup, loop = self._setup, asyncio.get_running_loop()
        summaries = asyncio.create_task(keep_writing_summaries())
        await loop.create_unix_connection(lambda: self._protocol, sock=connection)
        loop.add_reader(self._supply, self._row_files.receive)
        server = listening.create_shared_server(setup.wire, self)
        listening.add_port(server, setup.address, setup.access)
        await server.start()
        self._protocol.send(Kind.READY)
        await self._ended.wait()
        await server.stop(self._drain_seconds)
        summaries.cancel()
        await asyncio.wait([summaries])

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """A handler of any method: the service knows which there are."""

        async def relay(_: Any, context: Any) -> None:
            await self._relay(details.method, context)

        return grpc.stream_stream_rpc_method_handler(relay)

    async def _relay(self, path: str, context: Any) -> None:
        call_id = next(self._ids)
        call = RelayedCall(
            self._protocol,
            call_id,
            context,
            self._row_files,
            self._response_buffer,
            self._setup.wire.answer_idle_seconds,
        )
        self._calls[call_id] = call
        try:
            self._protocol.send(Kind.BEGIN, call_id, describe_call(path, context).pack())
            await call.run()
        finally:
            del self._calls[call_id]
            if not call.is_ended:
                self._protocol.send(Kind.LEFT, call_id)

    def _on_frame(self, kind: Kind, call_id: int, body: Body) -> None:
        if kind is Kind.DRAIN:
            self._drain_seconds = unpack_seconds(body)
            self._ended.set()
        elif (call := self._calls.get(call_id)) is not None:  # else its caller has just left
            call.on_frame(kind, body)

    def _on_lost(self) -> None:
        os._exit(0)  # the service is gone
