"""What an engine takes: prompts are prepared accordingly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import ml_dtypes
import numpy as np


class PixelType(StrEnum):
    """How pixel values are made."""

    UINT8 = "uint8"
    """As decoded; the engine normalizes them."""
    BF16 = "bf16"
    """Normalized, as are the following."""
    FP16 = "fp16"
    FP32 = "fp32"

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the array of pixels."""
        return _DTYPES[self]


_DTYPES: Mapping[PixelType, np.dtype[Any]] = {
    PixelType.UINT8: np.dtype(np.uint8),
    PixelType.BF16: np.dtype(ml_dtypes.bfloat16),
    PixelType.FP16: np.dtype(np.float16),
    PixelType.FP32: np.dtype(np.float32),
}


@dataclass(frozen=True, slots=True)
class EngineCapabilities:
    """What one engine takes. It does not change while its client lives.

    Raises:
        ValueError: `pixel_types` is empty.
    """

    pixel_types: tuple[PixelType, ...] = (PixelType.UINT8,)
    """The types that it takes, the preferred one first."""
    takes_pieces: bool = False
    """Whether a request may have `pending`: rows are then sent while later ones are still written. Without it the arrays of
    a request must be complete."""
    reads_shared_memory: bool = False
    """Whether `EngineClient.share` may be called: the engine then reads the arrays of a region where they are."""
    takes_hashes_only: bool = False
    """Whether the engine has the pixels of each item, or its features, from elsewhere, and finds them by `item_hash`: requests
    then have no `pixel_patches`."""
    tells_items_apart: bool = False
    """Whether a prompt of a model's own processor is to have `item_modality`, `item_spans` and `item_hash` too, where they are
    known."""

    def __post_init__(self) -> None:
        if not self.pixel_types:
            raise ValueError("pixel_types is empty; give at least one type")


def common_capabilities(each: Sequence[EngineCapabilities]) -> EngineCapabilities:
    """What several engines take, any of which may get the next request.

    Args:
        each: At least one; the order of pixel types is that of the first.
    Raises:
        ValueError: they have no pixel type in common.
    """
    pixel_types = tuple(kind for kind in each[0].pixel_types if all(kind in other.pixel_types for other in each))
    if not pixel_types:
        taken = "; ".join(", ".join(one.pixel_types) for one in each)
        raise ValueError(f"the engines have no pixel type in common: {taken}")
    return EngineCapabilities(
        pixel_types=pixel_types,
        takes_pieces=all(one.takes_pieces for one in each),
        reads_shared_memory=all(one.reads_shared_memory for one in each),
        takes_hashes_only=all(one.takes_hashes_only for one in each),
        tells_items_apart=all(one.tells_items_apart for one in each),
    )
