"""What a worker process gives up before it sees a stranger's file.

Each limit is set by the process itself and cannot be taken back by it. What the platform does not offer is left out with a
line in the log: limits come on top of a container's own.
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

# A worker needs its channel, the standard streams, the arena, and a nameless file where OpenCV cannot read from memory.
_OPEN_FILES = 64

# A decoder that was taken over could speak to no one, start nothing, and look into no other process.
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
        niceness: Added to the service's own priority; higher yields to others.
        kept_bytes: Memory that it need not give back between two jobs.
    """

    memory_bytes: int
    niceness: int
    kept_bytes: int = 0


def enter_sandbox(limits: WorkerLimits) -> None:
    """Apply every limit to this process, for good. It must be single-threaded."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # no orphan goes on decoding when its parent is killed
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _lower(resource.RLIMIT_AS, _address_space_bytes() + limits.memory_bytes)
    os.nice(limits.niceness)
    _refuse_system_calls()


def allow_cpu_seconds(seconds: float) -> None:
    """Have the kernel end this process once it has used this much more CPU: the last resort against code that never returns.

    Work that reaches its checkpoints ends earlier, with an error; see `worker.Checkpoint`.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 2, hard))


def allow_memory_bytes(size_bytes: int | None) -> None:
    """Let this process take so much more address space until it is told otherwise; None is what the sandbox gives at most."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = hard if size_bytes is None else _address_space_bytes() + size_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def memory_left() -> int:
    """Bytes of address space that this process may still take; what is not limited counts as all there can be."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(0, soft - _address_space_bytes())


def anonymous_bytes() -> int:
    """Resident memory of this process that is neither a file's nor shared, what it was forked with included."""
    resident, shared = (int(pages) for pages in _STATM.read_text().split()[1:3])
    return (resident - shared) * resource.getpagesize()


def _lower(kind: int, value: int) -> None:
    """Set a limit, hard and soft, unless it is lower already."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _address_space_bytes() -> int:
    return int(_STATM.read_text().split()[0]) * resource.getpagesize()


def _refuse_system_calls() -> None:
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:  # RuntimeError: the package is there and libseccomp is not
        logger.warning("workers keep the network and may start programs: no seccomp filter (%s)", error)
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
            "workers keep the network and may start programs: the kernel takes no seccomp filter (%s)", error
        )
