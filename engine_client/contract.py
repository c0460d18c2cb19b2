"""The engine contract's tensors as a table: what is sent for one prompt and read back, unless a profile says otherwise.

Beside these, a prompt may carry others under their own names (the generic path of a preprocessor sends what a model's
own processor makes); nothing is known of them here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine_client.types import FinishReason, SamplingParameters, TensorInfo

INPUT_IDS = "input_ids"
PIXELS = "pixel_patches"
TOKEN_IDS = "token_ids"
FINISH_REASON = "finish_reason"

# Prompt lengths, rows and items are -1: any. Pixels are UINT8 unless a profile asks for a float form.
CONTRACT_INPUTS: Mapping[str, TensorInfo] = {
    tensor.name: tensor
    for tensor in (
        TensorInfo(INPUT_IDS, "INT32", (-1,)),
        TensorInfo(PIXELS, "UINT8", (-1, -1)),
        TensorInfo("pixel_mean", "FP32", (3,)),
        TensorInfo("pixel_std", "FP32", (3,)),
        TensorInfo("grid_thw", "INT64", (-1, 3)),
        TensorInfo("item_modality", "INT32", (-1,)),
        TensorInfo("item_spans", "INT32", (-1, 3)),
        TensorInfo("item_hash", "UINT8", (-1, 32)),
        TensorInfo("mrope_position_ids", "INT32", (3, -1)),
        TensorInfo("mrope_position_delta", "INT32", (1,)),
        TensorInfo("second_per_grid_ts", "FP32", (-1,)),
        TensorInfo("max_tokens", "INT32", (1,)),
        TensorInfo("temperature", "FP32", (1,)),
        TensorInfo("top_p", "FP32", (1,)),
        TensorInfo("top_k", "INT32", (1,)),
        TensorInfo("seed", "UINT64", (1,)),
        TensorInfo("stop_token_ids", "INT32", (-1,)),
    )
}


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where an engine's answer says what."""

    token_ids: str = TOKEN_IDS
    token_ids_datatype: str = "INT32"
    finish_reason: str | None = FINISH_REASON
    """None for an engine that does not say: it is then told from the tokens, a full count or a stop token."""

    def wanted(self) -> Iterator[tuple[str, str]]:
        """Name and datatype of each output that is read."""
        yield self.token_ids, self.token_ids_datatype
        if self.finish_reason is not None:
            yield self.finish_reason, "BYTES"


CONTRACT_OUTPUTS = Outputs()


def finish_reason_of(last_token_ids: Sequence[int], token_count: int, sampling: SamplingParameters) -> FinishReason:
    """Why an answer ended whose engine does not say.

    Args:
        last_token_ids: Of its last step with tokens.
        token_count: Of the whole answer.
    """
    is_stopped = bool(last_token_ids) and last_token_ids[-1] in sampling.stop_token_ids
    return FinishReason.LENGTH if token_count >= sampling.max_tokens and not is_stopped else FinishReason.STOP
