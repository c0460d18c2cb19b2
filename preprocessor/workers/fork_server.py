"""The fork server as the service sees it: started, told to fork and kill, and watched.

`forking` is the code of the process itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from preprocessor.config.machine import SINGLE_THREADED
from preprocessor.models.loaded import LoadedModel
from preprocessor.workers import forking, stop_flag
from preprocessor.workers.arena import Arena
from preprocessor.workers.descriptors import FULL_SECONDS
from preprocessor.workers.process import ProcessWorker
from preprocessor.workers.sandbox import WorkerLimits

logger = logging.getLogger(__name__)

_START_SECONDS = 120.0  # imports from a cold disk, on a busy machine
_EXIT_SECONDS = 0.5


class ForkServer:
    """The process that forks workers; see `forking`. Call all methods from one event loop.

    Args:
        forked: A fork server that is a fork of this process, from `forking.fork_current_process`; None starts a fresh one.
    Attributes:
        lost: Set when the process has ended, which ends its workers too.
    """

    def __init__(
        self,
        model: LoadedModel,
        forked: tuple[forking.ForkedProcess, socket.socket] | None = None,
    ) -> None:
        self.lost = asyncio.Event()
        self._model = model
        self._forked = forked
        self._ids = itertools.count(1)
        self._workers: dict[int, ProcessWorker] = {}
        self._is_closed = False

    async def start(self) -> None:
        """Start the process; returns once it can fork.

        Raises:
            RuntimeError: It ended, or was not ready in time.
        """
        loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = loop.create_future()
        self._process: forking.ForkedProcess | subprocess.Popen[bytes]
        if self._forked is not None:
            self._process, self._control = self._forked
        else:
            self._process, self._control = self._start_fresh()
        self._control.setblocking(False)
        loop.add_reader(self._control, self._receive)
        if self._forked is None:
            model_file = await asyncio.to_thread(_pickled, self._model)
            self.send(forking.Setup(os.fstat(model_file).st_size, logging.getLogger().level), model_file)
            os.close(model_file)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._ready
        except TimeoutError as error:
            self.close()
            raise RuntimeError(f"the fork server was not ready within {_START_SECONDS:g} seconds") from error

    def _start_fresh(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", f"from preprocessor.workers.forking import main; main({theirs.fileno()})"],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={
                    **os.environ,
                    **SINGLE_THREADED,
                    "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
                },
                start_new_session=True,  # a terminal sends Ctrl-C to the service alone
            )
        return process, control

    async def fork(self, arena: Arena, limits: WorkerLimits, on_violation: Callable[[str], None]) -> ProcessWorker:
        """Fork a worker.

        Args:
            on_violation: As for `ProcessWorker`.
        Raises:
            OSError: There are no descriptors for its sockets.
        """
        worker_id = next(self._ids)
        with contextlib.ExitStack() as theirs:
            flag, flag_descriptor = stop_flag.make()
            theirs.callback(os.close, flag_descriptor)
            channel, their_channel = socket.socketpair()
            theirs.enter_context(their_channel)
            supply, their_supply = socket.socketpair()
            theirs.enter_context(their_supply)
            command = forking.Fork(worker_id, arena.size_bytes, arena.unit_bytes, limits)
            descriptors = (their_channel.fileno(), their_supply.fileno(), flag_descriptor)
            while not self.send(command, *descriptors):  # noqa: ASYNC110 - it reads soon, or is lost
                await asyncio.sleep(FULL_SECONDS)
        send_kill = functools.partial(self.send, forking.Kill(worker_id))
        worker = ProcessWorker(arena, flag, send_kill, on_violation)
        self._workers[worker_id] = worker
        await worker.connect(channel, supply)
        if self.lost.is_set():  # it ended meanwhile, and will report no exit
            worker.note_exit(None)
        return worker

    def send(self, message: Any, *descriptors: int) -> bool:
        """Send a message; False: the socket is full, try again."""
        if self._is_closed:
            return True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `_receive` notices the end
            try:
                socket.send_fds(self._control, [pickle.dumps(message)], descriptors)
            except BlockingIOError:
                return False
        return True

    def close(self) -> None:
        """End the process, which ends every worker."""
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
            data = self._control.recv(forking.MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self.close()
            code = self._process.returncode
            if not self._ready.done():
                self._ready.set_exception(RuntimeError(f"the fork server ended at its start (exit code {code})"))
                return
            logger.error("the fork server ended (exit code %s), and all workers with it", code)
            return
        match pickle.loads(data):
            case forking.Ready():
                self._ready.set_result(None)
            case forking.Forked(worker_id, process_id):
                self._workers[worker_id].note_start(process_id)
            case forking.Exited(worker_id, code):
                self._workers.pop(worker_id).note_exit(code)


def _pickled(model: LoadedModel) -> int:
    """The descriptor of a file without a name that holds the pickled model."""
    descriptor = os.memfd_create("preprocessor-model")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        pickle.dump(model, file, 5)
    return descriptor
