"""What the local servers share: a process that ends with the one that started it, its start and end, ports and memory for it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

# Run by a Python of its own, which then becomes the server: a `preexec_fn` would run between fork and exec of this
# process, where threads, gRPC's among them, may hold locks. The signal is asked for first and the parent looked at
# second, so a parent that dies in between is noticed too. PR_SET_PDEATHSIG is 1.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
_POLL_SECONDS = 0.05


class SetupError(RuntimeError):
    """A server cannot start here; the text says why, and what to do where that is known."""


class ServerProcess:
    """One server: its process, and all that this starts, in a group of their own. It may be started again after its end.

    Args:
        name: Starts the messages of errors.
        error: What is raised where it does not start.
    """

    def __init__(self, name: str, error: type[SetupError]) -> None:
        self._name = name
        self._error = error
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the process that was started; its group has the same number."""
        return self._started().pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self, command: Sequence[str], environment: Mapping[str, str], log_path: Path) -> None:
        """Start it; it ends with the thread that did.

        Args:
            command: Its first word is a path.
            log_path: Where what it prints is added.
        """
        self._log_path = log_path
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                ending_with_this_process(command),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a ^C for this process is not one for the server; and a group to kill
            )

    def wait_ready(self, is_ready: Callable[[], bool], timeout_seconds: float) -> None:
        """Ask until it is.

        Raises:
            SetupError: of the class that was given: it ended, or was not ready in time. Both with the end of its log.
        """
        process, began_at = self._started(), time.monotonic()
        while not is_ready():
            if process.poll() is not None:
                raise self._error(f"{self._name} ended with status {process.returncode}:\n{self._log_tail()}")
            if time.monotonic() - began_at > timeout_seconds:
                load = os.getloadavg()[0]
                raise self._error(
                    f"{self._name} was not ready in {timeout_seconds:g} s; the machine's load is {load:.1f} on {os.cpu_count()} "
                    f"cores:\n{self._log_tail()}"
                )
            time.sleep(_POLL_SECONDS)

    def kill(self) -> None:
        """End all processes of its group at once, as a crashed machine would. Nothing happens where none was started."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        while self.group_pids():  # its other processes are not this one's children
            time.sleep(0.01)

    def stop(self, patience_seconds: float) -> None:
        """End it as a kubelet does: SIGTERM, time to finish what it has begun, then SIGKILL."""
        process = self._started()
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience_seconds)
        self.kill()  # another process of its may outlive it

    def wait(self) -> int:
        """Block until it ends; its exit status."""
        return self._started().wait()

    def group_pids(self) -> list[int]:
        """Of its processes that live, itself included; others may outlive it."""
        found: list[int] = []
        if self._process is None:
            return found
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                state, _, group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(group) == self._process.pid and state != "Z":
                    found.append(int(entry.name))
        return found

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server is not started; use it as a context manager")
        return self._process

    def _log_tail(self, line_count: int = 300) -> str:
        return "\n".join(self._log_path.read_text(errors="replace").splitlines()[-line_count:])


def ending_with_this_process(command: Sequence[str]) -> list[str]:
    """The command so that its process gets SIGTERM when the thread that started it ends, even by SIGKILL.

    Args:
        command: Its first word is a path.
    """
    return [sys.executable, "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]


def own_shared_memory(byte_size: int) -> list[str]:
    """What to put before a command so that it runs with an empty `/dev/shm` of its own, of that size.

    Raises:
        SetupError: The program for it is not installed.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        raise SetupError("unshare is missing; it gives a server a /dev/shm of its own (Debian: util-linux)")
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    mount = f'mount -t tmpfs -o size={byte_size} tmpfs /dev/shm && exec "$@"'
    return [unshare, "--mount", *as_root, "sh", "-c", mount, "sh"]


@contextlib.contextmanager
def held_ports(count: int) -> Iterator[list[int]]:
    """Free ports of 127.0.0.1 that the kernel gives to nobody else meanwhile: not until a server listens, nor between its starts.

    They are bound here and not listened at, so that connections are refused. Linux lets a server listen beside that, where it
    sets SO_REUSEADDR too: see socket(7).
    """
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind(("127.0.0.1", 0))
        yield [each.getsockname()[1] for each in sockets]
