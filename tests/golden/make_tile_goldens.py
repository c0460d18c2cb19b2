"""Write tile_goldens.json, as `make_goldens` writes goldens.json:

python -m tests.golden.make_tile_goldens        # or: make golden
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden import oracle, tile_oracle
from tests.golden.make_goldens import digest, pixel_digests
from tests.golden.tile_cases import TILE_GOLDENS, model_directories, requests
from tests.loading import load_family_model


def golden(found: tile_oracle.TileAnswer) -> dict[str, Any]:
    """One case: small integers in full, arrays as SHA-256 of their C-ordered bytes."""
    ids = found.token_ids.astype(np.int32)
    return {
        "token_ids": {"length": len(ids), "sha256": digest(ids)},
        "mm_token_type_ids": digest(found.token_types.astype(np.int32)),
        "tensors": {name: tensor.tolist() for name, tensor in found.tensors.items()},
        "frame_indices": found.frame_indices,
        "pixels": pixel_digests(found.patches, found.pixels),
    }


def main() -> None:
    cases: dict[str, Any] = {}
    for directory in model_directories():
        for name, request in requests(load_family_model(directory)).items():
            cases[f"{Path(directory).name}: {name}"] = golden(tile_oracle.answer(directory, request))
    TILE_GOLDENS.write_text(json.dumps({"made_with": oracle.stamp(), "cases": cases}, indent=1) + "\n")
    print(f"{TILE_GOLDENS}: {len(cases)} cases")


if __name__ == "__main__":
    main()
