"""A worker process: it runs one payload after another, one for each command. Synchronous, single-threaded, and never trusted.

A task ends at its next checkpoint once the service has written the task's id into the worker's slot of the arena, once its
deadline has passed, or once it has used the CPU time that one task may use.
"""

from __future__ import annotations

import pickle
import socket
import time
import traceback
from collections.abc import Sequence
from typing import Any

from preprocessor.errors import Cancelled, DeadlineExceeded, Overloaded, PreprocessorError, trace_of
from preprocessor.models.loaded import LoadedModel
from preprocessor.workers.arena import Arena
from preprocessor.workers.channel import (
    HEAD,
    Command,
    Fault,
    Finished,
    ResultSlot,
    ResultSlotWanted,
    RowsFinished,
    dump,
    load,
)
from preprocessor.workers.heap import give_back_freed_memory, keep_freed_memory
from preprocessor.workers.payloads import header_bytes, is_out_of_memory
from preprocessor.workers.refusals import cpu_seconds_exceeded, worker_memory_exceeded
from preprocessor.workers.sandbox import allow_cpu_seconds, allow_memory_bytes, anonymous_bytes

# Up to this size, arrays are part of the message: asking for a range of the arena would take longer.
_INLINE_BYTES = 1 << 20


class StopCheck:
    """A `models.loaded.CancelCheck`: called between packets; raises once the task is to stop."""

    def __init__(self, arena: Arena, slot: int, command: Command) -> None:
        self._control = arena.control
        self._slot = slot
        self._task_id = command.task_id
        self._deadline_seconds = command.deadline_seconds
        self._cpu_seconds = command.cpu_seconds
        self._cpu_end_seconds = time.process_time() + command.cpu_seconds
        self._earliest_end_seconds = time.monotonic() + command.cpu_seconds

    def __call__(self) -> None:
        if self._control[self._slot] == self._task_id:
            raise Cancelled("the caller went away")
        now = time.monotonic()
        if now > self._deadline_seconds:
            raise DeadlineExceeded("the request took longer than its deadline allows")
        # As in `media.cpu`: the kernel is asked only once so much wall time has passed that it can be true.
        if now > self._earliest_end_seconds and time.process_time() > self._cpu_end_seconds:
            raise cpu_seconds_exceeded(self._cpu_seconds)


def serve(channel: socket.socket, arena: Arena, model: LoadedModel, slot: int, kept_bytes: int) -> None:
    """Carry out commands until the service closes the channel.

    Args:
        kept_bytes: Freed memory that the worker may keep for its next task.
    """
    keep_freed_memory()
    start_bytes = anonymous_bytes()
    while (message := _receive(channel)) is not None:
        command: Command = load(message, arena)
        allow_cpu_seconds(command.cpu_seconds)
        allow_memory_bytes(header_bytes(command.payload, model))
        outcome, fault = _outcome(command, channel, arena, model, slot)
        allow_memory_bytes(None)
        if anonymous_bytes() - start_bytes > kept_bytes:
            give_back_freed_memory()
        aside: list[pickle.PickleBuffer] = []
        reply = dump(Finished(outcome, fault, anonymous_bytes() - start_bytes), aside=aside.append)
        buffers = [buffer.raw() for buffer in aside]
        if sum(map(len, buffers)) > _INLINE_BYTES:
            _send_through_arena(channel, arena, reply, buffers)
        else:
            _send(channel, dump((reply, [bytes(buffer) for buffer in buffers])))
        del command, outcome, aside, buffers


def _outcome(
    command: Command, channel: socket.socket, arena: Arena, model: LoadedModel, slot: int
) -> tuple[Any, Fault | None]:
    """What the payload returned, or the `PreprocessorError` it raised; any other error as a fault."""

    def report_rows(first_row: int, row_count: int) -> None:
        _send(channel, dump(RowsFinished(first_row, row_count)))

    try:
        return command.payload.run(model, arena, StopCheck(arena, slot, command), report_rows), None
    except PreprocessorError as error:
        return error, None
    except Exception as error:  # the edge of the process: the service logs any other error
        if is_out_of_memory(error):
            return worker_memory_exceeded(), None
        return None, Fault(trace_of(error), traceback.format_exc())


def _send_through_arena(channel: socket.socket, arena: Arena, reply: bytes, buffers: Sequence[memoryview]) -> None:
    """Write a result's large arrays into a range of the arena that the service leases."""
    _send(channel, dump(ResultSlotWanted(sum(len(buffer) for buffer in buffers))))
    answer = _receive(channel)
    slot: ResultSlot = ResultSlot(None) if answer is None else load(answer, arena)
    if slot.offset is None:
        _send(channel, dump((dump(Finished(worker_memory_exceeded(), None, 0)), [])))
        return
    try:
        arena.reserve(slot.offset, sum(len(buffer) for buffer in buffers))
    except Overloaded as error:
        _send(channel, dump((dump(Finished(error, None, 0)), [])))
        return
    offset, ranges = slot.offset, []
    for buffer in buffers:
        arena.view(offset, len(buffer))[:] = buffer.cast("B")
        ranges.append((offset, len(buffer)))
        offset += len(buffer)
    _send(channel, dump((reply, ranges)))


def _send(channel: socket.socket, data: bytes) -> None:
    channel.sendall(HEAD.pack(len(data)) + data)


def _receive(channel: socket.socket) -> bytes | None:
    """The next message; None if the service has closed the channel."""
    head = _receive_exactly(channel, HEAD.size)
    return None if head is None else _receive_exactly(channel, *HEAD.unpack(head))


def _receive_exactly(channel: socket.socket, size_bytes: int) -> bytes | None:
    data = bytearray(size_bytes)
    view, received = memoryview(data), 0
    while received < size_bytes:
        count = channel.recv_into(view[received:])
        if not count:
            return None
        received += count
    return bytes(data)
