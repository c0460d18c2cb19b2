"""The limits that a worker process puts on itself before it reads an untrusted file.

The process sets each limit and cannot remove it again. Afterwards it can open no file, by two means that do not depend on each
other: the filter of `system_calls`, and `landlock`. What the platform does not offer is left out, with a line in the log, unless
isolation is required. These limits come on top of a container's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import linecache
import logging
import os
import resource
import signal
import sys
import time
from _frozen_importlib import BuiltinImporter, FrozenImporter
from collections.abc import Collection
from dataclasses import dataclass

from preprocessor.workers import landlock, system_calls
from preprocessor.workers.descriptors import BATCH_COUNT

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h

# A worker needs its two sockets, the standard streams, and descriptors of memory while it maps it.
_OPEN_FILES = 16 + BATCH_COUNT


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What one worker process may use.

    Attributes:
        memory_bytes: Address space beyond what it starts with.
        niceness: Added to the service's own; a higher one has a lower priority.
        kept_bytes: Freed memory that it may keep between two tasks.
        is_isolation_required: It ends if its system calls cannot be filtered; else it works with what the kernel offers.
    """

    memory_bytes: int
    niceness: int
    kept_bytes: int = 0
    is_isolation_required: bool = False


def enter_sandbox(limits: WorkerLimits, open_files: Collection[int] = ()) -> None:
    """Apply all limits to this process for the rest of its life. It must be single-threaded.

    Args:
        open_files: Descriptors that stay open, beside the standard streams.
    Raises:
        FilterUnavailable: No filter could be set, and isolation is required.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # if the parent is killed, no orphan goes on decoding
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _do_without_files()
    _close_all_but({*open_files, _statm(os.getpid())})
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, _OPEN_FILES)
    _lower(resource.RLIMIT_AS, _address_space_bytes() + limits.memory_bytes)
    os.nice(limits.niceness)
    _drop_capabilities(libc)
    try:
        landlock.refuse_everything()
    except OSError as error:
        logger.debug(
            "the kernel has no Landlock (%s); the filter of system calls alone keeps workers from files", error
        )
    try:
        system_calls.allow_only()
    except system_calls.FilterUnavailable as error:
        if limits.is_isolation_required:
            raise
        logger.warning("no filter of system calls (%s): workers can use the network and start programs", error)


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
    _, resident, shared = _pages()[:3]
    return (resident - shared) * resource.getpagesize()


def _lower(kind: int, value: int) -> None:
    """Lower a limit, hard and soft; one that is lower already stays."""
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _address_space_bytes() -> int:
    return _pages()[0] * resource.getpagesize()


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Give up what root may do beyond other users, such as raising limits; capset(2)."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def _do_without_files() -> None:
    """Open or turn off what Python would open later, as nothing can be opened in the sandbox.

    A module that is not loaded cannot be imported any more. Tracebacks and warnings have no lines of source.
    """
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder in (BuiltinImporter, FrozenImporter)]
    linecache.clearcache()
    linecache.updatecache = lambda filename, module_globals=None: []
    os.environ.setdefault("TZ", ":/etc/localtime")  # else each line in the log looks for changes of that file
    time.tzset()
    time.localtime()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    _allow_appending_alone(2)


def _allow_appending_alone(stream: int) -> None:
    """Open a stream anew, so that nothing can be read from a terminal, and nothing overwritten in a file."""
    with contextlib.suppress(OSError):  # a socket cannot be opened; nothing that concerns others can be read from it
        opened = os.open(f"/proc/self/fd/{stream}", os.O_WRONLY | os.O_APPEND | os.O_NOCTTY)
        os.dup2(opened, stream)
        os.close(opened)


def _close_all_but(open_files: set[int]) -> None:
    """Close every descriptor above the standard streams but these."""
    first = 3
    for descriptor in sorted(open_files):
        os.closerange(first, descriptor)
        first = max(first, descriptor + 1)
    os.closerange(first, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


@functools.cache
def _statm(process_id: int) -> int:
    """A descriptor of this process's memory counts; of another number after a fork."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)  # proc(5): pages in all, resident, shared


def _pages() -> list[int]:
    return [int(count) for count in os.pread(_statm(os.getpid()), 256, 0).split()]
