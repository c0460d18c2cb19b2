"""All settings of the service."""

from __future__ import annotations

from dataclasses import dataclass

from preprocessor.config.access import AccessSettings
from preprocessor.config.checks import require_choices, require_positive_int, require_seconds, split_address
from preprocessor.config.declare import SettingError, group, setting
from preprocessor.config.engine import EngineSettings
from preprocessor.config.fetch import FetchSettings
from preprocessor.config.limits import Limits
from preprocessor.config.machine import available_cpu_count, default_front_count
from preprocessor.config.memory import (
    INSPECTION_BYTES,
    LEAST_BUDGET_BYTES,
    MAX_CACHE_SHARE,
    MAX_OPENAI_CONNECTIONS,
    OPENAI_CONNECTION_BYTES,
    UPLOAD_BYTES,
    default_budget,
    front_bytes,
)
from preprocessor.config.trace import TraceSettings
from preprocessor.config.values import NO_BACKGROUND, parse_background, parse_bytes
from preprocessor.config.wire import WireSettings


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
    openai_address: str = setting(
        "", "where OpenAI's chat completions listen, in front of Generate; without it, nowhere", "HOST:PORT", kind=str
    )
    worker_count: int = setting(
        available_cpu_count, "cores to work on", name="--workers", default_text="the cgroup's CPU limit"
    )
    front_count: int = setting(
        default_front_count,
        "processes that share the gRPC port and carry callers' bytes; 1: the service itself does",
        name="--fronts",
        default_text="one for four cores from 8 on, else 1",
    )
    max_queued_count: int = setting(
        256, "requests that may wait for a worker before more are refused", name="--max-queued"
    )
    memory_budget_bytes: int = setting(
        default_budget,
        "memory for all requests together; a quarter of it is for files",
        "SIZE",
        name="--memory-budget",
        kind=parse_bytes,
        default_text="half of the cgroup's limit, 1 GiB beside it at least",
    )
    cache_share: float = setting(
        0.25,
        "part of the memory budget, at most 0.7, in which finished pixels may stay for requests with the same media; "
        "requests get this memory when they need it; 0 keeps none",
        "PART",
        kind=float,
    )
    worker_memory_bytes: int = setting(
        0,
        "memory that one worker may take for its work; 0 means the budget",
        "SIZE",
        name="--worker-memory",
        kind=parse_bytes,
    )
    max_cpu_seconds: float = setting(300.0, "CPU that one request may use in one stage", "S", kind=float)
    max_jobs_a_worker: int = setting(10_000, "tasks after which a worker process is replaced")
    worker_reuse: str = setting(
        "caller",
        "whose tasks one worker process runs: those of one caller, where callers are named, or any",
        kind=str,
        choices=("caller", "any"),
    )
    isolation: str = setting(
        "available",
        "required: do not start where the system calls of workers cannot be filtered",
        kind=str,
        choices=("available", "required"),
    )
    is_in_process: bool = setting(
        False, "work on threads: for debugging only, nothing is isolated", "", name="--in-process", kind=bool
    )
    video_decoder: str = setting(
        "pyav", "decoder; `opencv` reproduces OpenCV's pixels", kind=str, choices=("pyav", "opencv")
    )
    early_decoding: str = setting(
        "on",
        "decode mp4 files with their index in front while they are still arriving, on cores that nothing else needs",
        kind=str,
        choices=("on", "off"),
    )
    background: str = setting(
        NO_BACKGROUND,
        "what transparent parts of images are laid on: white, black or #rrggbb; none does as transformers does",
        "COLOUR",
        kind=parse_background,
    )
    video_markers: str = setting(
        "auto",
        "the template's vision markers around a Qwen3-VL video; auto: as the engine declares, else as the installed transformers",
        kind=str,
        choices=("auto", "keep", "replace"),
    )
    is_inspectable: bool = setting(
        False,
        "serve /inspect at the HTTP port, for browsers on this host: a page that shows what a prompt became",
        "",
        kind=bool,
        name="--inspect",
    )
    preparation: str = setting(
        "auto",
        "generic takes transformers' own processor, even where the model's family has a fast path",
        kind=str,
        choices=("auto", "generic"),
    )
    drain_seconds: float = setting(20.0, "how long a stop waits for calls under way", "S", kind=float)
    budget_full_seconds: float = setting(
        15.0, "how long the memory budget may be full before this replica is unready", "S", kind=float
    )
    log_level: str = setting("info", "what to log", kind=str, choices=("debug", "info", "warning", "error"))
    log_format: str = setting("text", "lines of text, or a JSON object a line", kind=str, choices=("text", "json"))
    log_payloads: bool = setting(
        False,
        "let texts of faults into the log that may hold pieces of prompts and files: for debugging",
        "",
        kind=bool,
    )
    access: AccessSettings = group(AccessSettings, "who may call")
    wire: WireSettings = group(WireSettings, "the wire")
    engine: EngineSettings = group(EngineSettings, "the engine, for Generate", "engine-", needs="address")
    fetch: FetchSettings = group(FetchSettings, "media given by URL", "fetch-")
    trace: TraceSettings = group(TraceSettings, "spans, for tracing", "trace-", needs="endpoint")
    limits: Limits = group(Limits, "limits on one request")

    @property
    def more_bytes(self) -> int:
        """Memory for messages being received, for `/inspect` and for fronts that `bytes_beside_budget` does not include."""
        message_bytes = self.wire.max_upload_count * self.wire.max_message_bytes
        more_bytes = max(0, message_bytes - UPLOAD_BYTES) + self.openai_connection_count * OPENAI_CONNECTION_BYTES
        return more_bytes + self.is_inspectable * INSPECTION_BYTES + front_bytes(self.front_count, message_bytes)

    @property
    def openai_connection_count(self) -> int:
        """Connections to `openai_address` that may be open at a time."""
        return min(self.wire.max_connections, MAX_OPENAI_CONNECTIONS) if self.openai_address else 0

    def __post_init__(self) -> None:
        require_positive_int("--workers", self.worker_count)
        require_positive_int("--fronts", self.front_count)
        require_positive_int("--max-queued", self.max_queued_count)
        require_positive_int("--max-jobs-a-worker", self.max_jobs_a_worker)
        for option, size_bytes, least in (
            ("--memory-budget", self.memory_budget_bytes, LEAST_BUDGET_BYTES),
            ("--worker-memory", self.worker_memory_bytes, 0),
        ):
            if isinstance(size_bytes, bool) or not isinstance(size_bytes, int) or size_bytes < least:
                raise SettingError(option, size_bytes, f"a size of at least {least >> 20} MiB, such as 4GiB")
        if not 0 <= self.cache_share <= MAX_CACHE_SHARE:
            raise SettingError("--cache-share", self.cache_share, f"a number from 0 to {MAX_CACHE_SHARE}")
        require_seconds("--max-cpu-seconds", self.max_cpu_seconds)
        require_seconds("--drain-seconds", self.drain_seconds)
        require_seconds("--budget-full-seconds", self.budget_full_seconds)
        require_choices(self)
        if self.is_in_process and self.isolation == "required":
            raise SettingError("--isolation", self.isolation, "available: nothing is isolated with --in-process")
        try:
            parse_background(self.background)
        except ValueError as error:
            raise SettingError("--background", self.background, "white, black, #rrggbb or none") from error
        self.access.check_address("--address", self.address)
        _, port = split_address("--address", self.address)
        split_address("--http-address", self.http_address)
        if self.address == self.http_address and port:
            raise SettingError("--http-address", self.http_address, "another port than --address has")
        if self.openai_address:
            self.access.check_address("--openai-address", self.openai_address)
            _, openai_port = split_address("--openai-address", self.openai_address)
            if openai_port and self.openai_address in (self.address, self.http_address):
                raise SettingError(
                    "--openai-address", self.openai_address, "another port than --address and --http-address have"
                )
