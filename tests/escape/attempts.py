"""Escape attempts by code that controls a decoder: each is a payload, run by a real worker in its sandbox.

An attempt that comes to its end has succeeded, and returns what it gained. Modules are loaded here at import, since an attacker
would bring their own code.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import pickle
import resource
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from preprocessor.errors import InvalidRequest
from preprocessor.types.plan import PixelPlan
from preprocessor.types.request import PixelForm
from preprocessor.types.result import PixelReport
from preprocessor.types.timing import Timings
from preprocessor.workers.channel import HEAD, Finished, ResultSlotWanted, RowsFinished
from preprocessor.workers.claims import check_report
from preprocessor.workers.payloads import PixelPayload
from preprocessor.workers.untrusted import encode, to_bytes
from tests.unit.workers.payloads import Checkpoint, NoModel, Step, Tell

_CALL = ctypes.CDLL(None, use_errno=True).syscall
_ENORMOUS_BYTES = 1 << 31
_WAIT_FOR_NOTHING = threading.Event()
_HELD: list[mmap.mmap] = []


@dataclass(frozen=True)
class TakenOver(NoModel):
    """Workers that are forked with it have this module loaded."""


@dataclass(frozen=True)
class Attempt(Step):
    """Tell the process id, then try one thing.

    Attributes:
        name: In `SYSTEM_CALLS`.
        target: Of what is tried: a path, or a process id.
    """

    name: str
    target: str = ""

    def do(self, check: Checkpoint, tell: Tell) -> Any:
        tell(os.getpid())
        return SYSTEM_CALLS[self.name](self.target)


def _connect(port: str) -> str:
    with socket.socket() as connection:
        connection.connect(("127.0.0.1", int(port or 9)))
    return "connected"


def _own_signals(target: str) -> str:
    """Have the kernel send SIGIO to another process when a descriptor of ours becomes ready."""
    for descriptor in range(3, 16):
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETOWN, int(target))
        except OSError:
            continue
        return "owner set"
    return "no descriptor"


def _descriptors(_: str) -> int:
    """Take every descriptor that there is."""
    taken = 0
    while taken < 1 << 16:
        os.dup(0)
        taken += 1
    return taken


SYSTEM_CALLS: dict[str, Callable[[str], Any]] = {
    "read a file": lambda path: os.read(os.open(path, os.O_RDONLY), 64),
    "write a file": lambda path: os.write(os.open(path, os.O_WRONLY | os.O_CREAT), b"x"),
    "list a directory": os.listdir,
    "read another process's memory": lambda process: os.read(os.open(f"/proc/{process}/mem", os.O_RDONLY), 64),
    "take another process's descriptor": lambda process: os.open(f"/proc/{process}/fd/0", os.O_RDWR),
    "take a descriptor by pidfd": lambda process: _CALL(434, int(process), 0),  # pidfd_open
    "read memory by a system call": lambda process: _CALL(310, int(process), 0, 0, 0, 0, 0),  # process_vm_readv, x86_64
    "trace another process": lambda process: _CALL(101, 16, int(process), 0, 0),  # PTRACE_ATTACH, x86_64
    "kill another process": lambda process: os.kill(int(process), signal.SIGKILL),
    "kill the fork server": lambda _: os.kill(os.getppid(), signal.SIGKILL),
    "kill its group": lambda _: os.kill(0, signal.SIGTERM),
    "have another process signalled": _own_signals,
    "limit another process": lambda process: resource.prlimit(int(process), resource.RLIMIT_CPU, (0, 0)),
    "make a socket": lambda _: socket.socket().close(),
    "connect": _connect,
    "fork": lambda _: os.fork(),
    "start a program": lambda _: os.execv("/bin/true", ["true"]),
    "fork by another call": lambda _: _CALL(56, signal.SIGCHLD, 0, 0, 0, 0),  # clone, x86_64
    "make a file in memory": os.memfd_create,
    "map code": lambda _: mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    "mount": lambda path: _CALL(165, path.encode(), b"/tmp", b"tmpfs", 0, 0),  # x86_64
    "set up another ring": lambda _: _CALL(425, 8, 0),  # io_uring_setup
    "leave its session": lambda _: os.setsid(),
    "raise its own priority": lambda _: os.setpriority(os.PRIO_PROCESS, 0, -5),
}


@dataclass(frozen=True)
class TakeDescriptors(Step):
    """Open as many descriptors as there are; returns how many it has got."""

    def do(self, check: Checkpoint, tell: Tell) -> int:
        tell(os.getpid())
        return _descriptors("")


@dataclass(frozen=True)
class RaiseLimit(Step):
    """Raise its limit on memory."""

    def do(self, check: Checkpoint, tell: Tell) -> str:
        tell(os.getpid())
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return "raised"


@dataclass(frozen=True)
class WorkOn(Step):
    """Leave threads behind that use CPU, or only wait; returns the process id."""

    thread_count: int
    is_busy: bool

    def do(self, check: Checkpoint, tell: Tell) -> int:
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        for _ in range(self.thread_count):
            threading.Thread(target=_spin if self.is_busy else _WAIT_FOR_NOTHING.wait, daemon=True).start()
        return os.getpid()


def _spin() -> None:
    while True:
        pass


@dataclass(frozen=True)
class HoldMemory(Step):
    """Keep memory that a worker's own count leaves out; returns the process id."""

    size_bytes: int

    def do(self, check: Checkpoint, tell: Tell) -> int:
        memory = mmap.mmap(-1, self.size_bytes, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        for _ in range(self.size_bytes >> 20):
            memory.write(bytes(1 << 20))
        _HELD.append(memory)
        return os.getpid()


@dataclass(frozen=True)
class ForgeLog(Step):
    """Write over the beginning of the log, and read what the terminal has."""

    def do(self, check: Checkpoint, tell: Tell) -> bytes:
        os.lseek(2, 0, os.SEEK_SET)
        os.write(2, b"forged")
        return os.read(2, 64)


@dataclass(frozen=True)
class Remember(Step):
    """Leave something in the process for later tasks; returns what earlier ones have left there."""

    secret: str

    def do(self, check: Checkpoint, tell: Tell) -> str:
        tell(os.getpid())
        found = os.environ.get("LEFT_BEHIND", "")
        os.environ["LEFT_BEHIND"] = self.secret
        return found


@dataclass(frozen=True)
class Say(Step):
    """Write a message of `MESSAGES` into the channel in place of an answer, and wait to be ended."""

    name: str
    expected_rows = range(100)

    def check_outcome(self, outcome: object) -> None:
        check_report(outcome, PixelPlan((), 100, 1, PixelForm.UINT8, 100, "pyav"))

    def do(self, check: Checkpoint, tell: Tell) -> None:
        _say(MESSAGES[self.name]())


@dataclass(frozen=True, slots=True, eq=False)
class WantMemory(PixelPayload):
    """Want a range of the arena for a report of pixels, which has no arrays."""

    def run(self, model: Any, memory: Any, check: Any, on_rows_written: Any) -> None:
        _say(_said(ResultSlotWanted(2 << 20)))


def _say(messages: list[bytes]) -> None:
    """Write messages into the channel, and wait to be ended."""
    for data in messages:
        for descriptor in range(3, 16):
            try:
                os.write(descriptor, data)
            except OSError:
                continue
    time.sleep(60)


class _Call:
    """What a pickle would call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def _framed(*messages: bytes) -> list[bytes]:
    return [HEAD.pack(len(one)) + one for one in messages]


def _said(*messages: Any) -> list[bytes]:
    """Messages with the bytes of their arrays, as a worker sends them."""
    sent: list[bytes] = []
    for message in messages:
        buffers: list[memoryview] = []
        value = encode(message, buffers)
        sent += [*_framed(to_bytes(value, [len(buffer) for buffer in buffers])), *map(bytes, buffers)]
    return sent


def _ended(outcome: Any) -> list[bytes]:
    return _said(Finished(outcome, None))


def _text(text: str, places: str = "[]") -> list[bytes]:
    return _framed(f"[{text},{places}]".encode())


def _bad_error() -> InvalidRequest:
    return InvalidRequest("x", reason="not a reason\n")


_REPORT = '["Finished",["PixelReport",["Timings",{},1,["list"]],["tuple"],%s],null,0]'

MESSAGES: dict[str, Callable[[], list[bytes]]] = {
    "noise": lambda: [os.urandom(64)],
    "an enormous message": lambda: [struct.pack("<I", _ENORMOUS_BYTES)],
    "a message of almost the most bytes": lambda: _framed(b"[" * (7 << 20)),
    "a pickle that calls": lambda: _framed(pickle.dumps(_Call())),
    "a pickle that never ends": lambda: _framed(b"\x80\x05" + b"N0" * 1000),
    "a number of a million digits": lambda: _text("1" * 1_000_000),
    "text that is none": lambda: _framed(b'["\xff",[]]'),
    "nesting without an end": lambda: _text('["list",' * 5000 + "1" + "]" * 5000),
    "a class that is not data": lambda: _text('["Model",1]'),
    "a function": lambda: _text('["system","true"]'),
    "a class with too few values": lambda: _text('["RowsFinished",1]'),
    "an object before it is made": lambda: _text('["Finished",["again",0],null,0]'),
    "an object that is not there": lambda: _text('["again",-1]'),
    "a kind of pixels that is none": lambda: _text('["PixelForm","all"]'),
    "an array of memory that nobody has written": lambda: _text(_REPORT % '["array","uint8",[4096],0]', "[0]"),
    "an array of objects": lambda: [*_text(_REPORT % '["array","object",[1],0]', "[8]"), bytes(8)],
    "an array that is too long": lambda: _text(_REPORT % '["array","uint8",[1099511627776,0],0]', "[0]"),
    "an array of less than nothing": lambda: [*_text(_REPORT % '["array","uint8",[-1,-1],0]', "[1]"), b"x"],
    "an array without bytes": lambda: _text(_REPORT % '["array","uint8",[1],7]'),
    "more bytes than may follow": lambda: [*_text(_REPORT % "0", f"[{1 << 20},{1 << 20}]"), bytes(2 << 20)],
    "less bytes than none": lambda: _text(_REPORT % "0", "[-1]"),
    "a buffer of somebody else": lambda: _text(_REPORT % "0", f"[[0,{1 << 20}]]"),
    "rows before the first": lambda: _said(RowsFinished(-5, 5)),
    "rows again": lambda: _said(RowsFinished(0, 10), RowsFinished(0, 10)),
    "rows out of order": lambda: _said(RowsFinished(50, 10)),
    "rows beyond the last": lambda: _said(RowsFinished(0, 1 << 40)),
    "no rows": lambda: _said(RowsFinished(0, 0)),
    "rows that are text": lambda: _said(RowsFinished("0", "1")),  # type: ignore[arg-type]
    "rows that are true": lambda: _said(RowsFinished(False, True)),
    "two places for a result": lambda: _said(ResultSlotWanted(10), ResultSlotWanted(10)),
    "a result of less than nothing": lambda: _said(ResultSlotWanted(-1)),
    "another result": lambda: _ended(np.zeros(3)),
    "a time that is none": lambda: _ended(PixelReport(Timings({"a": "b"}), ())),  # type: ignore[dict-item]
    "times within times": lambda: _ended(PixelReport(Timings(parts=[Timings()]), ())),
    "an error that is none": lambda: _ended(_bad_error()),
    "an error with an argument": lambda: _text(
        '["Finished",["error","Overloaded","x","QUEUE_FULL","",{"retry_after_seconds":"soon"},""],null]'
    ),
    "a number too many": lambda: _text('["Finished",null,null,0]'),
    "an error in place of a message": lambda: _said(InvalidRequest("x")),
}
