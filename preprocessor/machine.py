"""What this process may use of the machine it runs on, its container's limits heeded."""

from __future__ import annotations

import math
import os
from pathlib import Path

# One thread a worker, whatever library would like more; and none in the zygote, which must be able to fork.
SINGLE_THREADED = {
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def use_one_thread() -> None:
    """Keep torch and OpenCV to the calling thread: a worker is one core's, and threads × workers oversubscribe.

    The environment says the same to the libraries beneath them (`SINGLE_THREADED`), if it is set before they load.
    """
    # Here, because the parent of a worker process asks this module for numbers and never loads either.
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def available_cpu_count(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores this process may use: the smaller of its affinity and its cgroup's quota, at least 1.

    A container's quota does not show in `os.cpu_count()`; sizing a pool by the host's cores has every worker throttled.
    Reads cgroup v2 (`cpu.max`) and v1 (`cpu.cfs_quota_us`).
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_cpu_quota(cgroup)
    return max(1, affinity if quota is None else min(affinity, math.floor(quota)))


def available_memory_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory this process may use: its cgroup's limit where there is one, else the machine's. Reads cgroup v2 and v1."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        try:
            stated = path.read_text().strip()
        except OSError:
            continue
        return machine if stated == "max" else min(machine, int(stated))
    return machine


def _cgroup_cpu_quota(cgroup: Path) -> float | None:
    """Cores the cgroup grants, or None where it sets no limit or there is no cgroup to read."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    return int(quota) / int(period)
