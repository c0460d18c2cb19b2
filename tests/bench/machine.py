"""Where the benchmark ran: a figure without its machine, versions and command says nothing."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av

LIBRARIES = (
    "av",
    "grpcio",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
)


def machine() -> dict[str, Any]:
    """Where this runs, with what, and how it was called."""
    return {
        "date": datetime.now(UTC).date().isoformat(),  # noqa: TID251 - a date to print
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": load_average(),
        "system": platform.platform(),
        "tcp": _congestion_control(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES}
        | {"ffmpeg (av)": av.ffmpeg_version_info},
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
    }


def load_average() -> list[float]:
    """Runnable threads over the last 1, 5 and 15 minutes."""
    return [round(load, 2) for load in os.getloadavg()]


def _congestion_control() -> str:
    """How the kernel paces TCP: BBR, for one, takes more CPU of both ends of a fast connection than CUBIC."""
    setting = Path("/proc/sys/net/ipv4/tcp_congestion_control")
    return setting.read_text().strip() if setting.is_file() else "unknown"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
