"""By what a model finds again what it has made of an item."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.prompt import Prompt
from engine_client.contract.tensors import HASH_BYTES, ITEM_HASH, Array

HeldKey = bytes
"""Hash, grid and normalization of an item: what a model makes of its pixels depends on all of them."""


def held_keys(tensors: Mapping[str, Array], prompt: Prompt) -> tuple[HeldKey, ...]:
    """The key of each item of a prompt; empty if it came without `item_hash`, so that none can be held.

    A hash is taken as it comes, as vLLM's caches take it: whoever may send prompts can send pixels that do not fit theirs.

    Raises:
        InvalidPrompt: `item_hash` has another type or shape.
    """
    hashes = tensors.get(ITEM_HASH)
    if hashes is None or not prompt.modality:
        return ()
    expected = (len(prompt.modality), HASH_BYTES)
    if hashes.dtype != np.uint8 or hashes.shape != expected:
        raise InvalidPrompt(
            f"{ITEM_HASH} is {hashes.dtype} {list(hashes.shape)}; it must be uint8 {list(expected)}, one an item"
        )
    normalization = b"".join(values.tobytes() for values in prompt.normalization)
    return tuple(
        digest.tobytes() + grid.tobytes() + normalization for digest, grid in zip(hashes, prompt.grids, strict=True)
    )
