"""Payloads that do to a worker what hostile files may do. They run in real worker processes."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preprocessor.workers.sandbox import anonymous_bytes

Checkpoint = Callable[[], None]


@dataclass(frozen=True)
class Step(ABC):
    """A payload. Its fields reach the worker by pickle, as those of real payloads do."""

    def run(self, model: Any, arena: Any, check: Checkpoint, on_rows_written: Callable[[int, int], None]) -> Any:
        return self.do(check)

    @abstractmethod
    def do(self, check: Checkpoint) -> Any:
        """What `run` returns."""


@dataclass(frozen=True)
class TellProcess(Step):
    """Return the id of the process that it runs in."""

    def do(self, check: Checkpoint) -> int:
        return os.getpid()


@dataclass(frozen=True)
class Die(Step):
    """End the process: by the signal -code, or by an exit code of 0 or above. Counts its tries in a file."""

    code: int
    tries: Path
    deadly_tries: int = 1000

    def do(self, check: Checkpoint) -> int:
        with self.tries.open("a") as file:
            file.write("x")
        tried = self.tries.stat().st_size
        if tried <= self.deadly_tries:
            if self.code >= 0:
                os._exit(self.code)
            os.kill(os.getpid(), -self.code)
        return tried


@dataclass(frozen=True)
class ReadNothing(Step):
    """A segmentation fault in native code."""

    def do(self, check: Checkpoint) -> bytes:
        return ctypes.string_at(8)


@dataclass(frozen=True)
class TakeMemory(Step):
    size_bytes: int

    def do(self, check: Checkpoint) -> int:
        return len(bytearray(self.size_bytes))


@dataclass(frozen=True)
class UseMemory(Step):
    """Fill a block and free it; returns how much more the process holds than before."""

    block_bytes: int

    def do(self, check: Checkpoint) -> int:
        before = anonymous_bytes()
        block = np.ones(self.block_bytes, np.uint8)
        del block
        return anonymous_bytes() - before


@dataclass(frozen=True)
class Spin(Step):
    """Use CPU until it is told to stop; or, with `ignores_stop`, for ever. Writes its process id to a file when it begins."""

    began: Path
    ignores_stop: bool = False

    def do(self, check: Checkpoint) -> None:
        self.began.write_text(str(os.getpid()))
        while True:
            if not self.ignores_stop:
                check()


@dataclass(frozen=True)
class WaitFor(Step):
    """Wait until a file exists."""

    path: Path
    began: Path

    def do(self, check: Checkpoint) -> str:
        self.began.write_text(str(os.getpid()))
        while not self.path.exists():
            check()
            time.sleep(0.001)
        return "seen"


@dataclass(frozen=True)
class MakeArray(Step):
    size_bytes: int

    def do(self, check: Checkpoint) -> np.ndarray[Any, Any]:
        return np.arange(self.size_bytes, dtype=np.uint8)


@dataclass(frozen=True)
class Fail(Step):
    def do(self, check: Checkpoint) -> None:
        raise ZeroDivisionError("secret detail")


@dataclass(frozen=True)
class TellLimits(Step):
    """The limits of the process, and the errors of what it may not do."""

    def do(self, check: Checkpoint) -> dict[str, Any]:
        limits = {
            "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
            "files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
            "niceness": os.nice(0),
        }
        attempts: tuple[tuple[str, Callable[[], object]], ...] = (
            ("socket", lambda: socket.socket().close()),
            ("exec", lambda: os.execv("/bin/true", ["true"])),
        )
        for name, attempt in attempts:
            try:
                attempt()
            except OSError as error:
                limits[name] = error.errno or 0
        return limits


@dataclass(frozen=True)
class Babble(Step):
    """Write a malformed message to every socket of the process."""

    garbage: bytes

    def do(self, check: Checkpoint) -> None:
        for entry in Path("/proc/self/fd").iterdir():
            if str(entry.readlink() if entry.is_symlink() else "").startswith("socket:"):
                os.write(int(entry.name), self.garbage)
        signal.pause()
