"""Worker processes as the service sees them: the zygote that forks them, and one handle a worker.

A worker's death shows twice: its channel ends, and the zygote tells how it died. Both are awaited, so that whoever ran the job
learns the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from preprocessor.config.machine import SINGLE_THREADED
from preprocessor.models.loaded import LoadedModel
from preprocessor.workers import fork_server
from preprocessor.workers.arena import Arena
from preprocessor.workers.channel import (
    HEAD,
    Command,
    Finished,
    ResultSlot,
    ResultSlotWanted,
    RowsWritten,
    dump,
    load_untrusted,
)
from preprocessor.workers.sandbox import WorkerLimits

logger = logging.getLogger(__name__)

START_SECONDS = 120.0  # imports from a cold disk, on a busy machine
_REAP_SECONDS = 5.0
_EXIT_SECONDS = 0.5
_FULL_SECONDS = 0.01
_MAX_MESSAGE_BYTES = 1 << 28  # the packet tables of a clip with a million frames take a tenth


class WorkerDied(Exception):
    """The worker's process ended before its job did.

    Attributes:
        code: As `fork_server.Exited.code`; None where nobody could say.
    """

    def __init__(self, code: int | None) -> None:
        name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        super().__init__(f"a worker process ended ({name})")
        self.code = code


class ProcessWorker:
    """One worker process.

    Attributes:
        slot: Its place in `Arena.control`.
        job_count: Jobs done.
        grown_bytes: Memory it held after its last job beyond what it was forked with.
        end_reason: Why it will have ended: "lost" unless its owner says otherwise.
    """

    def __init__(self, worker_id: int, slot: int, arena: Arena, home: ForkServer) -> None:
        self.worker_id = worker_id
        self.slot = slot
        self._arena = arena
        self.task_count = 0
        self.grown_bytes = 0
        self.end_reason = "lost"
        self.is_alive = True
        self._home = home
        self._exit_code: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()

    async def connect(self, channel: socket.socket) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(sock=channel)

    async def run(
        self, command: Command, rows_written: Callable[[int, int], None], lease_result: Callable[[int], int | None]
    ) -> Any:
        """Have one job done.

        Args:
            rows_written: Told of finished rows.
            make_room: Leases a range of the arena for a result of that many bytes; None: there is none.
        Raises:
            WorkerDied: The process ended.
            PreprocessorError: The job raised it.
            TaskFailed: The job failed in a way that no request should be able to cause.
        """
        try:
            finished = await self._converse(command, rows_written, lease_result)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise WorkerDied(await self._reaped()) from None
        except Exception:  # it said what no worker says: it can no longer be believed
            logger.exception("a worker's message cannot be read; the worker is ended")
            self.kill()
            raise WorkerDied(await self._reaped()) from None
        self.task_count += 1
        self.grown_bytes = finished.grown_bytes
        return finished.result()

    async def _converse(
        self, command: Command, rows_written: Callable[[int, int], None], lease_result: Callable[[int], int | None]
    ) -> Finished:
        self._send(command)
        while True:
            match load_untrusted(await self._receive()):
                case RowsWritten(first_row, row_count):
                    rows_written(first_row, row_count)
                case ResultSlotWanted(size_bytes):
                    self._send(ResultSlot(lease_result(size_bytes)))
                case (bytes() as reply, list() as buffers):
                    finished = load_untrusted(reply, [self._buffer(place) for place in buffers])
                    if isinstance(finished, Finished):
                        return finished
                    raise TypeError(f"a result of type {type(finished).__name__}")
                case other:
                    raise TypeError(f"a message of type {type(other).__name__}")

    def _buffer(self, place: Any) -> Any:
        """A result's buffer: bytes as they are, a place in the arena as a view."""
        return place if isinstance(place, bytes) else self._arena.view(*place)

    def kill(self) -> None:
        """End the process now."""
        if not self._home.send(fork_server.Kill(self.worker_id)):
            asyncio.get_running_loop().call_later(_FULL_SECONDS, self.kill)

    def retire(self) -> None:
        """Let the process end by itself; it must be idle."""
        self._writer.close()

    def note_exit(self, code: int | None) -> None:
        self.is_alive = False
        if not self._exit_code.done():
            self._exit_code.set_result(code)

    def on_exit(self, callback: Callable[[], None]) -> None:
        """Call once the process has ended."""
        self._exit_code.add_done_callback(lambda _: callback())

    async def _reaped(self) -> int | None:
        self.is_alive = False
        self._writer.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REAP_SECONDS):
                return await asyncio.shield(self._exit_code)
        return None

    def _send(self, message: Any) -> None:
        data = dump(message, self._arena)
        self._writer.write(HEAD.pack(len(data)) + data)

    async def _receive(self) -> bytes:
        (size_bytes,) = HEAD.unpack(await self._reader.readexactly(HEAD.size))
        if size_bytes > _MAX_MESSAGE_BYTES:
            raise ValueError(
                f"a worker announces a message of {size_bytes} bytes; at most {_MAX_MESSAGE_BYTES} make sense"
            )
        return await self._reader.readexactly(size_bytes)


