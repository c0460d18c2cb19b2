"""The model's parameters from `config.pbtxt`, read and checked once, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine_client.triton.backend.parameters import InvalidSettings as InvalidSettings
from engine_client.triton.backend.parameters import ParameterReader, json_object

DTYPES = ("auto", "bfloat16", "float16", "float32")
OWN_ARGUMENTS = ("model", "dtype", "tensor_parallel_size", "kv_cache_config")
"""What `llm_arguments` may not say, because a parameter of its own does."""


@dataclass(frozen=True, slots=True)
class ModelParameters:
    """How to load the checkpoint and how much to take on; see `config.pbtxt` for what each means."""

    checkpoint: str
    dtype: str
    tensor_parallel_size: int
    pixel_device: str
    kv_cache_free_fraction: float
    kv_cache_dtype: str
    kv_cache_reuse: bool
    max_in_flight: int
    max_row_wait_seconds: float
    drain_seconds: float
    accept_other_versions: bool
    llm_arguments: Mapping[str, Any] = field(default_factory=dict)

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
        return cls(
            checkpoint=read.checkpoint(environment),
            dtype=read.value("dtype", str, DTYPES.__contains__, f"one of {', '.join(DTYPES)}"),
            tensor_parallel_size=read.value("tensor_parallel_size", int, lambda count: count >= 1, "1 or more"),
            pixel_device=read.text("pixel_device"),
            kv_cache_free_fraction=read.value(
                "kv_cache_free_fraction", float, lambda part: 0 < part < 1, "a number between 0 and 1"
            ),
            kv_cache_dtype=read.text("kv_cache_dtype"),
            kv_cache_reuse=read.flag("kv_cache_reuse"),
            max_in_flight=read.value("max_in_flight", int, lambda count: count >= 1, "1 or more"),
            max_row_wait_seconds=read.value("max_row_wait_seconds", float, lambda time: 0 < time < 3600, "0 to 3600"),
            drain_seconds=read.value("drain_seconds", float, lambda time: 0 <= time < 3600, "0 to 3600"),
            accept_other_versions=read.flag("accept_other_versions"),
            llm_arguments=read.value("llm_arguments", json_object, _names_none_of_ours, _LLM_ARGUMENTS_RULE),
        )


_LLM_ARGUMENTS_RULE = f"a JSON object of further arguments of tensorrt_llm.LLM, not {', '.join(OWN_ARGUMENTS)}"


def _names_none_of_ours(arguments: Mapping[str, Any]) -> bool:
    return not set(arguments) & set(OWN_ARGUMENTS)
