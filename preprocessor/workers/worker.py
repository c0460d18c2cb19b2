"""A worker process: it runs one payload after another, one for each command. Synchronous, and never trusted.

It has one thread, but for those that `pipeline.write_item` starts and ends within a task; the sandbox holds these too.

A task ends at its next checkpoint once the service has written the task's id into the worker's `StopFlag`, once its deadline
has passed, or once it has used the CPU time that one task may use.
"""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from preprocessor.errors import Cancelled, DeadlineExceeded, PreprocessorError, trace_of
from preprocessor.models.loaded import LoadedModel
from preprocessor.pipeline.division import MOST_THREADS
from preprocessor.workers.channel import (
    HEAD,
    INLINE_BYTES,
    Command,
    Fault,
    Finished,
    Given,
    ResultSlot,
    ResultSlotWanted,
    RowsFinished,
    load,
)
from preprocessor.workers.heap import give_back_freed_memory, keep_freed_memory
from preprocessor.workers.payloads import header_bytes, is_out_of_memory
from preprocessor.workers.refusals import cpu_seconds_exceeded, worker_memory_exceeded
from preprocessor.workers.rows_window import RowsWindow
from preprocessor.workers.sandbox import allow_cpu_seconds, allow_memory_bytes, anonymous_bytes
from preprocessor.workers.stop_flag import StopFlag
from preprocessor.workers.untrusted import encode, to_bytes


class StopCheck:
    """A `models.loaded.CancelCheck`: called between packets; raises once the task is to stop."""

    def __init__(self, flag: StopFlag, command: Command) -> None:
        self._stopped = flag.numbers
        self._task_id = command.task_id
        self._deadline_seconds = command.deadline_seconds
        self._cpu_seconds = command.cpu_seconds
        self._cpu_end_seconds = time.process_time() + command.cpu_seconds
        self._earliest_end_seconds = time.monotonic() + command.cpu_seconds / MOST_THREADS

    def __call__(self) -> None:
        if self._stopped[0] == self._task_id:
            raise Cancelled("the caller went away")
        now = time.monotonic()
        if now > self._deadline_seconds:
            raise DeadlineExceeded("the request took longer than its deadline allows")
        # As in `media.checks`: the kernel is asked only once so much wall time has passed that it can be true.
        if now > self._earliest_end_seconds and time.process_time() > self._cpu_end_seconds:
            raise cpu_seconds_exceeded(self._cpu_seconds)


@dataclass(frozen=True, slots=True)
class Connections:
    """What a worker has of the service.

    Attributes:
        channel: For messages.
        supply: What comes with them: descriptors of memory, and files.
        rows: Where it writes rows and results.
        flag: Says which task is to stop.
    """

    channel: socket.socket
    supply: socket.socket
    rows: RowsWindow
    flag: StopFlag


def serve(to: Connections, model: LoadedModel, kept_bytes: int) -> None:
    """Carry out commands until the service closes the channel.

    Args:
        kept_bytes: Freed memory that the worker may keep for its next task.
    """
    keep_freed_memory()
    start_bytes = anonymous_bytes()
    while (message := _receive(to.channel)) is not None:
        given: Given = load(message)
        to.rows.show(given.windows, to.supply)
        command = _command(to, given)
        if command is None:
            return
        outcome: Any
        if isinstance(command, PreprocessorError):
            outcome, fault = command, None
        else:
            allow_cpu_seconds(command.cpu_seconds)
            allow_memory_bytes(header_bytes(command.payload, model))
            outcome, fault = _outcome(command, to, model)
            allow_memory_bytes(None)
        del command
        if anonymous_bytes() - start_bytes > kept_bytes:
            give_back_freed_memory()
        _send_result(to, Finished(outcome, fault))
        del outcome


def _command(to: Connections, given: Given) -> Command | PreprocessorError | None:
    """The command with its files, or the error if they do not fit this process; None if the service has closed the channel."""
    message = _receive(to.channel)
    if message is None:
        return None
    left_bytes = given.file_bytes

    def read_file(size_bytes: int) -> bytes:
        nonlocal left_bytes
        data = _receive_file(to.supply, size_bytes)
        left_bytes -= size_bytes
        return data

    try:
        command: Command = load(message, read_file)
    except MemoryError:
        while left_bytes:
            left_bytes -= len(_receive_file(to.supply, min(left_bytes, INLINE_BYTES)))
        return worker_memory_exceeded()
    return command


def _outcome(command: Command, to: Connections, model: LoadedModel) -> tuple[Any, Fault | None]:
    """What the payload returned, or the `PreprocessorError` it raised; any other error as a fault."""

    def report_rows(first_row: int, row_count: int) -> None:
        _tell(to.channel, RowsFinished(first_row, row_count))

    try:
        return command.payload.run(model, to.rows, StopCheck(to.flag, command), report_rows), None
    except PreprocessorError as error:
        return error, None
    except Exception as error:  # the edge of the process: the service logs any other error
        if is_out_of_memory(error):
            return worker_memory_exceeded(), None
        return None, Fault(trace_of(error), traceback.format_exc())


def _send_result(to: Connections, finished: Finished) -> None:
    """Send a result: its arrays behind it, or in the arena."""
    buffers: list[memoryview] = []
    try:
        value = encode(finished, buffers)
    except TypeError as error:
        buffers.clear()
        value = encode(Finished(None, Fault(trace_of(error), traceback.format_exc())), buffers)
    if sum(map(len, buffers)) > INLINE_BYTES:
        _send_through_arena(to, value, buffers)
        return
    _send(to.channel, to_bytes(value, [len(buffer) for buffer in buffers]))
    for buffer in buffers:
        to.channel.sendall(buffer)


def _send_through_arena(to: Connections, value: Any, buffers: Sequence[memoryview]) -> None:
    """Write a result's large arrays into a range of the arena that the service leases."""
    _tell(to.channel, ResultSlotWanted(sum(len(buffer) for buffer in buffers)))
    answer = _receive(to.channel)
    slot: ResultSlot = ResultSlot(None) if answer is None else load(answer)
    if slot.offset is None:
        _tell(to.channel, Finished(worker_memory_exceeded(), None))
        return
    assert slot.windows is not None
    to.rows.show(slot.windows, to.supply)
    offset, ranges = slot.offset, []
    for buffer in buffers:
        to.rows.view(offset, len(buffer))[:] = buffer
        ranges.append((offset, len(buffer)))
        offset += len(buffer)
    _send(to.channel, to_bytes(value, ranges))


def _tell(channel: socket.socket, message: Any) -> None:
    """Send a message without arrays."""
    _send(channel, to_bytes(encode(message, [])))


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


def _receive_file(supply: socket.socket, size_bytes: int) -> bytes:
    """The next bytes of the service's files, in a block of just their size.

    Raises:
        ConnectionResetError: The service is gone.
        MemoryError: They do not fit; none is read.
    """
    data = supply.recv(size_bytes, socket.MSG_WAITALL) if size_bytes else b""
    if len(data) == size_bytes:
        return data
    parts = [data]
    while (missing_bytes := size_bytes - sum(map(len, parts))) > 0:  # a signal has come between, or it is over 2 GB
        part = supply.recv(missing_bytes, socket.MSG_WAITALL)
        if not part:
            raise ConnectionResetError("the service has closed the socket")
        parts.append(part)
    return b"".join(parts)
