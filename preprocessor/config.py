"""Settings, frozen and checked where they are made. A bad value is refused with its option's name.

Each field says everything about its option: the command line, its help and its defaults are made from these classes.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from preprocessor.machine import available_cpu_count, available_memory_bytes

_LEAST_BUDGET_BYTES = 64 << 20  # below, not even one photo's decoding fits
_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?i?B?)", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


class SettingError(ValueError):
    """A setting that cannot be: `option` as the command line spells it, the value, and what is accepted."""

    def __init__(self, option: str, value: object, accepted: str) -> None:
        super().__init__(f"{option}: {value!r} is not accepted; give {accepted}")
        self.option = option


def setting(default: Any, meaning: str, metavar: str = "N", *, name: str = "", kind: Callable[[str], Any] = int) -> Any:
    """A field that is an option.

    Args:
        default: A value, or a function that finds it.
        name: The option, where it is not the field's name.
        kind: Makes the value of the text that a user writes.
    """
    metadata = {"meaning": meaning, "metavar": metavar, "name": name, "kind": kind}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def option_of(field: dataclasses.Field[Any], prefix: str = "") -> str:
    """The option of a field, as the command line spells it."""
    return str(field.metadata["name"] or f"--{prefix}{field.name.replace('_', '-')}")


def parse_bytes(text: str) -> int:
    """Bytes of "4GiB", "512 MiB", "1.5G" or "1000000"; a unit is a power of 1024, or of 1000 where it ends in a bare B.

    Raises:
        ValueError: It is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write 4GiB, 512MiB or a number of bytes")
    number, unit = match.groups()
    base = 1000 if re.fullmatch(r"[KMGT]B", unit, re.IGNORECASE) else 1024
    return int(float(number) * base ** _POWERS[unit[:1].upper() if unit.upper() != "B" else ""])


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask of the service. Counted in headers before anything is decoded.

    The defaults allow a minute of 4K video or a 256-megapixel image and refuse what only an attack needs.
    """

    max_media_count: int = setting(64, "images and videos in one request")
    max_media_bytes: int = setting(512 << 20, "bytes of one file")
    max_request_bytes: int = setting(1 << 30, "bytes of all files of a request")
    # Walking a PNG's chunks to its size takes microseconds each.
    max_image_bytes: int = setting(64 << 20, "bytes of an image file")
    max_image_pixels: int = setting(256_000_000, "pixels of an image, before resizing")
    max_frame_pixels: int = setting(8192 * 4320, "pixels of a video frame, before resizing")
    # Counted by packets: nine hours at 30 frames a second.
    max_clip_frames: int = setting(1_000_000, "frames in a video file")
    max_audio_seconds: int = setting(3600, "seconds of a sound")  # 230 MB of samples at 16 kHz
    max_pixel_bytes: int = setting(2 << 30, "bytes of the pixel tensor of one request")
    max_prompt_length: int = setting(4_000_000, "characters of a rendered prompt, or token ids")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            require_positive_int(option_of(field), getattr(self, field.name))


@dataclass(frozen=True, slots=True)
class WireSettings:
    """What callers may take of the network side, before it is known what they want.

    The most memory that hostile messages can take is `max_upload_count` times `max_message_bytes`: nobody else is read from.
    """

    max_message_bytes: int = setting(
        16 << 20, "bytes of one message; a spec with its inline files must fit", "SIZE", kind=parse_bytes
    )
    max_metadata_bytes: int = setting(16 << 10, "bytes of a call's metadata", "SIZE", kind=parse_bytes)
    max_spec_parts: int = setting(10_000, "messages, parts, and values of arguments in a spec, together")
    max_upload_count: int = setting(64, "callers that upload at a time; others wait their turn", name="--max-uploads")
    max_open_calls: int = setting(1024, "calls open at a time, health checks apart; more are refused")
    max_streams_a_connection: int = setting(512, "calls open at a time on one connection; more wait at the caller")
    max_connections: int = setting(1024, "connections open at a time; more are closed at once")
    max_connection_age_seconds: float = setting(
        3600.0, "after so long a caller is asked to connect anew, to find new replicas", "S", kind=float
    )
    min_ping_seconds: float = setting(
        10.0, "callers whose keepalive pings come faster are disconnected", "S", kind=float
    )
    upload_idle_seconds: float = setting(30.0, "longest silence within an upload", "S", kind=float)
    answer_idle_seconds: float = setting(30.0, "longest time that a caller may not read its answer", "S", kind=float)
    min_upload_rate: int = setting(
        16 << 10, "bytes a second that an upload must come to, after its first silence", "SIZE", kind=parse_bytes
    )
    default_timeout_seconds: float = setting(300.0, "deadline of a call that brings none", "S", kind=float)
    max_timeout_seconds: float = setting(3600.0, "longest deadline of a call", "S", kind=float)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check = require_seconds if field.name.endswith("_seconds") else require_positive_int
            check(option_of(field), getattr(self, field.name))


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """Who may call, and how much. Files may be replaced while they are in use."""

    tls_certificate: str = setting("", "PEM of the service's certificate, which turns TLS on", "FILE", kind=str)
    tls_key: str = setting("", "PEM of its private key", "FILE", kind=str)
    tls_client_root: str = setting(
        "", "PEM of the authorities that sign callers' certificates, which makes TLS mutual", "FILE", kind=str
    )
    is_insecure: bool = setting(
        False, "listen without TLS where other machines can connect", "", name="--insecure", kind=bool
    )
    token_file: str = setting("", "who may call: a line each with a name and a token, or its SHA-256", "FILE", kind=str)
    max_calls_per_second: float = setting(
        0.0, "calls a second of one caller, counted over ten seconds; 0 sets no bound", kind=float
    )
    max_bytes_per_second: int = setting(
        0, "uploaded bytes a second of one caller, counted over ten seconds; 0 sets no bound", "SIZE", kind=parse_bytes
    )
    max_calls_a_caller: int = setting(0, "calls that one caller may have open; 0 sets no bound")

    def __post_init__(self) -> None:
        if bool(self.tls_certificate) != bool(self.tls_key):
            option = "--tls-key" if self.tls_certificate else "--tls-certificate"
            raise SettingError(option, "", "both certificate and key, for TLS, or neither")
        if self.tls_client_root and not self.tls_certificate:
            raise SettingError("--tls-client-root", self.tls_client_root, "it beside --tls-certificate and --tls-key")
        if self.is_insecure and self.tls_certificate:
            raise SettingError("--insecure", True, "either it or --tls-certificate")
        for option, most in (
            ("--max-calls-per-second", self.max_calls_per_second),
            ("--max-bytes-per-second", self.max_bytes_per_second),
            ("--max-calls-a-caller", self.max_calls_a_caller),
        ):
            if isinstance(most, bool) or not (math.isfinite(most) and most >= 0):
                raise SettingError(option, most, "a number above 0, or 0 for no bound")

    def check_address(self, option: str, address: str) -> None:
        """Refuse to be overheard unless that is asked for.

        Raises:
            SettingError: Other machines can connect to the address, and nothing is encrypted.
        """
        if not (self.tls_certificate or self.is_insecure or is_loopback(split_address(option, address)[0])):
            raise SettingError(
                option, address, "a loopback address, or --tls-certificate and --tls-key, or --insecure to be overheard"
            )


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Where prepared prompts go. Options begin with `--engine`."""

    address: str = setting(
        "",
        "Triton's gRPC address, or several, separated by commas; without it, Generate is not served",
        "HOST:PORT",
        name="--engine",
        kind=str,
    )
    model: str = setting("vlm_transformers", "the model's name in Triton", "NAME", kind=str)
    transport: str = setting(
        "auto", "how tensors travel: auto, grpc, or shared-memory (an engine on this host)", "NAME", kind=str
    )
    profile: str = setting("", "what the engine wants otherwise: a built-in profile or a TOML file", "FILE", kind=str)
    on_mismatch: str = setting(
        "refuse", "what becomes of an engine that was set up for another model: refuse, or warn", "NAME", kind=str
    )
    tls_root: str = setting("", "PEM of the authorities that may have signed its certificate", "FILE", kind=str)
    tls_certificate: str = setting("", "PEM of this side's certificate, for mutual TLS", "FILE", kind=str)
    tls_key: str = setting("", "PEM of its private key", "FILE", kind=str)
    tls_server_name: str = setting("", "the name in its certificate, where that is not the host", "NAME", kind=str)
    token_file: str = setting("", "a bearer token to send along; the file may be rotated", "FILE", kind=str)

    def __post_init__(self) -> None:
        for address in self.address.split(",") if self.address else ():
            split_address("--engine", address.strip())
        _require_one_of("--engine-transport", self.transport, "auto", "grpc", "shared-memory")
        _require_one_of("--engine-on-mismatch", self.on_mismatch, "refuse", "warn")
        if bool(self.tls_certificate) != bool(self.tls_key):
            option = "--engine-tls-key" if self.tls_certificate else "--engine-tls-certificate"
            raise SettingError(option, "", "both certificate and key, for mutual TLS, or neither")


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
        available_cpu_count, "cores to work on; the default is the cgroup's CPU limit", name="--workers"
    )
    max_queued_count: int = setting(
        256, "requests that may wait for a worker before more are refused", name="--max-queued"
    )
    memory_budget_bytes: int = setting(
        lambda: available_memory_bytes() // 2,
        "memory for all requests together, such as 4GiB; the default is half of the cgroup's limit",
        "SIZE",
        name="--memory-budget",
        kind=parse_bytes,
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
    video_decoder: str = setting("pyav", "pyav, or opencv to decode as OpenCV does", "NAME", kind=str)
    drain_seconds: float = setting(20.0, "how long a stop waits for calls under way", "S", kind=float)
    log_payloads: bool = setting(
        False,
        "let texts of faults into the log that may hold pieces of prompts and files: for debugging",
        "",
        kind=bool,
    )
    wire: WireSettings = dataclasses.field(default_factory=WireSettings)
    access: AccessSettings = dataclasses.field(default_factory=AccessSettings)
    engine: EngineSettings = dataclasses.field(default_factory=EngineSettings)
    limits: Limits = dataclasses.field(default_factory=Limits)

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
        require_seconds("--max-cpu-seconds", self.max_cpu_seconds)
        require_seconds("--drain-seconds", self.drain_seconds)
        _require_one_of("--video-decoder", self.video_decoder, "pyav", "opencv")
        self.access.check_address("--address", self.address)
        split_address("--http-address", self.http_address)


def require_positive_int(option: str, value: object) -> int:
    """The value, where it is a whole number above 0.

    Raises:
        SettingError: It is anything else; booleans and numeric text count as something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(option, value, "a whole number of at least 1")
    return value


def require_seconds(option: str, value: float) -> float:
    """The value, where it is a time to wait.

    Raises:
        SettingError: It is not above 0, or endless.
    """
    if isinstance(value, bool) or not (math.isfinite(value) and value > 0):
        raise SettingError(option, value, "a number of seconds above 0")
    return value


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to the host. A name other than localhost may stand for any address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def split_address(option: str, address: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 host stands in brackets, which are dropped.

    Raises:
        SettingError: There is no port, or it is not 0 to 65535.
    """
    host, separator, port = address.rpartition(":")
    if not (separator and host and port.isdigit() and int(port) < 65536):
        raise SettingError(option, address, "host:port, such as 0.0.0.0:50051")
    return host.strip("[]"), int(port)


def _require_one_of(option: str, value: str, *accepted: str) -> None:
    if value not in accepted:
        raise SettingError(option, value, " or ".join(accepted))
