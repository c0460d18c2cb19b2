"""The process from which workers are forked.

It holds the imported libraries and the loaded model. A worker is then a fork: ready in milliseconds, and all that it does not
change is one copy in memory. It runs no thread and no native code on anybody's file, so that a fork of it is always sound,
and it ends with the service: when the control socket closes, or when the service is killed.

There are two ways to one. `fork_current_process` forks the service itself, before it has threads: the two then share libraries
and model too. `main` is for a fresh interpreter, which imports and loads them again.

    service → zygote   `Setup` first, to a fresh one; then `Fork` and `Kill`
    zygote → service   `Ready`, then `Exited` for every worker
"""

from __future__ import annotations

import contextlib
import gc
import logging
import mmap
import os
import pickle
import select
import selectors
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocessor.config.machine import use_one_thread
from preprocessor.workers.arena import Arena
from preprocessor.workers.heap import give_back_freed_memory
from preprocessor.workers.sandbox import WorkerLimits, enter_sandbox

MAX_MESSAGE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Setup:
    """With one descriptor: of a file that holds the pickled model."""

    model_bytes: int
    log_level: int


@dataclass(frozen=True, slots=True)
class Ready:
    pass


@dataclass(frozen=True, slots=True)
class Fork:
    """With two descriptors: the worker's end of its channel, and its arena's."""

    worker_id: int
    slot: int
    arena_bytes: int
    limits: WorkerLimits


@dataclass(frozen=True, slots=True)
class Kill:
    worker_id: int


@dataclass(frozen=True, slots=True)
class Exited:
    """A worker's end, as `os.waitstatus_to_exitcode` gives it: below 0 the signal that ended it."""

    worker_id: int
    code: int


@dataclass(slots=True)
class ForkedProcess:
    """A zygote that is a fork of this process; what is needed of `subprocess.Popen`'s manners."""

    process_id: int
    returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended.

        Raises:
            subprocess.TimeoutExpired: It has not, within `timeout` seconds.
        """
        if self.returncode is None:
            descriptor = os.pidfd_open(self.process_id)
            try:
                if timeout is not None and not select.select([descriptor], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired("zygote", timeout)
                _, status = os.waitpid(self.process_id, 0)
            finally:
                os.close(descriptor)
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.process_id, signal.SIGKILL)


def fork_current_process(model: Any) -> tuple[ForkedProcess, socket.socket] | None:
    """Fork a zygote with what is imported and loaded here, and the control socket to it.

    Returns:
        None where this process has threads: a fork of it would not be sound.
    """
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        return None
    _prepare_to_fork()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process_id = os.fork()
    if process_id:
        theirs.close()
        return ForkedProcess(process_id), ours
    code = 1
    try:
        ours.close()
        os.setsid()  # a terminal's Ctrl-C is for the service alone
        _serve_forks(theirs, model)
        code = 0
    finally:
        if code:
            logging.getLogger(__name__).exception("the workers' process ends")
        os._exit(code)


def main(descriptor: int) -> None:
    """Be a zygote in a fresh interpreter, until the service closes the control socket."""
    control = socket.socket(fileno=descriptor)
    message, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, 1)
    setup: Setup = pickle.loads(message)
    logging.basicConfig(level=setup.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with mmap.mmap(descriptors[0], setup.model_bytes, access=mmap.ACCESS_READ) as pickled:
        model = pickle.loads(pickled)
    os.close(descriptors[0])
    _prepare_to_fork()
    _serve_forks(control, model)


def _prepare_to_fork() -> None:
    """Have in memory only what is in use, and let nobody write to it."""
    give_back_freed_memory()  # each fork would hold, one by one, what loading has left over
    gc.freeze()  # a collection writes to every object that it looks at


def _serve_forks(control: socket.socket, model: Any) -> None:
    """Fork and kill as told, until the service is gone: its end shows wherever something is read from it, or told it."""
    use_one_thread()
    # A stop is for the service alone, which lets work end first; some send its signal to every process (systemd does).
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    wakeup, alarm = socket.socketpair()
    wakeup.setblocking(False)
    alarm.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(alarm.fileno(), warn_on_full_buffer=False)
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            control.send(pickle.dumps(Ready()))
            _take_commands(control, wakeup, alarm, model)
    finally:
        signal.set_wakeup_fd(-1)  # the sockets behind it are about to close


def _take_commands(control: socket.socket, wakeup: socket.socket, alarm: socket.socket, model: Any) -> None:
    from preprocessor.workers import worker

    workers: dict[int, int] = {}  # process id → worker id
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(wakeup, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is wakeup:
                    with contextlib.suppress(BlockingIOError):
                        wakeup.recv(4096)
                    _report_ends(control, workers)
                    continue
                message, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, 2)
                if not message:
                    return
                command: Fork | Kill = pickle.loads(message)
                if isinstance(command, Kill):
                    for process_id, worker_id in workers.items():
                        if worker_id == command.worker_id:
                            os.kill(process_id, signal.SIGKILL)
                    continue
                try:
                    process_id = os.fork()
                except OSError as error:  # no more processes or memory allowed; it may be otherwise soon
                    logging.getLogger(__name__).error("no worker can be forked: %s", error)
                    control.send(pickle.dumps(Exited(command.worker_id, 1)))
                    process_id = -1
                if process_id == 0:
                    for inherited in (control, wakeup, alarm):
                        inherited.close()
                    selector.close()
                    _be_worker(worker.task, descriptors[0], descriptors[1], model, command)
                if process_id > 0:
                    workers[process_id] = command.worker_id
                for descriptor in descriptors:
                    os.close(descriptor)


def _be_worker(task: Callable[..., None], channel: int, arena: int, model: Any, command: Fork) -> None:
    """The life of a fork; never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        shared = Arena(arena, command.arena_bytes)
        enter_sandbox(command.limits)
        task(socket.socket(fileno=channel), shared, model, command.slot, command.limits.kept_bytes)
        code = 0
    except (BrokenPipeError, ConnectionResetError):
        code = 0  # the service is gone
    finally:
        if code:
            logging.getLogger(__name__).exception("a worker ends")
        os._exit(code)


def _report_ends(control: socket.socket, workers: dict[int, int]) -> None:
    while workers:
        process_id, status = os.waitpid(-1, os.WNOHANG)
        if not process_id:
            return
        control.send(pickle.dumps(Exited(workers.pop(process_id), os.waitstatus_to_exitcode(status))))
