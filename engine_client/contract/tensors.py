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
ANSWER_INDEX = "answer_index"
"""int32 [1], output: which of `answer_count` answers the tokens belong to, from 0; 0 where it is absent."""
LOGPROBS = "logprobs"
"""As an input: how many of the likeliest tokens to tell. As an output: float32 [n], of the n `token_ids`."""
TOP_TOKEN_IDS, TOP_LOGPROBS = "top_token_ids", "top_logprobs"
"""int32 and float32 [n, k], outputs: the k likeliest tokens at each of n places, likeliest first."""

ITEM_HASH = "item_hash"
USES_HELD_ITEMS = "uses_held_items"
"""uint8 [1], 1, of a prompt without `PIXELS`: the model holds what it has made of each item, and finds it by `ITEM_HASH`. If it
does not, it refuses the prompt with `ItemsNotHeld`, before anything else, and the prompt is to be sent with its pixels."""
HELD_ITEMS = "held_items"
"""uint8 [M], output, in the first reply to a prompt with items: 1 for each that the model holds from now on, until it needs the
memory. A model that holds items declares both tensors."""

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

FAMILY_INPUTS: Mapping[str, ContractTensor] = _by_name(
    ("tile_counts", np.int64, (-1,)),  # in the place of `grid_thw` where rows are tiles: the rows of each item
    ("image_sizes", np.int64, (-1, 2)),  # height and width in px, of Mistral 3
)
"""What a model that takes families of other rows than patches declares beside the rest."""
TILE_COUNTS = FAMILY_INPUTS["tile_counts"]

OPTIONAL_TENSORS: Mapping[str, ContractTensor] = _by_name(
    (ITEM_HASH, np.uint8, (-1, HASH_BYTES)),
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

FEATURE_TENSORS: Mapping[str, ContractTensor] = _by_name(
    ("min_p", np.float32, (1,)),
    ("presence_penalty", np.float32, (1,)),
    ("frequency_penalty", np.float32, (1,)),
    ("repetition_penalty", np.float32, (1,)),
    (LOGPROBS, np.int32, (1,)),
    ("answer_count", np.int32, (1,)),
    ("json_schema", np.uint8, (-1,)),
    ("regex", np.uint8, (-1,)),
    ("grammar", np.uint8, (-1,)),
)
"""Sampling parameters that an engine may lack: a model that has one declares its tensor. A tensor is sent where its value is
not the default, and only to a model that declares it. Texts are UTF-8."""

FEATURE_OUTPUTS: Mapping[str, Mapping[str, ContractTensor]] = {
    LOGPROBS: _by_name(
        (LOGPROBS, np.float32, (-1,)), (TOP_TOKEN_IDS, np.int32, (-1, -1)), (TOP_LOGPROBS, np.float32, (-1, -1))
    ),
    "answer_count": _by_name((ANSWER_INDEX, np.int32, (1,))),
}
"""The outputs that a model with such a parameter declares beside its input, by the parameter's name."""

HELD_INPUTS: Mapping[str, ContractTensor] = _by_name((USES_HELD_ITEMS, np.uint8, (1,)))
HELD_OUTPUTS: Mapping[str, ContractTensor] = _by_name((HELD_ITEMS, np.uint8, (-1,)))
"""What a model that holds items declares beside the rest."""

CONTRACT_INPUTS: Mapping[str, ContractTensor] = {
    **_by_name((INPUT_IDS, np.int32, (-1,))),
    **VISION_TENSORS,
    **OPTIONAL_TENSORS,
    **SAMPLING_TENSORS,
}
"""All inputs that a model must declare, by name. `FIRST_ROW` is not among them: it is of a message, not of a prompt."""
