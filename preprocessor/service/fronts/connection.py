"""The service's side of one front's frames: calls begun, run and cancelled."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
import numpy.typing as npt

from preprocessor.errors import forget_frames
from preprocessor.service.fronts.context import RelayedContext
from preprocessor.service.fronts.frames import FILE_NUMBER, Begin, Body, FrameProtocol, Kind, RowsPlace, Status
from preprocessor.workers.descriptors import BATCH_COUNT, send_descriptors
from preprocessor.workers.shown_rows import ShownRows

logger = logging.getLogger(__name__)


class FrontConnection:
    """Runs the calls of one front.

    Args:
        methods: The handlers by path, each of which streams both ways.
        shown_rows: What the front has of the arena.
        supply: The socket by which it gets descriptors.
        idle_seconds: The longest time that a caller may not read its answer.
        on_ready: Called when the front listens.
        on_lost: Called when its connection has ended.
        kill: Ends the front.
    Attributes:
        protocol: Of the connection.
    """

    def __init__(
        self,
        methods: Mapping[str, Any],
        shown_rows: ShownRows,
        supply: socket.socket,
        idle_seconds: float,
        *,
        on_ready: Callable[[], None],
        on_lost: Callable[[], None],
        kill: Callable[[], None],
    ) -> None:
        self.protocol = FrameProtocol(self._on_frame, self._on_lost)
        self.send = self.protocol.send
        self.kill = kill
        self._methods = methods
        self._shown_rows = shown_rows
        self._supply = supply
        self._idle_seconds = idle_seconds
        self._on_ready = on_ready
        self._on_end = on_lost
        self._calls: dict[int, tuple[RelayedContext, asyncio.Task[None]]] = {}
        self._giving = asyncio.Lock()
        self._given_count = 0  # files, as often as the front was given any

    @property
    def open_count(self) -> int:
        """Calls of this front that have not ended."""
        return len(self._calls)

    # -- frames --------------------------------------------------------------------------------------------------------

    def _on_frame(self, kind: Kind, call_id: int, body: Body) -> None:
        if kind is Kind.BEGIN:
            self._begin(call_id, Begin.unpack(body))
        elif kind is Kind.READY:
            self._on_ready()
        elif call_id in self._calls:  # else it has just ended
            context, task = self._calls[call_id]
            if kind is Kind.LEFT:
                context.on_left()
                task.cancel()
            else:
                context.on_frame(kind, body)

    def _on_lost(self) -> None:
        for context, task in self._calls.values():
            context.on_left()
            task.cancel()
        self._on_end()

    def _begin(self, call_id: int, begin: Begin) -> None:
        handler = self._methods.get(begin.path)
        if handler is None:
            status = Status(grpc.StatusCode.UNIMPLEMENTED.value[0], "Method not found!")  # as gRPC says it
            self.send(Kind.STATUS, call_id, status.pack())
            return
        context = RelayedContext(self, call_id, begin, handler.response_serializer, self._idle_seconds)
        task = asyncio.create_task(self._run(context, handler.stream_stream))
        self._calls[call_id] = context, task
        # Not in the task: one that is cancelled before its first step runs none of its code.
        task.add_done_callback(lambda _: self._end(call_id))

    def _end(self, call_id: int) -> None:
        context, task = self._calls.pop(call_id)
        if task.cancelled():
            context.set_code(grpc.StatusCode.CANCELLED)
        self.send(Kind.STATUS, call_id, context.status.pack())

    async def _run(self, context: RelayedContext, behaviour: Any) -> None:
        try:
            async for message in behaviour(None, context):
                await context.write(message)
        except grpc.aio.AbortError:
            pass  # the context knows the status
        except Exception as error:
            # No handler of this service lets one out; gRPC's own do, and gRPC answers with as much.
            logger.exception("a handler failed")
            context.set_code(grpc.StatusCode.UNKNOWN)
            context.set_details(f"Unexpected {type(error)}")
            forget_frames(error)

    # -- rows ----------------------------------------------------------------------------------------------------------

    async def send_rows(
        self, call_id: int, tensor_index: int, array: npt.NDArray[Any], first_row: int, row_count: int
    ) -> bool:
        """See `context.FrontLink`."""
        pieces = self._shown_rows.pieces_of(array[first_row : first_row + row_count])
        if pieces is None:
            return False
        try:
            async with (
                self._giving
            ):  # what is being sent to the front is not sent twice, and is there before it is named
                await self._give_files(self._shown_rows.missing(pieces))
        except OSError as error:
            logger.error("no memory can be shown to a front: %s", error)
            return False
        place = RowsPlace(tensor_index, first_row, row_count, self._given_count, pieces)
        self.send(Kind.ROWS, call_id, place.pack())
        return True

    async def _give_files(self, files: Sequence[int]) -> None:
        for start in range(0, len(files), BATCH_COUNT):
            batch = files[start : start + BATCH_COUNT]
            with self._shown_rows.give(batch) as descriptors:
                await send_descriptors(self._supply, b"".join(map(FILE_NUMBER.pack, batch)), descriptors)
            self._given_count += len(batch)
