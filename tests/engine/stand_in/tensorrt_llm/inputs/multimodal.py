from dataclasses import dataclass, field
from typing import Any

import torch

MULTIMODAL_ENCODER_ITEM_METADATA_KEY = "items for the scheduler"


@dataclass
class Handle:
    """Stands for a tensor that was put where the workers find it."""

    tensor: torch.Tensor


@dataclass
class MultimodalInput:
    multimodal_hashes: list[list[int]]
    multimodal_positions: list[int]
    multimodal_lengths: list[int]
    multimodal_uuids: list[str | None] | None = None
    multimodal_item_run_cu_offsets: list[int] | None = None
    multimodal_run_positions: list[int] | None = None
    multimodal_run_lengths: list[int] | None = None


@dataclass
class MultimodalParams:
    multimodal_input: MultimodalInput | None = None
    multimodal_data: dict[str, Any] = field(default_factory=dict)
    mm_item_order: list[dict[str, str | int]] | None = None

    def to_handle(self, element):
        assert element == "multimodal_data"
        self.multimodal_data = _shared(self.multimodal_data)


def _shared(value):
    if isinstance(value, torch.Tensor):
        return Handle(value)
    if isinstance(value, dict):
        return {name: _shared(part) for name, part in value.items()}
    return value
