"""Which outputs of a model say what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine_client.contract.sampling import SamplingParameters
from engine_client.contract.tensors import FINISH_REASON, TOKEN_IDS
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
