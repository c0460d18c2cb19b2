"""The filter of system calls as the kernel reads it, for both architectures: its program is run here, on calls of each."""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from collections.abc import Mapping

import pytest

from preprocessor.workers import system_calls
from preprocessor.workers.mapping import MAP_FIXED

seccomp = pytest.importorskip("pyseccomp", reason="needs libseccomp 2", exc_type=RuntimeError)  # type: ignore[arg-type]

OWN = 4242
ALLOW, KILL = 0x7FFF0000, 0x80000000  # linux/seccomp.h
ERRNO = 0x00050000
AUDIT_ARCH = {"X86_64": 0xC000003E, "AARCH64": 0xC00000B7}  # linux/audit.h
# asm-generic/unistd.h and arch/x86/entry/syscalls/syscall_64.tbl; the test is not to believe the library alone.
NUMBERS: Mapping[str, Mapping[str, int]] = {
    "X86_64": {"read": 0, "mmap": 9, "mprotect": 10, "clone": 56, "kill": 62, "fcntl": 72, "tgkill": 234, "openat": 257,
               "prlimit64": 302, "execve": 59, "socket": 41, "fallocate": 285, "clone3": 435, "dup": 32, "ptrace": 101,
               "process_vm_readv": 310, "memfd_create": 319, "sendmsg": 46, "prctl": 157, "pidfd_getfd": 438},
    "AARCH64": {"read": 63, "mmap": 222, "mprotect": 226, "clone": 220, "kill": 129, "fcntl": 25, "tgkill": 131, "openat": 56,
                "prlimit64": 261, "execve": 221, "socket": 198, "fallocate": 47, "clone3": 435, "dup": 23, "ptrace": 117,
                "process_vm_readv": 270, "memfd_create": 279, "sendmsg": 211, "prctl": 167, "pidfd_getfd": 438},
}  # fmt: skip
ONLY_X86_64 = {"poll", "time", "stat", "lstat", "access", "readlink"}
"""Calls that aarch64 has not: its libc uses ppoll, clock_gettime, newfstatat, faccessat and readlinkat, which are in the list."""
_ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE


@pytest.fixture(scope="module", params=AUDIT_ARCH)
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def program(architecture: str) -> list[tuple[int, int, int, int]]:
    """(code, jump if true, jump if false, operand) of each instruction; bpf(4)."""
    chosen = getattr(seccomp.Arch, architecture)
    rules = seccomp.SyscallFilter(defaction=seccomp.KILL_PROCESS)
    if not rules.exist_arch(chosen):
        rules.add_arch(chosen)
        rules.remove_arch(seccomp.Arch.NATIVE)
    system_calls.add_rules(rules, chosen, OWN)
    with tempfile.TemporaryFile() as file:
        rules.export_bpf(file)
        file.seek(0)
        return list(struct.iter_unpack("<HBBI", file.read()))


