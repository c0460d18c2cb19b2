"""Where spans go."""

from __future__ import annotations

from dataclasses import dataclass

from preprocessor.config.declare import SettingError, setting


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """Where spans go. Options begin with `--trace`."""

    endpoint: str = setting(
        "",
        "OTLP collector to send spans to by gRPC, such as http://127.0.0.1:4317 (https for TLS); needs the extra otel",
        "URL",
        kind=str,
    )
    sample_ratio: float = setting(
        1.0, "part of the calls to trace, of those whose caller has not decided it", "RATIO", kind=float
    )

    def __post_init__(self) -> None:
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise SettingError("--trace-endpoint", self.endpoint, "a URL, such as http://127.0.0.1:4317")
        if not 0 <= self.sample_ratio <= 1:
            raise SettingError("--trace-sample-ratio", self.sample_ratio, "a number from 0 to 1")
