"""A worker process: one job after another, each in answer to one order. Synchronous, single-threaded, and never trusted.

A job ends at its next checkpoint once the service has written the job's number into the worker's place in the arena, once
the caller's deadline has passed, or once the job has used the CPU that one job may use.
"""

from __future__ import annotations

import pickle
import socket
import time
import traceback
from collections.abc import Sequence
from typing import Any

from preprocessor.errors import Cancelled, DeadlineExceeded, LimitExceeded, Overloaded, PreprocessorError, trace_of
from preprocessor.models.loaded import LoadedModel
from preprocessor.workers.arena import Arena
from preprocessor.workers.channel import (
    HEAD,
    Command,
    Fault,
    Finished,
    ResultSlot,
    ResultSlotWanted,
    RowsWritten,
    dump,
    load,
)
from preprocessor.workers.heap import give_back_freed_memory, keep_freed_memory
from preprocessor.workers.payloads import header_bytes, is_out_of_memory, memory_exhausted
from preprocessor.workers.sandbox import allow_cpu_seconds, allow_memory_bytes, anonymous_bytes

# Below this, arrays travel in the message: asking for slot would take longer.
_INLINE_BYTES = 1 << 20


class Checkpoint:
    """Called between packets; raises once the job has no reason to go on."""

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
        # As in `media.cpu`: asked of the kernel only when it can be so.
        if now > self._earliest_end_seconds and time.process_time() > self._cpu_end_seconds:
            raise cpu_exhausted(self._cpu_seconds)


def cpu_exhausted(cpu_seconds: float) -> LimitExceeded:
    return LimitExceeded(
        f"the request needs more than the {cpu_seconds:g} CPU seconds that one may use; ask for fewer frames, or send a "
        "smaller file",
        reason="CPU_SECONDS_EXCEEDED",
    )


def task(channel: socket.socket, arena: Arena, model: LoadedModel, slot: int, kept_bytes: int) -> None:
    """Carry out orders until the service closes the channel.

    Args:
        kept_bytes: Of the memory that a job has freed, what stays for the next one.
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
            _send_by_arena(channel, arena, reply, buffers)
        else:
            _send(channel, dump((reply, [bytes(buffer) for buffer in buffers])))
        del command, outcome, aside, buffers


def _outcome(
    command: Command, channel: socket.socket, arena: Arena, model: LoadedModel, slot: int
) -> tuple[Any, Fault | None]:
    """What the job returns or raises, and how the program failed where it did."""

    def announce(first_row: int, row_count: int) -> None:
        _send(channel, dump(RowsWritten(first_row, row_count)))

    try:
        return command.payload.run(model, arena, Checkpoint(arena, slot, command), announce), None
    except PreprocessorError as error:
        return error, None
    except Exception as error:  # the edge of the process: whatever else a job raises is the service's to log
        if is_out_of_memory(error):
            return memory_exhausted(), None
        return None, Fault(trace_of(error), traceback.format_exc())


def _send_by_arena(channel: socket.socket, arena: Arena, reply: bytes, buffers: Sequence[memoryview]) -> None:
    """Put a result's large arrays where the service says."""
    _send(channel, dump(ResultSlotWanted(sum(len(buffer) for buffer in buffers))))
    answer = _receive(channel)
    slot: ResultSlot = ResultSlot(None) if answer is None else load(answer, arena)
    if slot.offset is None:
        _send(channel, dump((dump(Finished(memory_exhausted(), None, 0)), [])))
        return
    try:
        arena.reserve(slot.offset, sum(len(buffer) for buffer in buffers))
    except Overloaded as error:
        _send(channel, dump((dump(Finished(error, None, 0)), [])))
        return
    offset, places = slot.offset, []
    for buffer in buffers:
        arena.view(offset, len(buffer))[:] = buffer.cast("B")
        places.append((offset, len(buffer)))
        offset += len(buffer)
    _send(channel, dump((reply, places)))


def _send(channel: socket.socket, data: bytes) -> None:
    channel.sendall(HEAD.pack(len(data)) + data)


def _receive(channel: socket.socket) -> bytes | None:
    """The next message; None where the service has closed the channel."""
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
