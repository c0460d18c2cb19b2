"""The tensors of one prompt and of its answer: the engine contract.

Beside these, a prompt may have others under their own names: the generic path of a preprocessor sends what a model's own
processor makes. Nothing is known of them here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

INPUT_IDS = "input_ids"
PIXELS = "pixel_patches"
FIRST_ROW = "first_row"
"""int64 [1]: the index of a piece's first row of `PIXELS`. A model that has this input takes a prompt in pieces."""
TOKEN_IDS = "token_ids"
FINISH_REASON = "finish_reason"

STOP, LENGTH = "stop", "length"
"""The values of `FINISH_REASON`: the last token is a stop token; or the answer has `max_tokens` tokens."""
CANCELLED = "cancelled"
"""How an answer ended that its reader left. It is never sent: nobody is left to read it."""

IMAGE, VIDEO = 1, 2
"""The values of `item_modality`; transformers 5.23 uses the same numbers in `mm_token_type_ids`."""
CHANNEL_COUNT = 3
HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class ContractTensor:
    """One tensor of a prompt."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    """-1 where any length is allowed."""

    def __str__(self) -> str:
        lengths = ", ".join("any" if length == -1 else str(length) for length in self.shape)
        return f"{self.dtype} [{lengths}]"


def _by_name(*tensors: tuple[str, type[np.generic], tuple[int, ...]]) -> dict[str, ContractTensor]:
    return {name: ContractTensor(name, np.dtype(dtype), shape) for name, dtype, shape in tensors}


VISION_TENSORS: Mapping[str, ContractTensor] = _by_name(
    (PIXELS, np.uint8, (-1, -1)),  # a float type where the engine asks for one
    ("pixel_mean", np.float32, (CHANNEL_COUNT,)),
    ("pixel_std", np.float32, (CHANNEL_COUNT,)),
    ("grid_thw", np.int64, (-1, 3)),
    ("item_modality", np.int32, (-1,)),
    ("item_spans", np.int32, (-1, 3)),
)
"""A prompt has all of them, or, for text alone, none."""

OPTIONAL_TENSORS: Mapping[str, ContractTensor] = _by_name(
    ("item_hash", np.uint8, (-1, HASH_BYTES)),
    ("mrope_position_ids", np.int32, (3, -1)),
    ("mrope_position_delta", np.int32, (1,)),
    ("second_per_grid_ts", np.float32, (-1,)),
)
"""Sent where the model family has them; engines may ignore them."""

SAMPLING_TENSORS: Mapping[str, ContractTensor] = _by_name(
    ("max_tokens", np.int32, (1,)),
    ("temperature", np.float32, (1,)),
    ("top_p", np.float32, (1,)),
    ("top_k", np.int32, (1,)),
    ("seed", np.uint64, (1,)),
    ("stop_token_ids", np.int32, (-1,)),
)

CONTRACT_INPUTS: Mapping[str, ContractTensor] = {
    **_by_name((INPUT_IDS, np.int32, (-1,))),
    **VISION_TENSORS,
    **OPTIONAL_TENSORS,
    **SAMPLING_TENSORS,
}
"""All inputs of a prompt, by name. `FIRST_ROW` is not among them: it is of a message, not of a prompt."""
