"""How an engine chooses tokens, and the tensors that carry it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.tensors import FEATURE_TENSORS, SAMPLING_TENSORS, Array

INT32_MAX = 2**31 - 1
UINT64_MAX = 2**64 - 1
MAX_LOGPROBS = 20  # OpenAI's API, `top_logprobs`; vLLM's default, --max-logprobs
MAX_ANSWERS = 128  # OpenAI's API, `n`
MAX_CONSTRAINT_BYTES = 64 << 10
# OpenAI's API and vLLM, presence_penalty and frequency_penalty.
MAX_PENALTY = 2.0
# Engines take any number above 0; far outside of this, scores overflow to infinities, which some of them do not survive.
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 1 / 16, 16.0  # exact in float32, in which they travel

CONSTRAINTS = ("json_schema", "regex", "grammar")
"""The parameters that say which texts an answer may be; at most one of them is given."""


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
    min_p: float = 0.0
    """Sample from tokens with at least this share of the likeliest one's probability; 0 (off) to 1."""
    presence_penalty: float = 0.0
    """Subtracted from the score of each token that the answer has already; -2 to 2."""
    frequency_penalty: float = 0.0
    """Subtracted from the score of each token once for each time that the answer has it; -2 to 2."""
    repetition_penalty: float = 1.0
    """Divides positive scores, and multiplies negative ones, of each token that the prompt or the answer has; 1/16 to 16."""
    logprobs: int | None = None
    """0 to 20: tell the log probability of each token of the answer, and of this many of the likeliest tokens in its place.
    None tells none. They are those of the model before temperature, penalties and constraint."""
    answer_count: int = 1
    """Answers to the prompt; 1 to 128. More than one need a temperature above 0: greedy ones would be equal."""
    json_schema: str = ""
    """The answer is JSON that this JSON schema allows; empty is off, as for the following. 64 KiB of UTF-8 at most."""
    regex: str = ""
    """The whole answer matches this regular expression, in the engine's dialect."""
    grammar: str = ""
    """The answer is a sentence of this grammar, in the engine's dialect of EBNF."""

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
        _require_within("min_p", self.min_p, 0, 1)
        _require_within("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        _require_within("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        _require_within("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY)
        if self.logprobs is not None:
            _require_within("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        _require_within("answer_count", self.answer_count, 1, MAX_ANSWERS)
        if self.answer_count > 1 and self.temperature == 0:
            raise ValueError(
                f"answer_count is {self.answer_count} with temperature 0, at which all answers are equal; it must be 1, "
                "or the temperature above 0"
            )
        given = [name for name in CONSTRAINTS if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"{given[0]} is given beside {', '.join(given[1:])}; it must be the only constraint")
        for name in given:
            size_bytes = len(getattr(self, name).encode())
            if size_bytes > MAX_CONSTRAINT_BYTES:
                raise ValueError(f"{name} is of {size_bytes} bytes; it must be of at most {MAX_CONSTRAINT_BYTES}")

    @property
    def features(self) -> frozenset[str]:
        """The names of the parameters of `FEATURE_TENSORS` that differ from their defaults: the engine must have them."""
        return frozenset(self._given())

    def _given(self) -> list[str]:
        return [name for name in FEATURE_TENSORS if getattr(self, name) != getattr(_DEFAULT, name)]

    def tensors(self) -> dict[str, Array]:
        """The tensors that carry these; left out are `stop_token_ids` when there are none, and features at their defaults."""
        tensors: dict[str, Array] = {
            name: np.array([getattr(self, name)], tensor.dtype)
            for name, tensor in SAMPLING_TENSORS.items()
            if name != "stop_token_ids"
        }
        if self.stop_token_ids:
            tensors["stop_token_ids"] = np.array(self.stop_token_ids, SAMPLING_TENSORS["stop_token_ids"].dtype)
        for name in self._given():
            value = getattr(self, name)
            tensors[name] = (
                np.frombuffer(value.encode(), np.uint8)
                if name in CONSTRAINTS
                else np.array([value], FEATURE_TENSORS[name].dtype)
            )
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Array]) -> SamplingParameters:
        """Read those of the tensors that are there; other names are ignored.

        Raises:
            InvalidPrompt: a value is out of its range, a tensor that takes one value has another number of them, or a
                text is no UTF-8.
        """
        values: dict[str, Any] = {}
        for name in _TENSORS.keys() & tensors.keys():
            array = tensors[name]
            if name in CONSTRAINTS:
                values[name] = _text_of(name, array)
                continue
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


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely one token of an answer was: natural logarithms of probabilities."""

    logprob: float
    """Of the token itself."""
    top: tuple[tuple[int, float], ...] = ()
    """Ids of the likeliest tokens in its place with theirs, likeliest first; as many as `SamplingParameters.logprobs`."""


def _text_of(name: str, array: Array) -> str:
    try:
        return array.astype(np.uint8).tobytes().decode()
    except UnicodeDecodeError as error:
        raise InvalidPrompt(f"{name} is no text in UTF-8: {error}") from error


def _require_within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must be from {low} to {high}")


_DEFAULT = SamplingParameters()
_TENSORS = {**SAMPLING_TENSORS, **FEATURE_TENSORS}
