"""Settings, frozen and checked where they are made. A bad value is refused with its option's name.

Each field says everything about its setting: flags, environment variables, keys of a file, `--help` and README's table are
made from these classes; `setting` says how. Who reads what a user wrote is `cli.sources`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from preprocessor.kinds import parse_bytes
from preprocessor.machine import available_cpu_count, available_memory_bytes
from preprocessor.setting import SettingError, group, option_of, setting

__all__ = ["EngineSettings", "Limits", "ServeSettings", "SettingError", "option_of", "parse_bytes", "setting"]

_LEAST_BUDGET_BYTES = 64 << 20  # below, not even one photo's decoding fits


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask of the service. Counted in headers before anything is decoded.

    The defaults allow a minute of 4K video or a 256-megapixel image and refuse what only an attack needs.
    """

    max_media_count: int = setting(64, "images and videos in one request")
    max_media_bytes: int = setting(512 << 20, "size of one file", "SIZE", kind=parse_bytes)
    max_request_bytes: int = setting(1 << 30, "size of all files of a request", "SIZE", kind=parse_bytes)
    # Walking a PNG's chunks to its size takes microseconds each.
    max_image_bytes: int = setting(64 << 20, "size of an image file", "SIZE", kind=parse_bytes)
    max_image_pixels: int = setting(256_000_000, "pixels of an image, before resizing")
    max_frame_pixels: int = setting(8192 * 4320, "pixels of a video frame, before resizing")
    # Counted by packets: nine hours at 30 frames a second.
    max_clip_frames: int = setting(1_000_000, "frames in a video file")
    max_audio_seconds: int = setting(3600, "seconds of a sound")  # 230 MB of samples at 16 kHz
    max_pixel_bytes: int = setting(2 << 30, "size of the pixel tensor of one request", "SIZE", kind=parse_bytes)
    max_prompt_length: int = setting(4_000_000, "characters of a rendered prompt, or token ids")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            require_positive_int(option_of(field), getattr(self, field.name))


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Where prepared prompts go. Options begin with `--engine`."""

    address: str = setting(
        "",
        "Triton's gRPC address, or several, separated by commas; without it, Generate is not served",
        "HOST:PORT",
        name="--engine",
        kind=str,
        is_joined=True,
    )
    model: str = setting("vlm_transformers", "the model's name in Triton", "NAME", kind=str)
    transport: str = setting(
        "auto",
        "how tensors travel: shared-memory is for an engine on this host, auto finds out",
        kind=str,
        choices=("auto", "grpc", "shared-memory"),
    )
    profile: str = setting("", "what the engine wants otherwise: a built-in profile, or a TOML file", "NAME", kind=str)
    on_mismatch: str = setting(
        "refuse",
        "what becomes of an engine that was set up for another model",
        kind=str,
        choices=("refuse", "warn"),
    )
    tls_root: str = setting("", "PEM of the authorities that may have signed its certificate", "FILE", kind=str)
    tls_certificate: str = setting("", "PEM of this side's certificate, for mutual TLS", "FILE", kind=str)
    tls_key: str = setting("", "PEM of its private key", "FILE", kind=str)
    tls_server_name: str = setting("", "the name in its certificate, where that is not the host", "NAME", kind=str)
    token_file: str = setting("", "a bearer token to send along; the file may be rotated", "FILE", kind=str)

    def __post_init__(self) -> None:
        for address in self.address.split(",") if self.address else ():
            split_address("--engine", address.strip())
        _require_choices(self, "engine-")
        if self.tls_certificate and not self.tls_key:
            raise SettingError("--engine-tls-certificate", self.tls_certificate, "--engine-tls-key with it, or neither")
        if self.tls_key and not self.tls_certificate:
            raise SettingError("--engine-tls-key", self.tls_key, "--engine-tls-certificate with it, or neither")
        if self.tls_server_name and not (self.tls_root or self.tls_certificate):
            raise SettingError(
                "--engine-tls-server-name",
                self.tls_server_name,
                "--engine-tls-root with it: without authorities there is no TLS, and no name is looked at",
            )


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Everything `preprocessor serve` needs.

    Attributes:
        worker_count: So many worker processes take short work, and as many more, at a lower priority, long work.
        memory_budget_bytes: For files, pixels, and what workers need meanwhile, of all requests together.
        worker_memory_bytes: Address space; 0 means as much as the budget.
    """

    model: str = setting("qwen3-vl", "built-in name, local directory or hub id", "NAME", kind=str)
    address: str = setting("127.0.0.1:50051", "where gRPC listens; port 0 takes a free one", "HOST:PORT", kind=str)
    http_address: str = setting("127.0.0.1:8080", "where /livez, /readyz and /metrics listen", "HOST:PORT", kind=str)
    worker_count: int = setting(
        available_cpu_count, "cores to work on", name="--workers", default_text="the cgroup's CPU limit"
    )
    max_queued_count: int = setting(
        256, "requests that may wait for a worker before more are refused", name="--max-queued"
    )
    memory_budget_bytes: int = setting(
        lambda: available_memory_bytes() // 2,
        "memory for all requests together; a quarter of it is for files",
        "SIZE",
        name="--memory-budget",
        kind=parse_bytes,
        default_text="half of the cgroup's limit",
    )
    worker_memory_bytes: int = setting(
        0,
        "memory that one worker may take for its work; 0 means the budget",
        "SIZE",
        name="--worker-memory",
        kind=parse_bytes,
    )
    max_cpu_seconds: float = setting(300.0, "CPU that one request may use in one stage", "S", kind=float)
    max_jobs_a_worker: int = setting(10_000, "jobs after which a worker process is replaced")
    is_in_process: bool = setting(
        False, "work on threads: for debugging only, nothing is isolated", "", name="--in-process", kind=bool
    )
    video_decoder: str = setting("pyav", "opencv decodes as OpenCV does", kind=str, choices=("pyav", "opencv"))
    drain_seconds: float = setting(20.0, "how long a stop waits for calls under way", "S", kind=float)
    upload_idle_seconds: float = setting(30.0, "longest silence within an upload", "S", kind=float)
    default_timeout_seconds: float = setting(300.0, "deadline of a call that brings none", "S", kind=float)
    max_connection_age_seconds: float = setting(
        3600.0, "after so long a caller is asked to connect anew, to find new replicas", "S", kind=float
    )
    log_level: str = setting("info", "what to log", kind=str, choices=("debug", "info", "warning", "error"))
    engine: EngineSettings = group(EngineSettings, "the engine, for Generate", "engine-", needs="address")
    limits: Limits = group(Limits, "limits on one request")

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
            ("--max-connection-age-seconds", self.max_connection_age_seconds),
        ):
            if not (math.isfinite(seconds) and seconds > 0):
                raise SettingError(option, seconds, "a number of seconds above 0")
        _require_choices(self)
        _, port = split_address("--address", self.address)
        split_address("--http-address", self.http_address)
        if self.address == self.http_address and port:
            raise SettingError("--http-address", self.http_address, "another port than --address has")


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


def _require_choices(settings: Any, prefix: str = "") -> None:
    for field in dataclasses.fields(settings):
        choices, value = field.metadata.get("choices"), getattr(settings, field.name)
        if choices and value not in choices:
            raise SettingError(option_of(field, prefix), value, f"{', '.join(choices[:-1])} or {choices[-1]}")
