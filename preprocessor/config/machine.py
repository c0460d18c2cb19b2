"""Cores and memory that this process may use, within its container's limits."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

# One thread a worker, for every library; none in the fork server, which must be able to fork.
SINGLE_THREADED = {
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


_CGROUPS = Path("/sys/fs/cgroup")
_MEMORY = Path("/proc/meminfo")
_OWN_CGROUPS = Path("/proc/self/cgroup")  # cgroups(7): a line each of hierarchy:controllers:path; 0::path is version 2


def use_one_thread() -> None:
    """Keep torch and OpenCV to the calling thread: a worker is one core's, and threads × workers oversubscribe.

    The environment says the same to the libraries beneath them (`SINGLE_THREADED`), if it is set before they load.
    """
    # Imported here, because the parent of the worker processes uses this module and never loads either.
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def available_cpu_count(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> int:
    """Cores this process may use: the smaller of its affinity and its cgroups' quota, at least 1.

    A container's quota does not show in `os.cpu_count()`; sizing a pool by the host's cores has every worker throttled.
    Reads cgroup v2 (`cpu.max`) and v1 (`cpu.cfs_quota_us`).
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [_read_quota(directory) for directory in _directories(cgroups, "cpu", own)]
    return max(1, min([affinity, *(math.floor(quota) for quota in quotas if quota is not None)]))


def default_front_count(cpu_count: int | None = None) -> int:
    """How many fronts carry what so many cores make, all cores of this process where None; 1: none is needed.

    Below 8 cores one event loop carries it. A front carries about 1 GB/s, and four cores make 0.6 GB/s of pixels at 8 frames a
    second; connections are spread over fronts by chance, so each needs some spare.
    """
    cores = available_cpu_count() if cpu_count is None else cpu_count
    return 1 if cores < 8 else cores // 4


def available_memory_bytes(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> int:
    """Memory this process may use: its cgroups' limit where there is one, else the machine's. Reads cgroup v2 and v1."""
    return _tightest_memory_limit(cgroups, own)[0]


def used_memory_bytes(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> int:
    """Memory that counts against `available_memory_bytes`, all processes together.

    Without pages of files that nobody has used lately, which the kernel drops before it kills: what Kubernetes calls the
    working set.
    """
    _, directory = _tightest_memory_limit(cgroups, own)
    if directory is None:
        machine = _numbers(_read(_MEMORY))
        return 1024 * (machine.get("MemTotal:", 0) - machine.get("MemAvailable:", 0))
    used = _read(directory / "memory.current") or _read(directory / "memory.usage_in_bytes")
    kinds = _numbers(_read(directory / "memory.stat"))
    idle = kinds.get(
        "total_inactive_file", kinds.get("inactive_file", 0)
    )  # version 1's own `inactive_file` is one group's
    return max(0, int(used or 0) - idle)


def _tightest_memory_limit(cgroups: Path, own: Path) -> tuple[int, Path | None]:
    """The limit in bytes, and the cgroup that sets it; None where it is the machine's size."""
    limits: list[tuple[int, Path | None]] = [(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None)]
    for directory in _directories(cgroups, "memory", own):
        for name in ("memory.max", "memory.limit_in_bytes"):
            stated = _read(directory / name)
            if stated.isdecimal():
                limits.append((int(stated), directory))
    return min(limits, key=lambda one: one[0])


def _directories(cgroups: Path, controller: str, own: Path) -> Iterator[Path]:
    """This process's cgroup and all above it, whose limits hold as well, of both versions.

    In a container the path may be the host's, of which nothing is mounted; its own cgroup is then the topmost.
    """
    for line in _read(own).splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or controller in controllers.split(","):
            top = cgroups if number == "0" else cgroups / controller
            inner = Path(path.strip("/"))
            yield from (top / step for step in (inner, *inner.parents) if step != Path())
    yield cgroups
    yield cgroups / controller


def _read_quota(directory: Path) -> float | None:
    """Cores that a cgroup grants; None where it sets no limit or is not there."""
    quota, _, period = _read(directory / "cpu.max").partition(" ")
    if not period:
        quota, period = _read(directory / "cpu.cfs_quota_us"), _read(directory / "cpu.cfs_period_us")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _numbers(text: str) -> dict[str, int]:
    """Lines of a name and a number, as the kernel writes its statistics; what follows on a line is left out."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) > 1 and pair[1].isdecimal()}


def _read(path: Path) -> str:
    """The file's text without the space around it; empty where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
