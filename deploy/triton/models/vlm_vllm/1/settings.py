"""The model's parameters from `config.pbtxt`, read and checked once, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine_client.triton.backend.parameters import ParameterReader

STOP_SERVER, REFUSE = "stop_server", "refuse"
"""The values of `when_engine_dies`."""
OWN_ARGUMENTS = ("model", "skip_tokenizer_init")
"""What `engine_arguments` may not say: a parameter of its own does, or this model cannot do without."""


@dataclass(frozen=True, slots=True)
class ModelParameters:
    """How to load the checkpoint and how much to take on; see `config.pbtxt` for what each means."""

    checkpoint: str
    max_start_seconds: float
    max_in_flight: int
    max_row_wait_seconds: float
    drain_seconds: float
    when_engine_dies: str
    held_items_bytes: int = 0
    engine_arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str], environment: Mapping[str, str]) -> ModelParameters:
        """Read `config.pbtxt`'s parameters.

        Args:
            parameters: By name, as text.
            environment: Where `VLM_CHECKPOINT` is looked up if the parameter is empty.
        Raises:
            InvalidSettings: one is missing or out of its range.
        """
        read = ParameterReader(parameters)
        ends = (STOP_SERVER, REFUSE)
        return cls(
            checkpoint=read.checkpoint(environment),
            max_start_seconds=read.value("max_start_seconds", float, lambda time: 1 <= time <= 86400, "1 to 86400"),
            max_in_flight=read.value("max_in_flight", int, lambda count: count >= 1, "1 or more"),
            max_row_wait_seconds=read.value("max_row_wait_seconds", float, lambda time: 0 < time < 3600, "0 to 3600"),
            drain_seconds=read.value("drain_seconds", float, lambda time: 0 <= time < 3600, "0 to 3600"),
            when_engine_dies=read.value("when_engine_dies", str, ends.__contains__, f"one of {', '.join(ends)}"),
            held_items_bytes=ParameterReader({"held_items_bytes": "0"} | dict(parameters)).value(
                "held_items_bytes", int, lambda size: size >= 0, "a number of bytes, 0 or more"
            ),
            engine_arguments=read.arguments("engine_arguments", OWN_ARGUMENTS, "vllm.AsyncEngineArgs"),
        )
