"""Which outputs of a model say what, and what those of log probabilities say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine_client.contract.sampling import SamplingParameters, TokenLogprob
from engine_client.contract.tensors import FINISH_REASON, LOGPROBS, TOKEN_IDS, TOP_LOGPROBS, TOP_TOKEN_IDS
from engine_client.errors import EngineFailed
from engine_client.types import FinishReason


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of a model that are read; the default is the engine contract's."""

    token_ids: str = TOKEN_IDS
    token_ids_datatype: str = "INT32"
    finish_reason: str | None = FINISH_REASON
    """None for an engine that does not tell: it is then derived from the tokens, a full count or a stop token."""

    def wanted(self) -> Iterator[tuple[str, str]]:
        """Name and datatype of each output that is read."""
        yield self.token_ids, self.token_ids_datatype
        if self.finish_reason is not None:
            yield self.finish_reason, "BYTES"


CONTRACT_OUTPUTS = Outputs()


def finish_reason_of(last_token_ids: Sequence[int], token_count: int, sampling: SamplingParameters) -> FinishReason:
    """Why an answer ended whose engine does not tell.

    Args:
        last_token_ids: Of its last step with tokens.
        token_count: Of the whole answer.
    """
    is_stopped = bool(last_token_ids) and last_token_ids[-1] in sampling.stop_token_ids
    return FinishReason.LENGTH if token_count >= sampling.max_tokens and not is_stopped else FinishReason.STOP


def read_finish_reason(text: str | None) -> FinishReason | None:
    """The finish reason of a reply; None where it has none.

    Raises:
        EngineFailed: the contract has no such reason.
    """
    if text is None:
        return None
    try:
        return FinishReason(text)
    except ValueError as error:
        known = ", ".join(FinishReason)
        raise EngineFailed(f"finish_reason is {text!r}; the contract has {known}") from error


def read_logprobs(outputs: Mapping[str, tuple[str, bytes]], token_count: int) -> tuple[TokenLogprob, ...]:
    """The log probabilities in a reply that has some: one for each of its tokens.

    Args:
        outputs: Of the reply: name → datatype and content, by the contract's names.
    Raises:
        ValueError: they are not as many as the tokens.
    """
    logprobs = np.frombuffer(outputs[LOGPROBS][1], "<f4").tolist()
    ids = np.frombuffer(outputs[TOP_TOKEN_IDS][1], "<i4").tolist() if TOP_TOKEN_IDS in outputs else []
    values = np.frombuffer(outputs[TOP_LOGPROBS][1], "<f4").tolist() if TOP_LOGPROBS in outputs else []
    if len(logprobs) != token_count or len(ids) != len(values) or len(ids) % max(1, token_count):
        raise ValueError(
            f"{LOGPROBS}, {TOP_TOKEN_IDS} and {TOP_LOGPROBS} have {len(logprobs)}, {len(ids)} and {len(values)} values for "
            f"{token_count} tokens"
        )
    pairs, count = tuple(zip(ids, values, strict=True)), len(ids) // max(1, token_count)
    return tuple(
        TokenLogprob(logprob, pairs[place * count : (place + 1) * count]) for place, logprob in enumerate(logprobs)
    )
