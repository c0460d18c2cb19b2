"""Settings, frozen and checked where they are made. A bad value is refused with its option's name."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

_LEAST_BUDGET_BYTES = 64 << 20  # below, not even one photo's decoding fits
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?i?B?)", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


class SettingError(ValueError):
    """A setting that cannot be: `option` as the command line spells it, the value, and what is accepted."""

    def __init__(self, option: str, value: object, accepted: str) -> None:
        super().__init__(f"{option}: {value!r} is not accepted; give {accepted}")
        self.option = option


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask of the service. Counted in headers before anything is decoded.

    The defaults allow a minute of 4K video or a 256-megapixel image and refuse what only an attack needs.
    """

    max_media_count: int = 64
    max_media_bytes: int = 512 << 20  # one file
    max_request_bytes: int = 1 << 30  # all files of a request
    max_image_bytes: int = 64 << 20  # walking a PNG's chunks to its size takes microseconds each
    max_image_pixels: int = 256_000_000
    max_frame_pixels: int = 8192 * 4320
    max_clip_frames: int = 1_000_000  # in the file, counted by packets: nine hours at 30 frames a second
    max_audio_seconds: int = 3600  # 230 MB of samples at 16 kHz
    max_pixel_bytes: int = 2 << 30  # the pixel tensor of one request
    max_prompt_length: int = 4_000_000  # characters of rendered text, or token ids

    def __post_init__(self) -> None:
        for name in self.__slots__:
            require_positive_int("--" + name.replace("_", "-"), getattr(self, name))


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Everything `preprocessor serve` needs.

    Attributes:
        model: A built-in name, a local directory or a hub id.
        address: Where gRPC listens, host:port; port 0 takes a free one.
        http_address: Where probes and metrics listen.
        worker_count: Cores to work on. So many worker processes take short work, and as many more, at a lower priority,
            long work.
        max_queued_count: Requests that may wait for a worker; one more is refused with RESOURCE_EXHAUSTED.
        memory_budget_bytes: What all requests may hold together: files, pixels, and memory that workers need meanwhile.
        worker_memory_bytes: Address space that one worker may take for its work; 0 means as much as the budget.
        max_cpu_seconds: CPU that one request may use in one stage.
        max_jobs_a_worker: Jobs after which a worker is replaced by a fresh one.
        is_in_process: Work on threads of the service: for debugging only, without isolation or limits.
        engine_address: Triton's gRPC host:port; empty means that `Generate` is not served.
        engine_model: The model's name in Triton.
        video_decoder: "pyav", or "opencv" where its way of decoding is to be matched.
        drain_seconds: How long a stop waits for requests under way.
        upload_idle_seconds: The longest silence between two messages of an upload.
        default_timeout_seconds: The deadline of a request that brings none.
    """

    model: str = "qwen3-vl"
    address: str = "127.0.0.1:50051"
    http_address: str = "127.0.0.1:8080"
    worker_count: int = field(default_factory=lambda: available_cpu_count())
    max_queued_count: int = 256
    memory_budget_bytes: int = field(default_factory=lambda: available_memory_bytes() // 2)
    worker_memory_bytes: int = 0
    max_cpu_seconds: float = 300.0
    max_jobs_a_worker: int = 10_000
    is_in_process: bool = False
    engine_address: str = ""
    engine_model: str = "vlm_transformers"
    video_decoder: str = "pyav"
    drain_seconds: float = 20.0
    upload_idle_seconds: float = 30.0
    default_timeout_seconds: float = 300.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        require_positive_int("--workers", self.worker_count)
        require_positive_int("--max-queued", self.max_queued_count)
        require_positive_int("--max-jobs-a-worker", self.max_jobs_a_worker)
        for option, size_bytes, least in (
            ("--memory-budget", self.memory_budget_bytes, _LEAST_BUDGET_BYTES),
            ("--worker-memory", self.worker_memory_bytes, 0),
        ):
            if isinstance(size_bytes, bool) or not isinstance(size_bytes, int) or size_bytes < least:
                raise SettingError(option, size_bytes, f"a size of at least {least >> 20} MiB, such as 4GiB")
        for option, seconds in (
            ("--max-cpu-seconds", self.max_cpu_seconds),
            ("--drain-seconds", self.drain_seconds),
            ("--upload-idle-seconds", self.upload_idle_seconds),
            ("--default-timeout-seconds", self.default_timeout_seconds),
        ):
            if not (math.isfinite(seconds) and seconds > 0):
                raise SettingError(option, seconds, "a number of seconds above 0")
        if self.video_decoder not in ("pyav", "opencv"):
            raise SettingError("--video-decoder", self.video_decoder, "pyav or opencv")
        split_address("--address", self.address)
        split_address("--http-address", self.http_address)
        if self.engine_address:
            split_address("--engine", self.engine_address)


def require_positive_int(option: str, value: object) -> int:
    """The value, where it is a whole number above 0.

    Raises:
        SettingError: It is anything else; booleans and numeric text count as something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(option, value, "a whole number of at least 1")
    return value


def split_address(option: str, address: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 host stands in brackets, which are dropped.

    Raises:
        SettingError: There is no port, or it is not 0 to 65535.
    """
    host, separator, port = address.rpartition(":")
    if not (separator and host and port.isdigit() and int(port) < 65536):
        raise SettingError(option, address, "host:port, such as 0.0.0.0:50051")
    return host.strip("[]"), int(port)


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


def parse_bytes(text: str) -> int:
    """Bytes of "4GiB", "512 MiB", "1.5G" or "1000000". Units count in powers of 1024 with an i, of 1000 before a bare B.

    Raises:
        ValueError: It is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write 4GiB, 512MiB or a number of bytes")
    number, unit = match.groups()
    base = 1000 if re.fullmatch(r"[KMGT]B", unit, re.IGNORECASE) else 1024
    return int(float(number) * base ** _POWERS[unit[:1].upper() if unit.upper() != "B" else ""])


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
