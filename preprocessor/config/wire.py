"""What callers may take of the network."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from preprocessor.config.checks import require_positive_int, require_seconds
from preprocessor.config.declare import option_of, setting
from preprocessor.config.values import parse_bytes


@dataclass(frozen=True, slots=True)
class WireSettings:
    """What callers may take of the network side, before it is known what they want.

    The most memory that messages on their way in can take is `max_upload_count` times `max_message_bytes`: nobody else is read
    from. `config.serve` counts it among what a container needs beside the budget.
    """

    max_message_bytes: int = setting(
        16 << 20, "bytes of one message; a spec with its inline files must fit", "SIZE", kind=parse_bytes
    )
    max_metadata_bytes: int = setting(16 << 10, "bytes of a call's metadata", "SIZE", kind=parse_bytes)
    max_spec_parts: int = setting(10_000, "messages, parts, and values of arguments in a spec, together")
    max_upload_count: int = setting(16, "callers that upload at a time; others wait their turn", name="--max-uploads")
    max_open_calls: int = setting(1024, "calls open at a time, health checks apart; more are refused")
    max_streams_a_connection: int = setting(512, "calls open at a time on one connection; more wait at the caller")
    max_connections: int = setting(1024, "connections open at a time, at each front; more are closed at once")
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
