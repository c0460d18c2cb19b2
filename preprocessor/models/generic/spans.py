"""Which tokens of a processor's prompt stand for which image, for an engine that must know.

A processor says nothing of it. It is known where each image has one run of the image's token: then the runs come in the order of
the images. Images that are split (tiles or rows with tokens between them) have more runs, images side by side may have fewer, and
nothing is said of either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.types.plan import ItemPlan
from preprocessor.types.request import Modality


def item_tensors(
    processor: Any, items: Sequence[ItemPlan], token_ids: npt.NDArray[np.int32]
) -> dict[str, npt.NDArray[Any]]:
    """The engine contract's tensors that tell items apart.

    Args:
        processor: transformers' own.
        items: In prompt order.
        token_ids: int32 [L], placeholders expanded.
    Returns:
        `item_modality` int32 [M], `item_spans` int32 [M, 3] (item, offset, length) and `item_hash` uint8 [M, 32]; empty where
        an item is no image, or there are not as many runs as images.
    """
    # transformers 5.23, ProcessorMixin.image_token_ids: what it marks as an image; first the token that features replace.
    # `image_token_id` is another one of Gemma 3's, which stands for the image in the text.
    token_id = next(iter(getattr(processor, "image_token_ids", None) or ()), None)
    if not items or not isinstance(token_id, int) or any(item.modality is not Modality.IMAGE for item in items):
        return {}
    is_placeholder = np.concatenate([[False], token_ids == token_id, [False]])
    bounds = np.flatnonzero(is_placeholder[1:] != is_placeholder[:-1]).reshape(-1, 2)
    if len(bounds) != len(items):
        return {}
    return {
        "item_modality": np.full(len(items), int(Modality.IMAGE), np.int32),
        "item_spans": np.column_stack([np.arange(len(items)), bounds[:, 0], bounds[:, 1] - bounds[:, 0]]).astype(
            np.int32
        ),
        "item_hash": np.frombuffer(b"".join(item.digest for item in items), np.uint8).reshape(len(items), -1),
    }
