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

    def __post_init__(self) -> None:
        if not all(isinstance(digest, list) and len(digest) == 8 for digest in self.multimodal_hashes):
            raise TypeError("each of multimodal_hashes must be a list of eight")
        torch.tensor(self.multimodal_hashes, dtype=torch.int32)  # as `to_tensor`: a number beyond int32 raises
        for name in ("positions", "lengths", "item_run_cu_offsets", "run_positions", "run_lengths"):
            values = getattr(self, f"multimodal_{name}")
            if values is not None and not all(type(value) is int for value in values):
                raise TypeError(f"multimodal_{name} must contain only integers")
        if len(self.multimodal_positions) != len(self.multimodal_lengths):
            raise ValueError("Position and length arrays must match in size")
        runs = (self.multimodal_item_run_cu_offsets, self.multimodal_run_positions, self.multimodal_run_lengths)
        if any(part is None for part in runs) != all(part is None for part in runs):
            raise ValueError("multimodal run metadata must be given whole")


@dataclass
class MultimodalParams:
    multimodal_input: MultimodalInput | None = None
    multimodal_data: dict[str, Any] | None = field(default_factory=dict)
    multimodal_runtime: Any = None
    mm_item_order: list[dict[str, str | int]] | None = None

    def to_handle(self, element: str) -> None:
        if element != "multimodal_data":
            raise ValueError(f"Unsupported element '{element}'")
        self.multimodal_data = _shared(self.multimodal_data)


def _shared(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return Handle(value)
    if isinstance(value, list):
        return [_shared(part) for part in value]
    if isinstance(value, dict):
        return {name: _shared(part) for name, part in value.items()}
    return value
