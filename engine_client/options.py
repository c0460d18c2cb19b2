"""How to reach an engine, and what it must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import grpc

from engine_client.client import Metadata
from engine_client.fingerprint import Fingerprint


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the client of any engine is made from, beside an address."""

    model_name: str = "vlm_transformers"
    """The model to ask, as the engine calls it."""
    credentials: grpc.ChannelCredentials | None = None
    """For TLS; None is plain text. `tls_credentials` makes them from files."""
    tls_server_name: str | None = None
    """The name in the engine's certificate, where it is not the host of the address."""
    call_metadata: Callable[[], Metadata] | None = None
    """Asked before every call for what to send along beside the caller's own, such as a token."""
    tensor_mapping: str = ""
    """How the model takes prompts: a built-in mapping's name or a file; empty is the engine contract, unchecked."""
    fingerprint: Fingerprint | None = None
    """What the engine must have been set up for; None compares nothing."""
    model_files: Mapping[str, Any] = field(default_factory=dict)
    """JSON files of the model as this side has them, parsed, by name: `config.json` and those of its processor. For engines that
    are asked for theirs and send none."""
    executor: Executor | None = None
    """Where large messages are encoded; None is the event loop's own."""
    max_silence_seconds: float | None = 120.0
    """How long the engine may take to the first token, and from one to the next; None waits as long as the request may."""
