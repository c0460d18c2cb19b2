"""The process from which workers are forked.

It imports what preprocessing needs and holds the loaded model, once. A worker is then a fork: ready in milliseconds, and all
that it does not change is one copy in memory. It runs no thread and no native code on anybody's file, so that a fork of it is
always sound, and it ends with the service: when the control socket closes, or when the service is killed.

    service → zygote   `Setup` first, then `Fork` and `Kill`
    zygote → service   `Ready`, then `Exited` for every worker
"""

from __future__ import annotations

import contextlib
import gc
import logging
import mmap
import os
import pickle
import selectors
import signal
import socket
from dataclasses import dataclass

from preprocessor.workers.arena import Arena
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


def main(descriptor: int) -> None:
    """Serve forks until the service closes the control socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the service decides when its workers end
    control = socket.socket(fileno=descriptor)
    message, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE_BYTES, 1)
    setup: Setup = pickle.loads(message)
    logging.basicConfig(level=setup.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    import cv2
    import torch

    from preprocessor.workers import worker

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with mmap.mmap(descriptors[0], setup.model_bytes, access=mmap.ACCESS_READ) as pickled:
        model = pickle.loads(pickled)
    os.close(descriptors[0])
    gc.collect()
    gc.freeze()  # a collection in a worker would write to every page that it shares
    wakeup, alarm = socket.socketpair()
    wakeup.setblocking(False)
    alarm.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(alarm.fileno(), warn_on_full_buffer=False)
    control.send(pickle.dumps(Ready()))

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
                order: Fork | Kill = pickle.loads(message)
                if isinstance(order, Kill):
                    for process_id, worker_id in workers.items():
                        if worker_id == order.worker_id:
                            os.kill(process_id, signal.SIGKILL)
                    continue
                process_id = os.fork()
                if process_id == 0:
                    for inherited in (control, wakeup, alarm):
                        inherited.close()
                    selector.close()
                    _be_worker(worker.work, descriptors[0], descriptors[1], model, order)
                workers[process_id] = order.worker_id
                for descriptor in descriptors:
                    os.close(descriptor)


def _be_worker(work, channel: int, arena: int, model, order: Fork) -> None:  # type: ignore[no-untyped-def]
    """The life of a fork; never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        shared = Arena(arena, order.arena_bytes)
        enter_sandbox(order.limits)
        work(socket.socket(fileno=channel), shared, model, order.slot)
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
