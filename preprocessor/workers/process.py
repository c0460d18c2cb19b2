"""A worker process as the service sees it.

The death of a worker shows twice: its channel closes, and the fork server reports its exit code. Both are awaited, so that
whoever ran a task learns how its worker died.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable
from typing import Any

from preprocessor.workers.arena import Arena
from preprocessor.workers.channel import (
    HEAD,
    Command,
    Finished,
    ResultSlot,
    ResultSlotWanted,
    RowsFinished,
    dump,
    load_untrusted,
)

logger = logging.getLogger(__name__)

FULL_SECONDS = 0.01
"""Pause before another try to send to a fork server whose socket is full."""
_EXIT_CODE_SECONDS = 5.0
_MAX_MESSAGE_BYTES = 1 << 28  # the packet tables of a clip with a million frames take a tenth


class WorkerDied(Exception):
    """The worker process ended before its task did.

    Attributes:
        code: As `forking.Exited.code`; None: unknown.
    """

    def __init__(self, code: int | None) -> None:
        name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        super().__init__(f"a worker process ended ({name})")
        self.code = code


class ProcessWorker:
    """One worker process.

    Args:
        send_kill: Tells the fork server to kill the process; False: its socket is full, try again.
    Attributes:
        slot: Its place in `Arena.control`.
        task_count: Tasks done.
        grown_bytes: Memory it held after its last task beyond what it was forked with.
        end_reason: Why it ends: "lost" unless its owner says otherwise.
    """

    def __init__(self, slot: int, arena: Arena, send_kill: Callable[[], bool]) -> None:
        self.slot = slot
        self.task_count = 0
        self.grown_bytes = 0
        self.end_reason = "lost"
        self.is_alive = True
        self._arena = arena
        self._send_kill = send_kill
        self._exit_code: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def connect(self, channel: socket.socket) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(sock=channel)

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
            PreprocessorError: `Payload.run` raised it.
            TaskFailed: `Payload.run` failed in a way that no request should be able to cause.
        """
        try:
            finished = await self._exchange(command, on_rows_written, lease_result)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise WorkerDied(await self._wait_for_exit()) from None
        except Exception:  # a malformed message: the process may be under a stranger's control
            logger.exception("a worker sent a malformed message and is killed")
            self.kill()
            raise WorkerDied(await self._wait_for_exit()) from None
        self.task_count += 1
        self.grown_bytes = finished.grown_bytes
        return finished.result()

    async def _exchange(
        self, command: Command, on_rows_written: Callable[[int, int], None], lease_result: Callable[[int], int | None]
    ) -> Finished:
        self._send(command)
        while True:
            match load_untrusted(await self._receive()):
                case RowsFinished(first_row, row_count):
                    on_rows_written(first_row, row_count)
                case ResultSlotWanted(size_bytes):
                    self._send(ResultSlot(lease_result(size_bytes)))
                case (bytes() as reply, list() as buffers):
                    finished = load_untrusted(reply, [self._buffer(buffer) for buffer in buffers])
                    if isinstance(finished, Finished):
                        return finished
                    raise TypeError(f"a result of type {type(finished).__name__}")
                case other:
                    raise TypeError(f"a message of type {type(other).__name__}")

    def _buffer(self, buffer: Any) -> Any:
        """A buffer of a result: its bytes, or the view of its (offset, size) in the arena."""
        return buffer if isinstance(buffer, bytes) else self._arena.view(*buffer)

    def kill(self) -> None:
        """Kill the process."""
        if not self._send_kill():
            asyncio.get_running_loop().call_later(FULL_SECONDS, self.kill)

    def retire(self) -> None:
        """Close the channel, so that the process ends by itself; it must be idle."""
        self._writer.close()

    def note_exit(self, code: int | None) -> None:
        """The process has ended, with this exit code; None: unknown."""
        self.is_alive = False
        if not self._exit_code.done():
            self._exit_code.set_result(code)

    def on_exit(self, callback: Callable[[], None]) -> None:
        """Have this called when the process has ended."""
        self._exit_code.add_done_callback(lambda _: callback())

    async def _wait_for_exit(self) -> int | None:
        self.is_alive = False
        self._writer.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_CODE_SECONDS):
                return await asyncio.shield(self._exit_code)
        return None

    def _send(self, message: Any) -> None:
        data = dump(message, self._arena)
        self._writer.write(HEAD.pack(len(data)) + data)

    async def _receive(self) -> bytes:
        (size_bytes,) = HEAD.unpack(await self._reader.readexactly(HEAD.size))
        if size_bytes > _MAX_MESSAGE_BYTES:
            raise ValueError(
                f"a worker announces a message of {size_bytes} bytes; at most {_MAX_MESSAGE_BYTES} are allowed"
            )
        return await self._reader.readexactly(size_bytes)
