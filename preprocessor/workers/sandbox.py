"""The limits that a worker process puts on itself before it reads a stranger's file.

The process sets each limit and cannot remove it again. What the platform does not offer is left out, with a line in the log.
These limits come on top of a container's own.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_NO_NEW_PRIVS = 38
_STATM = Path("/proc/self/statm")  # proc(5): pages in all, resident, shared

# A worker needs its channel, the standard streams, the arena, and a file without a name for what OpenCV cannot read from memory.
_OPEN_FILES = 64

# A decoder that an attacker controls cannot connect anywhere, start programs, or read other processes.
_REFUSED_CALLS = (
    "socket", "connect", "bind", "listen", "accept", "accept4", "io_uring_setup",
    "execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd",
    "mount", "unshare", "setns", "bpf", "perf_event_open", "keyctl", "add_key", "request_key",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What one worker process may use.

    Attributes:
        memory_bytes: Address space beyond what it starts with.
        niceness: Added to the service's own; a higher one has a lower priority.
        kept_bytes: Freed memory that it may keep between two tasks.
    """

    memory_bytes: int
    niceness: int
    kept_bytes: int = 0


def enter_sandbox(limits: WorkerLimits) -> None:
    """Apply all limits to this process for the rest of its life. It must be single-threaded."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # if the parent is killed, no orphan goes on decoding
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _lower(resource.RLIMIT_AS, _address_space_bytes() + limits.memory_bytes)
    os.nice(limits.niceness)
    _refuse_system_calls()


def allow_cpu_seconds(seconds: float) -> None:
    """Have the kernel kill this process once it has used this much more CPU: the last resort against code that never returns.

    A task that reaches its checkpoints ends earlier, with an error; see `worker.StopCheck`.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 2, hard))


def allow_memory_bytes(size_bytes: int | None) -> None:
    """Allow this process so much more address space, until the next call; None: as much as the sandbox allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = hard if size_bytes is None else _address_space_bytes() + size_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def memory_left() -> int:
    """Bytes of address space that this process may still take; `sys.maxsize` if there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(0, soft - _address_space_bytes())


def anonymous_bytes() -> int:
    """Resident memory of this process, without pages of files and shared memory, and with what it was forked with."""
    resident, shared = (int(pages) for pages in _STATM.read_text().split()[1:3])
    return (resident - shared) * resource.getpagesize()


def _lower(kind: int, value: int) -> None:
    """Lower a limit, hard and soft; one that is lower already stays."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _address_space_bytes() -> int:
    return int(_STATM.read_text().split()[0]) * resource.getpagesize()


def _refuse_system_calls() -> None:
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:  # RuntimeError: the package is there and libseccomp is not
        logger.warning("no seccomp filter (%s): workers can use the network and start programs", error)
        return
    rules = pyseccomp.SyscallFilter(defaction=pyseccomp.ALLOW)
    for name in _REFUSED_CALLS:
        try:
            rules.add_rule(pyseccomp.ERRNO(errno.EPERM), name)
        except (OSError, ValueError):  # a call that this architecture or this libseccomp does not know
            logger.debug("no rule for the system call %s", name)
    try:
        rules.load()
    except OSError as error:
        logger.warning(
            "the kernel accepts no seccomp filter (%s): workers can use the network and start programs", error
        )
