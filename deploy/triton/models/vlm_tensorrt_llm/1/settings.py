"""The model's parameters from `config.pbtxt`, read and checked once, before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine_client.contract.published import published_parts
from engine_client.triton.backend.parameters import InvalidSettings as InvalidSettings
from engine_client.triton.backend.parameters import ParameterReader, json_object

DTYPES = ("auto", "bfloat16", "float16", "float32")
OWN_ARGUMENTS = ("model", "dtype", "tensor_parallel_size", "kv_cache_config")
"""What `llm_arguments` may not say, because a parameter of its own does."""
MULTIMODAL_ARGUMENTS = (
    "encoder_cache_max_bytes",
    "encoder_cuda_graph",
    "encoder_scheduling_policy",
    "encoder_side_stream_max_ahead",
    "video_pruning_rate",
)
"""Fields of `MultimodalConfig` (llmapi/llm_args.py). `encoder_max_num_tokens` is still an argument of `LLM`."""


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
    fingerprint: Mapping[str, str] = field(default_factory=dict)

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
            llm_arguments=read.value("llm_arguments", json_object, _names_each_once, _LLM_ARGUMENTS_RULE),
            fingerprint=published_parts(parameters),
        )


_LLM_ARGUMENTS_RULE = (
    f"a JSON object of further arguments of tensorrt_llm.LLM, each once, not {', '.join(OWN_ARGUMENTS)}"
)


def place_multimodal_arguments(arguments: Mapping[str, Any], *, is_nested: bool) -> dict[str, Any]:
    """`llm_arguments` in the form of a release, whichever form they were written in.

    Args:
        is_nested: Whether the release has `multimodal_config`.
    """
    inner = dict(arguments.get("multimodal_config", {}))
    outer = {name: value for name, value in arguments.items() if name != "multimodal_config"}
    if not is_nested:
        return {**outer, **inner}
    inner |= {name: outer.pop(name) for name in MULTIMODAL_ARGUMENTS if name in outer}
    return {**outer, "multimodal_config": inner} if inner else outer


def settings_digest(fingerprint: Mapping[str, str], dtype: str) -> str:
    """What decides an item's features beside its own hash, hexadecimal; equal in every process that is set up alike.

    TensorRT-LLM's own input processor has a digest of processor arguments here, and its encoder cache keeps nothing without
    one. `item_hash` covers all such arguments, so this only separates items of differently declared models.
    """
    parts = ["vlm-preprocessor", dtype, sorted(fingerprint.items())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _names_each_once(arguments: Mapping[str, Any]) -> bool:
    inner = arguments.get("multimodal_config", {})
    return isinstance(inner, dict) and not set(arguments) & {*OWN_ARGUMENTS, *inner}