class ForkServer:
    """The process that forks workers; see `fork_server`. Call all of it from one event loop.

    Args:
        forked: A zygote that is a fork of this process; None starts a fresh one.
    Attributes:
        lost: Set when the process has ended; its workers end with it.
    """

    def __init__(
        self,
        model: LoadedModel,
        forked: tuple[fork_server.ForkedProcess, socket.socket] | None = None,
    ) -> None:
        self.lost = asyncio.Event()
        self._model = model
        self._forked = forked
        self._ids = itertools.count(1)
        self._workers: dict[int, ProcessWorker] = {}
        self._is_closed = False

    async def start(self) -> None:
        """Start the process and return once it can fork.

        Raises:
            RuntimeError: It ended, or did not get ready in time.
        """
        loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._process: fork_server.ForkedProcess | subprocess.Popen[bytes]
        if self._forked is not None:
            self._process, self._control = self._forked
        else:
            self._process, self._control = self._start_fresh()
        self._control.setblocking(False)
        loop.add_reader(self._control, self._receive)
        if self._forked is None:
            model_file = await asyncio.to_thread(_pickled, self._model)
            self.send(fork_server.Setup(os.fstat(model_file).st_size, logging.getLogger().level), model_file)
            os.close(model_file)
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._ready
        except TimeoutError as error:
            self.close()
            raise RuntimeError(f"the workers' process was not ready within {START_SECONDS:g} seconds") from error

    def _start_fresh(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", f"from preprocessor.workers.fork_server import main; main({theirs.fileno()})"],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={
                    **os.environ,
                    **SINGLE_THREADED,
                    "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
                },
                start_new_session=True,  # a terminal's Ctrl-C is for the service alone
            )
        return process, control

    async def fork(self, slot: int, arena: Arena, limits: WorkerLimits) -> ProcessWorker:
        """A new worker."""
        worker = ProcessWorker(next(self._ids), slot, arena, self)
        ours, theirs = socket.socketpair()
        with theirs:
            command = fork_server.Fork(worker.worker_id, slot, arena.size_bytes, limits)
            while not self.send(command, theirs.fileno(), arena.descriptor):  # noqa: ASYNC110 - it reads at once or is lost
                await asyncio.sleep(_FULL_SECONDS)
        self._workers[worker.worker_id] = worker
        await worker.connect(ours)
        if self.lost.is_set():  # it ended meanwhile, and will report no exit
            worker.note_exit(None)
        return worker

    def send(self, message: Any, *descriptors: int) -> bool:
        """Send a message, or say that the socket holds as many as it can."""
        if self._is_closed:
            return True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `_receive` learns of the end by itself
            try:
                socket.send_fds(self._control, [pickle.dumps(message)], descriptors)
            except BlockingIOError:
                return False
        return True

    def close(self) -> None:
        """End the process and with it every worker."""
        if self._is_closed:
            return
        self._is_closed = True
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_SECONDS)  # it ends when its socket closes
        self._process.kill()
        self._process.wait()
        self.lost.set()
        for worker in self._workers.values():
            worker.note_exit(None)

    def _receive(self) -> None:
        try:
            data = self._control.recv(fork_server.MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self.close()
            code = self._process.returncode
            if not self._ready.done():
                self._ready.set_exception(RuntimeError(f"the workers' process ended at its start (exit code {code})"))
                return
            logger.error("the workers' process ended (exit code %s); all workers are lost", code)
            return
        match pickle.loads(data):
            case fork_server.Ready():
                self._ready.set_result(None)
            case fork_server.Exited(worker_id, code):
                self._workers.pop(worker_id).note_exit(code)


def _pickled(model: LoadedModel) -> int:
    """The model in a file without a name."""
    descriptor = os.memfd_create("preprocessor-model")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        pickle.dump(model, file, 5)
    return descriptor
