"""Services that start in a quarter of the CPU time: forks of a process that has imported and loaded what `serve` does first.

Most of a start's four seconds go into importing torch and transformers and into loading `qwen3-vl`. For a test that is about
neither the start nor the memory of a process, that is done once: this module, run as a program, does it and then forks. What runs
in a fork is `preprocessor serve` from its command line on.

    tests → program    arguments and environment, with descriptors for standard error and for what follows
    program → tests    the service's process id, and when it has ended its exit status: a line each
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from preprocessor.config.machine import SINGLE_THREADED

_MAX_MESSAGE_BYTES = 1 << 16


class WarmProcess:
    """A service that was forked, with those methods of `subprocess.Popen` that are needed."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], error_descriptor: int) -> None:
        """Start `preprocessor` with these arguments.

        Args:
            environment: All of it.
            error_descriptor: Of its standard error; stays the caller's to close.
        """
        ours, theirs = os.pipe()
        message = pickle.dumps((list(arguments), dict(environment)))
        try:
            socket.send_fds(_program()[0], [message], [error_descriptor, theirs])
        finally:
            os.close(theirs)
        self._said = os.fdopen(ours, "rb", buffering=0)
        first = self._said.readline()
        assert first, "what forks services has ended, and has said why on standard error"
        self.pid = int(first)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            readable, _, _ = select.select([self._said], [], [], timeout)
            if not readable:
                raise subprocess.TimeoutExpired("preprocessor", timeout or 0.0)
            self.returncode = int(self._said.readline())
            self._said.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@functools.cache
def _program() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """The program and the socket to it, with which it ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        program = subprocess.Popen(
            [sys.executable, "-m", "tests.warm_service", str(theirs.fileno())],
            cwd=Path(__file__).parents[1],
            env={**os.environ, **SINGLE_THREADED},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    return ours, program


def _load() -> None:
    """Import and load as `preprocessor.cli.serve` does, and no more: a process with gRPC has threads, and cannot be forked."""
    gc.disable()
    from preprocessor.cli import serve  # noqa: F401
    from preprocessor.models import registry
    from preprocessor.workers import fork_server, forking  # noqa: F401
    from tests.loading import build_once

    vars(registry).update(build_tokenizer=build_once, load_model=functools.cache(registry.load_model))
    registry.load_model("qwen3-vl", "auto", "auto")
    gc.freeze()
    gc.enable()
    assert len(list(Path("/proc/self/task").iterdir())) == 1


def _serve_starts(control: socket.socket) -> int:
    """Fork for every message; returns in each fork once its service has ended, and here when nobody is left to ask."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, _MAX_MESSAGE_BYTES, 2)
        if not message:
            return 0
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        if os.fork() == 0:
            control.close()
            return _run(*pickle.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _run(arguments: list[str], environment: dict[str, str], error: int, said: int) -> int:
    """Run the service in one more fork, and say how it ends: only its parent learns that."""
    service = os.fork()
    if service == 0:
        os.close(said)
        os.dup2(error, sys.stderr.fileno())
        os.close(error)
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None  # found anew, in this environment
        from preprocessor.__main__ import main

        return main(arguments)
    os.close(error)
    os.write(said, f"{service}\n".encode())
    _, status = os.waitpid(service, 0)
    with contextlib.suppress(BrokenPipeError):
        os.write(said, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    _load()
    sys.exit(_serve_starts(socket.socket(fileno=int(sys.argv[1]))))
