"""How an engine chooses tokens, and the tensors that carry it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.tensors import SAMPLING_TENSORS, Array

INT32_MAX = 2**31 - 1
UINT64_MAX = 2**64 - 1


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the engine chooses tokens.

    Raises:
        ValueError: a value is out of the range stated beside it.
    """

    max_tokens: int = 16
    """Tokens to generate at most; 1 to 2**31 - 1."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; above 0 samples."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together have this probability; above 0, at most 1 (off)."""
    top_k: int = 0
    """Sample from this many of the likeliest tokens; 0 is off."""
    seed: int = 0
    """The same seed, prompt and engine sample the same tokens; 0 to 2**64 - 1."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end the answer; empty leaves it to the model's own."""

    def __post_init__(self) -> None:
        _require_within("max_tokens", self.max_tokens, 1, INT32_MAX)
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or a number above")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        _require_within("top_k", self.top_k, 0, INT32_MAX)
        _require_within("seed", self.seed, 0, UINT64_MAX)
        for token_id in self.stop_token_ids:
            _require_within("stop_token_ids holds a token id that", token_id, 0, INT32_MAX)

    def tensors(self) -> dict[str, Array]:
        """The tensors that carry these; `stop_token_ids` is left out when there are none."""
        tensors: dict[str, Array] = {
            name: np.array([getattr(self, name)], tensor.dtype)
            for name, tensor in SAMPLING_TENSORS.items()
            if name != "stop_token_ids"
        }
        if self.stop_token_ids:
            tensors["stop_token_ids"] = np.array(self.stop_token_ids, SAMPLING_TENSORS["stop_token_ids"].dtype)
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array]) -> SamplingParameters:
        """Read those of the tensors that are there; other names are ignored.

        Raises:
            InvalidPrompt: a value is out of its range, or a tensor that takes one value has another number of them.
        """
        values: dict[str, Any] = {}
        for name in SAMPLING_TENSORS.keys() & tensors.keys():
            array = tensors[name]
            if name == "stop_token_ids":
                values[name] = tuple(array.reshape(-1).tolist())
                continue
            if array.size != 1:
                raise InvalidPrompt(f"{name} holds {array.size} values; it takes one")
            values[name] = array.reshape(-1)[0].item()
        try:
            return cls(**values)
        except ValueError as error:
            raise InvalidPrompt(str(error)) from error


def _require_within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be from {low} to {high}")
