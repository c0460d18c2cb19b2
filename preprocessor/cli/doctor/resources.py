"""Checks of cores, memory, descriptors and shared memory against the settings."""

from __future__ import annotations

import os

from preprocessor.cli.doctor.finding import Finding, failed, ok, warning
from preprocessor.config import bytes_beside_budget, largest_budget
from preprocessor.config.values import format_bytes

# Descriptors of an idle service, measured on Linux: 24, and three for each of a core's two workers. The rest is for files
# being read and connections to engines.
_OWN_FILES, _FILES_A_CORE = 64, 6
# A descriptor each; more callers than that usually come through a proxy that shares connections.
_CONNECTION_COUNT = 1024


def check_cores(worker_count: int, available_count: int) -> Finding:
    """Whether there is a core for each worker."""
    found = f"--workers {worker_count}; affinity and cgroup give {available_count}"
    if worker_count > available_count:
        fix = f"--workers {available_count}, or a CPU limit of {worker_count}: else all workers are throttled"
        return warning("cores", found, fix)
    return ok("cores", found)


def check_memory(budget_bytes: int, available_bytes: int, more_bytes: int = 0) -> Finding:
    """Whether the budget and what the service itself takes fit the memory.

    Args:
        more_bytes: As `ServeSettings.more_bytes`.
    """
    found = f"--memory-budget {_show(budget_bytes)} of {_show(available_bytes)}"
    beside_bytes = bytes_beside_budget(budget_bytes) + more_bytes
    needed_bytes = budget_bytes + beside_bytes
    if needed_bytes <= available_bytes:
        return ok("memory", found)
    largest_bytes = largest_budget(available_bytes - more_bytes) >> 20 << 20
    less = f"--memory-budget {format_bytes(largest_bytes)} at most, or " if largest_bytes else ""
    fix = f"{less}a memory limit of at least {_show(needed_bytes)}"
    return failed(
        "memory", f"{found}: serve does not start, for it takes up to {_show(beside_bytes)} beside the budget", fix
    )


def check_open_files(limit: int, worker_count: int, chunk_count: int = 0) -> Finding:
    """Whether the limit on open files leaves room for callers.

    Args:
        limit: The hard one, to which the service raises its own.
        chunk_count: Of the memory for rows, each a file.
    """
    own = _OWN_FILES + _FILES_A_CORE * worker_count + chunk_count
    found, fix = f"{limit:,} open files", f"raise the limit (ulimit -n, LimitNOFILE) to {own + _CONNECTION_COUNT:,}"
    if limit < own:
        return failed("open files", f"{found}, and the service itself takes up to {own:,}", fix)
    if limit < own + _CONNECTION_COUNT:
        return warning("open files", f"{found} leave room for {limit - own:,} connections", fix)
    return ok("open files", found)


def check_shared_memory(transport: str, has_engine: bool, free_bytes: int, needed_bytes: int) -> Finding:
    """Whether `/dev/shm` holds the memory budget, so that an engine on the same host can read it in place.

    Args:
        transport: As `--engine-transport`.
        free_bytes: In `/dev/shm`.
        needed_bytes: The file behind the arena.
    """
    if not has_engine or transport == "grpc":
        return ok("shared memory", f"no engine reads /dev/shm; {_show(free_bytes)} free")
    found = f"{_show(free_bytes)} free in /dev/shm, and the memory budget needs {_show(needed_bytes)}"
    if free_bytes >= needed_bytes:
        return ok("shared memory", found)
    fix = (
        f"give /dev/shm at least {_show(needed_bytes)} (Kubernetes: an emptyDir of medium Memory; Docker: --shm-size), "
        "lower --memory-budget, or --engine-transport grpc for an engine on another host"
    )
    if transport == "shared-memory":
        return failed("shared memory", found, fix)
    return warning("shared memory", f"{found}: tensors are sent to the engine, not shared with it", fix)


def shared_memory_free_bytes() -> int:
    """Room in `/dev/shm`; 0 where there is none."""
    try:
        space = os.statvfs("/dev/shm")
    except OSError:
        return 0
    return space.f_bavail * space.f_frsize


def _show(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.1f} GiB" if size_bytes >= 1 << 30 else f"{size_bytes >> 20} MiB"
