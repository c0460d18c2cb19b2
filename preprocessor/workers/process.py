"""A worker process as the service sees it.

The death of a worker shows twice: its channel closes, and the fork server reports its exit code. Both are awaited, so that
whoever ran a task learns how its worker died.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from preprocessor.errors import Overloaded
from preprocessor.workers import region_copy
from preprocessor.workers.arena import Arena
from preprocessor.workers.channel import (
    HEAD,
    INLINE_BYTES,
    Command,
    Finished,
    Given,
    ResultSlot,
    ResultSlotWanted,
    RowsFinished,
    check_finished,
    dump,
)
from preprocessor.workers.chunks import GivenChunks, Windows
from preprocessor.workers.claims import Violation, check_rows
from preprocessor.workers.descriptors import BATCH_COUNT, FULL_SECONDS, close_all, send_descriptors
from preprocessor.workers.refusals import system_resources_exhausted
from preprocessor.workers.stop_flag import StopFlag
from preprocessor.workers.untrusted import build, parse
from preprocessor.workers.usage import UsageCheck, read_usage

logger = logging.getLogger(__name__)

_EXIT_CODE_SECONDS = 5.0
_MAX_MESSAGE_BYTES = (
    8 << 20
)  # beside arrays: the longest is the text around the frames of a long clip, 60 bytes a frame


_system_call = Violation("system_call", "a system call that is not allowed")


class WorkerDied(Exception):
    """The worker process ended before its task did.

    Attributes:
        code: As `forking.Exited.code`; None: unknown.
        violation: What it did before that none of our code does, if that is how it ended.
    """

    def __init__(self, code: int | None, violation: Violation | None = None) -> None:
        name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        super().__init__(f"a worker process ended ({name})")
        self.code = code
        self.violation = violation


class ProcessWorker:
    """One worker process.

    Args:
        flag: Says which of its tasks is to stop.
        send_kill: Tells the fork server to kill the process; False: its socket is full, try again.
        on_violation: Called with the kind of a violation.
    Attributes:
        task_count: Tasks done.
        grown_bytes: Memory that it held beyond what it was forked with when it was last examined.
        end_reason: Why it ends: "lost" unless its owner says otherwise.
        is_alive: Whether it may be given a task. One that was killed may not, though its last result can come before its end.
    """

    def __init__(
        self, arena: Arena, flag: StopFlag, send_kill: Callable[[], bool], on_violation: Callable[[str], None]
    ) -> None:
        self._flag = flag
        self._given = GivenChunks()
        self._scope: str | None = None
        self.task_count = 0
        self.grown_bytes = 0
        self.end_reason = "lost"
        self.is_alive = True
        self._arena = arena
        self._send_kill = send_kill
        self._on_violation = on_violation
        self._exit_code: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._process_id: int | None = None
        self._usage_check = UsageCheck()
        self._start_bytes = 0
        self._mapped_bytes = 0  # of the arena, since its last task began
        self._cpu_seconds: float | None = None  # of its task
        self._violation: Violation | None = None

    async def connect(self, channel: socket.socket, supply: socket.socket) -> None:
        """Take our ends of its sockets: for messages, and for what comes with them."""
        supply.setblocking(False)
        self._supply = supply
        self._reader, self._writer = await asyncio.open_unix_connection(sock=channel)

    def is_for(self, scope: str) -> bool:
        """Whether it has run no tasks of another scope."""
        return self._scope in (None, scope)

    async def run(
        self, command: Command, on_rows_written: Callable[[int, int], None], lease_result: Callable[[int], int | None]
    ) -> Any:
        """Run one task.

        Args:
            on_rows_written: Called with (first row, row count) when those rows are final.
            lease_result: Leases a range of the arena for a result of that many bytes; None: no memory.
        Returns:
            What `Payload.run` returned.
        Raises:
            WorkerDied: The process ended.
            PreprocessorError: `Payload.run` raised it, the engine's memory has no room, or nothing can be given to the process.
            TaskFailed: `Payload.run` failed in a way that no request should be able to cause.
            Exception: The service itself failed. If the process had the task by then, it has been ended.
        """
        await region_copy.allocate(self._arena, command.payload.written_bytes)
        files: list[memoryview] = []
        data = dump(command, files.append)
        try:
            self._given.is_running = True
            self._cpu_seconds = command.cpu_seconds
            windows, descriptors = self._give(command, command.payload.written_bytes)
            self._scope = command.scope
            async with self._ended_if_this_fails():
                await self._send_command(data, files, windows, descriptors)
                finished = await self._exchange(command, on_rows_written, lease_result)
        finally:
            self._cpu_seconds = None
            self._arena.chunks.end_task(self._given)
        self.task_count += 1
        return finished.result()

    @contextlib.asynccontextmanager
    async def _ended_if_this_fails(self) -> AsyncIterator[None]:
        """While the process has a task: whatever goes wrong, it has ended before anybody else gets the task's memory.

        Raises:
            WorkerDied: It ended, was killed meanwhile, or said what none of our code does.
            Exception: The service itself failed.
        """
        try:
            yield
        except (asyncio.IncompleteReadError, ConnectionError):
            code = await self._wait_for_exit()
            raise WorkerDied(code, _system_call if code == -signal.SIGSYS else self._violation) from None
        except Violation as violation:
            self._end_for(violation)
            raise WorkerDied(await self._wait_for_exit(), violation) from None
        except Exception as error:
            was_alive = self.is_alive
            if was_alive:
                logger.error("a worker process is ended: the service failed during its task: %s", type(error).__name__)
                self.end_reason = "killed"
            code = await self._wait_for_exit()
            if not was_alive:  # its sockets may have been closed
                raise WorkerDied(code, self._violation) from None
            raise

    async def _exchange(
        self, command: Command, on_rows_written: Callable[[int, int], None], lease_result: Callable[[int], int | None]
    ) -> Finished:
        rows, written = command.payload.expected_rows, command.payload.written_bytes
        row_bytes = len(written) // max(1, len(rows))
        slot: range | None = None
        is_slot_copied = False
        refusal: Overloaded | None = None
        while True:
            with _as_violations():
                value, places = parse(await self._receive())
            if slot and not is_slot_copied and any(isinstance(place, list) for place in places):
                await region_copy.copy(self._arena, slot)  # before it is read: nobody can change the copy
                is_slot_copied = True
            with _as_violations():
                message = build(value, await self._buffers(places, slot or range(0)))
            match message:
                case RowsFinished(first_row, row_count):
                    with _as_violations():
                        rows = range(check_rows(first_row, row_count, rows), rows.stop)
                    stop = written.start + row_count * row_bytes
                    await region_copy.copy(self._arena, range(written.start, stop))
                    written = range(stop, written.stop)
                    on_rows_written(first_row, row_count)
                case ResultSlotWanted(int() as size_bytes) if slot is None and size_bytes > 0:
                    try:
                        slot = await self._give_result(command, lease_result(size_bytes), size_bytes)
                    except Overloaded as error:
                        slot, refusal = range(0), error
                        self._send(dump(ResultSlot(None)))
                case Finished() as finished:
                    with _as_violations():
                        check_finished(finished, command.payload)
                    if finished.is_good:
                        await region_copy.copy(self._arena, written)
                    return finished if refusal is None else dataclasses.replace(finished, outcome=refusal)
                case other:
                    raise Violation("message", f"a message of type {type(other).__name__}")

    async def _give_result(self, command: Command, offset: int | None, size_bytes: int) -> range:
        """Give the worker a range for its result; returns it, empty if there is no memory.

        Raises:
            Overloaded: As `_give`, or `SHARED_MEMORY_FULL`; the worker has been told nothing.
        """
        slot = range(0) if offset is None else range(offset, offset + size_bytes)
        await region_copy.allocate(self._arena, slot)
        windows, descriptors = self._give(command, command.payload.written_bytes, slot)
        await self._send_with(descriptors, dump(ResultSlot(offset, windows)))
        return slot

    async def _send_command(
        self, data: bytes, files: Sequence[memoryview], windows: Windows, descriptors: list[int]
    ) -> None:
        """Send a command, and what comes with it."""
        await self._send_with(descriptors, dump(Given(windows, sum(file.nbytes for file in files))), data)
        loop = asyncio.get_running_loop()
        for file in files:
            await loop.sock_sendall(self._supply, file)

    def _give(self, command: Command, *written: range) -> tuple[Windows, list[int]]:
        """See `Chunks.give`.

        Raises:
            Overloaded: `SYSTEM_RESOURCES_EXHAUSTED`; the worker has what it had.
        """
        try:
            given = self._arena.chunks.give(self._given, command.scope, written, command.payload.read_bytes)
        except OSError as error:
            logger.error("no memory can be given to a worker: %s", error)
            raise system_resources_exhausted() from error
        self._mapped_bytes = len(self._given.chunks) * self._arena.chunks.size_bytes
        return given

    async def _send_with(self, descriptors: list[int], *messages: bytes) -> None:
        """Send messages, and the descriptors that they are about, which are closed here whatever happens."""
        try:
            for message in messages:
                self._send(message)
            for start in range(0, len(descriptors), BATCH_COUNT):
                await send_descriptors(self._supply, b"d", descriptors[start : start + BATCH_COUNT])
        finally:
            close_all(descriptors)

    async def _buffers(self, places: list[Any], slot: range) -> list[bytes | memoryview]:
        """The bytes of a message's arrays: they follow it, or are somewhere in what was leased for them."""
        buffers: list[bytes | memoryview] = []
        left_bytes = INLINE_BYTES
        for place in places:
            match place:
                case int() if 0 <= place <= left_bytes:
                    buffers.append(await self._reader.readexactly(place))
                    left_bytes -= place
                case [int() as offset, int() as size_bytes] if slot.start <= offset <= offset + size_bytes <= slot.stop:
                    buffers.append(self._arena.view(offset, size_bytes))
                case _:
                    raise Violation("message", "a buffer that is nowhere")
        return buffers

    def stop(self, task_id: int) -> None:
        """Have the task end at its next checkpoint."""
        self._flag.stop(task_id)

    def note_start(self, process_id: int) -> None:
        """The process runs."""
        self._process_id = process_id
        if (usage := read_usage(process_id)) is not None:
            self._start_bytes = usage.anonymous_bytes

    def examine(self) -> None:
        """Learn from the kernel what the process uses, and end it if that is what none of our code would."""
        if self._process_id is None or not self.is_alive or (usage := read_usage(self._process_id)) is None:
            return
        unexplained_bytes = max(0, usage.shared_bytes - self._mapped_bytes)
        self.grown_bytes = usage.anonymous_bytes + unexplained_bytes - self._start_bytes
        try:
            self._usage_check.check(usage, self.task_count, self._cpu_seconds)
        except Violation as violation:
            logger.error("a worker process is ended: %s", violation)
            self._violation = violation
            self._end_for(violation)

    def _end_for(self, violation: Violation) -> None:
        self.end_reason = "violation"
        self._on_violation(violation.kind)
        self.kill()

    def kill(self) -> None:
        """Kill the process."""
        self.is_alive = False
        if not self._send_kill():
            asyncio.get_running_loop().call_later(FULL_SECONDS, self.kill)

    def retire(self) -> None:
        """Close the channel, so that the process ends by itself; it must be idle, or killed."""
        self._writer.close()
        if not self._given.is_running:  # else it is closed once nothing waits to be sent
            self._supply.close()

    def note_exit(self, code: int | None) -> None:
        """The process has ended, with this exit code; None: unknown."""
        self.is_alive = False
        if code == -signal.SIGSYS:  # whether or not it has a task
            self.end_reason = "violation"
            self._on_violation(_system_call.kind)
        if not self._exit_code.done():
            self._exit_code.set_result(code)

    def on_exit(self, callback: Callable[[], None]) -> None:
        """Have this called when the process has ended."""
        self._exit_code.add_done_callback(lambda _: callback())

    async def _wait_for_exit(self) -> int | None:
        self.kill()  # it may have closed a socket and live on
        self._writer.close()
        self._supply.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_CODE_SECONDS):
                return await asyncio.shield(self._exit_code)
        return None

    def _send(self, data: bytes) -> None:
        self._writer.write(HEAD.pack(len(data)) + data)

    async def _receive(self) -> bytes:
        (size_bytes,) = HEAD.unpack(await self._reader.readexactly(HEAD.size))
        if size_bytes > _MAX_MESSAGE_BYTES:
            raise Violation("message", f"a message of {size_bytes} bytes; at most {_MAX_MESSAGE_BYTES} are allowed")
        return await self._reader.readexactly(size_bytes)


@contextlib.contextmanager
def _as_violations() -> Iterator[None]:
    """For what a worker has said: reading it may fail in any way, if a compromised process wrote it.

    Raises:
        Violation: In place of any error, but of those that mean that the process has closed the channel.
    """
    try:
        yield
    except (Violation, asyncio.IncompleteReadError, ConnectionError):
        raise
    except Exception as error:
        raise Violation("message", f"{type(error).__name__}: {error}") from None