def decision(program: list[tuple[int, int, int, int]], audit_arch: int, number: int, *arguments: int) -> int:
    """What the program returns for a call: the instructions of classic BPF that libseccomp uses."""
    data = struct.pack("<iIQ6Q", number, audit_arch, 0, *(one & (1 << 64) - 1 for one in (*arguments, *[0] * 6)[:6]))
    place = accumulator = index = 0
    scratch = [0] * 16
    while True:
        code, if_true, if_false, operand = program[place]
        place += 1
        value = index if code & 0x08 else operand
        match code:
            case 0x20:  # ld [k]
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x60 | 0x61:  # ld and ldx of scratch memory
                accumulator, index = (scratch[operand], index) if code == 0x60 else (accumulator, scratch[operand])
            case 0x02 | 0x03:  # st, stx
                scratch[operand] = accumulator if code == 0x02 else index
            case 0x54 | 0x5C:
                accumulator &= value
            case 0x07:  # tax
                index = accumulator
            case 0x87:  # txa
                accumulator = index
            case 0x05:
                place += operand
            case 0x15 | 0x1D:
                place += if_true if accumulator == value else if_false
            case 0x25 | 0x2D:
                place += if_true if accumulator > value else if_false
            case 0x35 | 0x3D:
                place += if_true if accumulator >= value else if_false
            case 0x06:
                return operand
            case _:
                raise AssertionError(f"an instruction that is not known here: {code:#x}")


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("read", (3,), ALLOW),
        ("sendmsg", (3,), ALLOW),
        ("openat", (), KILL),
        ("execve", (), KILL),
        ("socket", (), KILL),
        ("ptrace", (), KILL),
        ("process_vm_readv", (), KILL),
        ("pidfd_getfd", (), KILL),
        ("memfd_create", (), KILL),
        ("dup", (), KILL),
        ("fallocate", (3,), KILL),
        ("mmap", (0, 4096, _READ_WRITE, _ANONYMOUS), ALLOW),
        ("mmap", (0, 4096, _READ_WRITE | mmap.PROT_EXEC, _ANONYMOUS), KILL),
        ("mmap", (0, 4096, _READ_WRITE, mmap.MAP_SHARED | MAP_FIXED, 3), ALLOW),
        ("mmap", (0, 4096, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_SHARED | MAP_FIXED, 3), KILL),
        ("mmap", (0, 4096, mmap.PROT_READ, mmap.MAP_SHARED, 3), KILL),
        ("mmap", (0, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE, 3), KILL),
        ("mprotect", (0, 4096, _READ_WRITE), ALLOW),
        ("mprotect", (0, 4096, mmap.PROT_READ | mmap.PROT_EXEC), KILL),
        ("clone", (0x3D0F00,), ALLOW),  # a thread's, as glibc makes it
        ("clone", (17,), KILL),  # SIGCHLD: a process
        ("clone3", (), ERRNO),
        ("prctl", (), ERRNO),
        ("kill", (OWN,), ALLOW),
        ("kill", (OWN + 1,), KILL),
        ("kill", (0,), KILL),
        ("kill", (-1,), KILL),
        ("tgkill", (OWN, OWN), ALLOW),
        ("tgkill", (1, 1), KILL),
        ("prlimit64", (0,), ALLOW),
        ("prlimit64", (1,), KILL),
        ("fcntl", (3, 3), ALLOW),  # F_GETFL
        ("fcntl", (3, 0), KILL),  # F_DUPFD
        ("fcntl", (3, 8), KILL),  # F_SETOWN
    ],
)
def test_a_call_is_decided_alike_on_both_architectures(
    program: list[tuple[int, int, int, int]], architecture: str, name: str, arguments: tuple[int, ...], expected: int
) -> None:
    found = decision(program, AUDIT_ARCH[architecture], NUMBERS[architecture][name], *arguments)
    assert found & 0xFFFF0000 == expected


def test_calls_of_another_architecture_end_the_process(
    program: list[tuple[int, int, int, int]], architecture: str
) -> None:
    for other, number in AUDIT_ARCH.items():
        if other != architecture:
            assert decision(program, number, NUMBERS[other]["read"], 3) == KILL
    assert decision(program, 0x40000003, 3) == KILL, "i386"
    if architecture == "X86_64":
        assert decision(program, AUDIT_ARCH[architecture], 0x40000000) == KILL, "x32"


def test_the_tables_name_calls_that_exist(architecture: str) -> None:
    chosen = getattr(seccomp.Arch, architecture)
    names = (*system_calls.ALLOWED, *system_calls.REFUSED)
    absent = {name for name in names if seccomp.resolve_syscall(chosen, name) < 0}
    assert absent == (set() if architecture == "X86_64" else ONLY_X86_64)
    for name, number in NUMBERS[architecture].items():
        assert seccomp.resolve_syscall(chosen, name) == number


def test_the_filter_names_its_own_process(program: list[tuple[int, int, int, int]]) -> None:
    assert OWN in {operand for _, _, _, operand in program}
    assert os.getpid() not in {operand for _, _, _, operand in program}
