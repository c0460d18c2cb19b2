"""The system calls that a worker may make once its sandbox is closed. Any other ends the process, by SIGSYS.

The list was found by running every codec, the tests and the fuzzer with this filter. It names calls of both architectures that
are supported, x86_64 and aarch64; a name that one of them lacks is left out there.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterable, Mapping
from typing import Any

from preprocessor.workers.mapping import MAP_FIXED

try:
    import pyseccomp as seccomp
except (ImportError, RuntimeError):  # RuntimeError: the package is there and libseccomp is not
    seccomp = None

ALLOWED = (
    # The channel, and files that are open.
    "read", "readv", "pread64", "write", "writev", "recvfrom", "recvmsg", "sendto", "sendmsg", "close", "lseek",
    "poll", "ppoll",
    # Memory.
    "brk", "munmap", "mremap", "madvise", "mincore", "membarrier",
    # Time, order, chance.
    "clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time", "times", "futex", "sched_yield",
    "sched_getaffinity", "getcpu", "getrandom", "set_robust_list", "rseq",
    # The process itself.
    "getpid", "gettid", "getppid", "getuid", "geteuid", "getgid", "getegid", "getrusage", "uname", "sysinfo",
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "rt_sigpending", "sigaltstack", "restart_syscall", "exit",
    "exit_group",
)  # fmt: skip

# Refused with an error: what harmless code tries, and does without.
REFUSED: Mapping[str, int] = {
    "fstat": errno.EACCES, "newfstatat": errno.EACCES, "stat": errno.EACCES, "lstat": errno.EACCES, "statx": errno.EACCES,
    "access": errno.EACCES, "faccessat": errno.EACCES, "faccessat2": errno.EACCES, "readlink": errno.EACCES,
    "readlinkat": errno.EACCES, "getcwd": errno.EACCES, "ioctl": errno.ENOTTY, "getsockname": errno.EACCES,
    "getsockopt": errno.EACCES, "getpeername": errno.EACCES,
    "prctl": errno.EPERM, "clone3": errno.ENOSYS,
}  # fmt: skip

_READ_FLAGS = (1, 3)  # fcntl.h: F_GETFD, F_GETFL; others could have signals sent to any process
_MASK_32 = 0xFFFFFFFF
_CLONE_THREAD = 0x10000  # linux/sched.h


class FilterUnavailable(Exception):
    """No filter could be set: the message says why."""


def allow_only() -> None:
    """Set the filter for the rest of this process's life. Needs `no_new_privs`.

    Raises:
        FilterUnavailable: There is no libseccomp 2, or the kernel takes no filters.
    """
    if seccomp is None:
        raise FilterUnavailable("pyseccomp or the system's libseccomp 2 is missing")
    try:
        rules = seccomp.SyscallFilter(defaction=seccomp.KILL_PROCESS)
        add_rules(rules, seccomp.Arch.NATIVE, os.getpid())
        rules.load()
    except OSError as error:
        raise FilterUnavailable(f"the kernel accepts no seccomp filter: {error}") from error


def add_rules(rules: Any, architecture: Any, own: int) -> None:
    """Allow in a filter what a worker may do.

    Args:
        rules: Of pyseccomp, for this architecture alone.
        own: The worker's process id.
    """

    def add(action: int, names: Iterable[str], *conditions: object) -> None:
        for name in names:
            try:
                number = seccomp.resolve_syscall(architecture, name)
            except (OSError, ValueError):
                continue
            if number >= 0:  # negative: not on this architecture
                rules.add_rule(action, name, *conditions)

    # By default such a call ends its thread alone, and the others go on.
    rules.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
    arg = seccomp.Arg
    add(seccomp.ALLOW, ALLOWED)
    for name, code in REFUSED.items():
        add(seccomp.ERRNO(code), (name,))
    # New memory of its own, never executable. Of files only such as it was given for its task, in place of a part of the arena.
    new = arg(3, seccomp.MASKED_EQ, mmap.MAP_ANONYMOUS, mmap.MAP_ANONYMOUS)
    add(seccomp.ALLOW, ("mmap",), arg(2, seccomp.MASKED_EQ, mmap.PROT_EXEC, 0), new)
    shared = arg(3, seccomp.MASKED_EQ, _MASK_32, mmap.MAP_SHARED | MAP_FIXED)
    add(seccomp.ALLOW, ("mmap",), arg(2, seccomp.MASKED_EQ, mmap.PROT_EXEC, 0), shared)
    add(seccomp.ALLOW, ("mprotect",), arg(2, seccomp.MASKED_EQ, mmap.PROT_EXEC, 0))
    # Threads, which the filter holds too, and no processes. The flags of clone3 cannot be read here, so it is refused, and libc
    # uses clone.
    add(seccomp.ALLOW, ("clone",), arg(0, seccomp.MASKED_EQ, _CLONE_THREAD, _CLONE_THREAD))
    # Signals to itself, and limits of its own.
    for name in ("kill", "tgkill"):
        add(seccomp.ALLOW, (name,), arg(0, seccomp.MASKED_EQ, _MASK_32, own))
    for process in (0, own):
        add(seccomp.ALLOW, ("prlimit64",), arg(0, seccomp.MASKED_EQ, _MASK_32, process))
    add(seccomp.ALLOW, ("getrlimit", "setrlimit"))
    for command in _READ_FLAGS:
        add(seccomp.ALLOW, ("fcntl",), arg(1, seccomp.MASKED_EQ, _MASK_32, command))
