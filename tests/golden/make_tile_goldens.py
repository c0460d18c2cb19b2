"""Write tile_goldens.json, as `make_goldens` writes goldens.json:

python -m tests.golden.make_tile_goldens        # or: make golden
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.golden import oracle, tile_oracle
from tests.golden.make_goldens import digest
from tests.golden.tile_cases import TILE_GOLDENS, model_directories, requests
from tests.loading import load_family_model


def golden(found: tile_oracle.TileAnswer) -> dict[str, Any]:
    """One case: small integers in full, arrays as SHA-256 of their C-ordered bytes."""
    ids, fp32 = found.token_ids.astype(np.int32), torch.from_numpy(found.pixels)
    entry: dict[str, Any] = {
        "token_ids": {"length": len(ids), "sha256": digest(ids)},
        "mm_token_type_ids": digest(found.token_types.astype(np.int32)),
        "tensors": {name: tensor.tolist() for name, tensor in found.tensors.items()},
        "frame_indices": found.frame_indices,
        "pixels": {},
    }
    if len(found.patches):
        entry["pixels"] = {
            "uint8": digest(found.patches),
            "fp32": digest(found.pixels),
            "bf16": digest(fp32.to(torch.bfloat16).view(torch.int16).numpy()),
            "fp16": digest(fp32.to(torch.float16).numpy()),
        }
    return entry


def main() -> None:
    cases: dict[str, Any] = {}
    for directory in model_directories():
        for name, request in requests(load_family_model(directory)).items():
            cases[f"{Path(directory).name}: {name}"] = golden(tile_oracle.answer(directory, request))
    TILE_GOLDENS.write_text(json.dumps({"made_with": oracle.stamp(), "cases": cases}, indent=1) + "\n")
    print(f"{TILE_GOLDENS}: {len(cases)} cases")


if __name__ == "__main__":
    main()
