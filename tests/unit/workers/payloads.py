"""Payloads that do to a worker what hostile files may do. They run in real worker processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest
from preprocessor.types.plan import Plan
from preprocessor.types.request import Modality, PreparationRequest
from preprocessor.workers.sandbox import anonymous_bytes

Checkpoint = Callable[[], None]
Tell = Callable[[int], None]
"""Sends a positive number to the test, at once: as a count of finished rows."""

GO = signal.SIGUSR1


@dataclass(frozen=True)
class NoModel:
    """A model that plans nothing. Workers that are forked with it have this module loaded, and with it every payload here."""

    modalities: frozenset[Modality] = frozenset()

    def check_arguments(self, arguments: Mapping[str, Any]) -> None:
        assert not arguments

    def plan(self, request: PreparationRequest, limits: Limits, check: Checkpoint, memory: Any) -> Plan:
        raise InvalidRequest("there is no model")


NO_MODEL: Any = NoModel()


@dataclass(frozen=True)
class Step(ABC):
    """A payload. Its fields reach the worker by pickle, as those of real payloads do."""

    expected_rows: ClassVar[range] = range(1 << 60)
    written_bytes: ClassVar[range] = range(0)
    read_bytes: ClassVar[tuple[range, ...]] = ()

    def check_outcome(self, outcome: object) -> None:
        assert outcome is not self

    def run(self, model: Any, arena: Any, check: Checkpoint, on_rows_written: Callable[[int, int], None]) -> Any:
        told = 0

        def tell(number: int) -> None:
            nonlocal told
            on_rows_written(told, number)
            told += number

        return self.do(check, tell)

    @abstractmethod
    def do(self, check: Checkpoint, tell: Tell) -> Any:
        """What `run` returns."""


HELD = threading.Event()


@dataclass(frozen=True)
class WaitWhileHeld(Step):
    """Tell the process id, and return once `HELD` is set, of this process: for workers that are threads."""

    def do(self, check: Checkpoint, tell: Tell) -> None:
        tell(os.getpid())
        HELD.wait()


@dataclass(frozen=True)
class TellProcess(Step):
    """Return the id of the process that it runs in."""

    def do(self, check: Checkpoint, tell: Tell) -> int:
        return os.getpid()


@dataclass(frozen=True)
class Die(Step):
    """Tell the process id, and end the process: by the signal -code, or by an exit code of 0 or above."""

    code: int

    def do(self, check: Checkpoint, tell: Tell) -> None:
        tell(os.getpid())
        if self.code >= 0:
            os._exit(self.code)
        os.kill(os.getpid(), -self.code)


@dataclass(frozen=True)
class ReadNothing(Step):
    """A segmentation fault in native code."""

    def do(self, check: Checkpoint, tell: Tell) -> bytes:
        return ctypes.string_at(8)


@dataclass(frozen=True)
class TakeMemory(Step):
    size_bytes: int

    def do(self, check: Checkpoint, tell: Tell) -> int:
        return len(bytearray(self.size_bytes))


@dataclass(frozen=True)
class UseMemory(Step):
    """Fill a block and free it; returns how much more the process holds than before."""

    block_bytes: int

    def do(self, check: Checkpoint, tell: Tell) -> int:
        before = anonymous_bytes()
        block = np.ones(self.block_bytes, np.uint8)
        del block
        return anonymous_bytes() - before


@dataclass(frozen=True)
class Spin(Step):
    """Tell the process id, and use CPU until it is told to stop; or, with `ignores_stop`, for ever."""

    ignores_stop: bool = False

    def do(self, check: Checkpoint, tell: Tell) -> None:
        tell(os.getpid())
        while True:
            if not self.ignores_stop:
                check()


@dataclass(frozen=True)
class WaitForSignal(Step):
    """Tell the process id, and wait for `GO`."""

    def do(self, check: Checkpoint, tell: Tell) -> str:
        signals: list[int] = []
        signal.signal(GO, lambda number, _: signals.append(number))
        tell(os.getpid())
        while not signals:
            check()
            time.sleep(0.001)
        return "seen"


@dataclass(frozen=True)
class MakeArray(Step):
    size_bytes: int

    def do(self, check: Checkpoint, tell: Tell) -> np.ndarray[Any, Any]:
        return np.arange(self.size_bytes, dtype=np.uint8)


@dataclass(frozen=True)
class Fail(Step):
    def do(self, check: Checkpoint, tell: Tell) -> None:
        raise ZeroDivisionError("secret detail")


@dataclass(frozen=True)
class Unsendable(Step):
    """No message can hold it."""

    lock: Any = field(default_factory=threading.Lock)

    def do(self, check: Checkpoint, tell: Tell) -> None:
        raise AssertionError("it was sent")


@dataclass(frozen=True)
class TellLimits(Step):
    """Tell the process id, and return limits of the process."""

    def do(self, check: Checkpoint, tell: Tell) -> dict[str, int]:
        tell(os.getpid())
        return {
            "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
            "files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        }


@dataclass(frozen=True)
class Babble(Step):
    """Write a malformed message to the service."""

    garbage: bytes

    def do(self, check: Checkpoint, tell: Tell) -> None:
        write_to_channel(self.garbage)
        signal.pause()


def write_to_channel(data: bytes) -> None:
    """Write to every descriptor of the process above the standard streams; all but the channel are read-only."""
    for descriptor in range(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
        with contextlib.suppress(OSError):
            os.write(descriptor, data)
