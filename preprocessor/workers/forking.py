"""The fork server: the process from which workers are forked.

It holds the imported libraries and the loaded model. A worker is then a fork: ready in milliseconds, and all pages that it does
not change are shared. The fork server starts no thread and runs no native code on a caller's file, so that it is always safe to
fork. It ends with the service: when the control socket closes, or when the service is killed.

There are two ways to start one. `fork_current_process` forks the service itself, before it has threads: the two then share
libraries and model too. `main` runs in a fresh interpreter, which imports and loads them again.

    service → fork server   `Setup` first, to a fresh one; then `Fork` and `Kill`
    fork server → service   `Ready`; then `Forked` and later `Exited` for every worker, or `Exited` alone where it cannot fork
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
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from preprocessor.config.machine import use_one_thread
from preprocessor.workers.heap import give_back_freed_memory
from preprocessor.workers.preloading import load_ahead
from preprocessor.workers.rows_window import RowsWindow
from preprocessor.workers.sandbox import WorkerLimits, enter_sandbox
from preprocessor.workers.stop_flag import open_flag

MAX_MESSAGE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Setup:
    """Comes with one descriptor: of a file that holds the pickled model."""

    model_bytes: int
    log_level: int


@dataclass(frozen=True, slots=True)
class Ready:
    pass


@dataclass(frozen=True, slots=True)
class Fork:
    """Comes with descriptors: the worker's ends of its channel and its supply, and its stop flag."""

    worker_id: int
    arena_bytes: int
    unit_bytes: int
    limits: WorkerLimits


@dataclass(frozen=True, slots=True)
class Kill:
    worker_id: int


@dataclass(frozen=True, slots=True)
class Forked:
    """A worker runs."""

    worker_id: int
    process_id: int


@dataclass(frozen=True, slots=True)
class Exited:
    """A worker has ended. The code is that of `os.waitstatus_to_exitcode`: a signal's number is negative."""

    worker_id: int
    code: int


@dataclass(slots=True)
class ForkedProcess:
    """A fork server that is a fork of this process, with those methods of `subprocess.Popen` that are needed."""

    process_id: int
    returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; returns its exit code.

        Raises:
            subprocess.TimeoutExpired: It has not ended within `timeout` seconds.
        """
        if self.returncode is None:
            descriptor = os.pidfd_open(self.process_id)
            try:
                poll = select.poll()  # `select.select` takes no descriptor above 1023
                poll.register(descriptor, select.POLLIN)
                if timeout is not None and not poll.poll(timeout * 1e3):
                    raise subprocess.TimeoutExpired("fork server", timeout)
                _, status = os.waitpid(self.process_id, 0)
            finally:
                os.close(descriptor)
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.process_id, signal.SIGKILL)


def fork_current_process(model: Any) -> tuple[ForkedProcess, socket.socket] | None:
    """Fork a fork server that has what is imported and loaded here.

    Returns:
        The process and the control socket to it; None if this process has threads, which makes it unsafe to fork.
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
        os.setsid()  # a terminal sends Ctrl-C to the service alone
        _serve_forks(theirs, model)
        code = 0
    finally:
        if code:
            logging.getLogger(__name__).exception("the fork server ends")
        os._exit(code)


def main(descriptor: int) -> None:
    """Run a fork server in a fresh interpreter, until the service closes the control socket."""
    control = socket.socket(fileno=descriptor)
    message, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, 1)
    setup: Setup = pickle.loads(message)
    logging.basicConfig(level=setup.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with mmap.mmap(descriptors[0], setup.model_bytes, access=mmap.ACCESS_READ) as pickled:
        model = pickle.loads(pickled)
    os.close(descriptors[0])
    _serve_forks(control, model)


def _prepare_to_fork() -> None:
    """Free what is unused, and keep the garbage collector from writing to the rest, so that forks share its pages."""
    give_back_freed_memory()  # otherwise each fork would keep what loading has left over
    gc.freeze()  # a collection writes to every object that it visits


def _serve_forks(control: socket.socket, model: Any) -> None:
    """Carry out `Fork` and `Kill` until the service is gone, which a read from the control socket or a write to it shows."""
    use_one_thread()
    # Only the service reacts to a stop, and lets tasks end first. Some send the signal to every process, as systemd does.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    wakeup, alarm = socket.socketpair()
    wakeup.setblocking(False)
    alarm.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(alarm.fileno(), warn_on_full_buffer=False)
    load_ahead(model)
    _prepare_to_fork()
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
                message, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, 3)
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
                except OSError as error:  # out of processes or memory; the service tries again
                    logging.getLogger(__name__).error("no worker can be forked: %s", error)
                    control.send(pickle.dumps(Exited(command.worker_id, 1)))
                    process_id = -1
                if process_id == 0:
                    for inherited in (control, wakeup, alarm):
                        inherited.close()
                    selector.close()
                    _run_worker(worker, model, command, *descriptors)
                if process_id > 0:
                    workers[process_id] = command.worker_id
                    control.send(pickle.dumps(Forked(command.worker_id, process_id)))
                for descriptor in descriptors:
                    os.close(descriptor)


def _run_worker(
    code_of_workers: ModuleType,
    model: Any,
    command: Fork,
    channel: int,
    supply: int,
    flag: int,
) -> None:
    """Run a worker in this fork; never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        to = code_of_workers.Connections(
            socket.socket(fileno=channel),
            socket.socket(fileno=supply),
            RowsWindow(command.arena_bytes, command.unit_bytes),
            open_flag(flag),
        )
        enter_sandbox(command.limits, (channel, supply))
        code_of_workers.serve(to, model, command.limits.kept_bytes)
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
