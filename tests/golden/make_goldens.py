"""Write goldens.json: what Hugging Face makes of every case. Run from the repository's root:

    python -m tests.golden.make_goldens        # or: make golden

A medium that is missing is made; one that is there is kept. Look at the difference before committing it: integers and
pixels change only where a library changed them.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tests.golden import oracle
from tests.golden.cases import GOLDENS, MAKERS, MEDIA, cases
from tests.parity.directories import model_named, save_models


def digest(array: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def golden(found: oracle.Answer) -> dict[str, Any]:
    """One case as it stands in goldens.json: small integers in full, arrays as SHA-256 of their C-ordered bytes."""
    ids = found.token_ids.astype(np.int32)
    return {
        "token_ids": {"length": len(ids), "first": ids[:8].tolist(), "last": ids[-8:].tolist(), "sha256": digest(ids)},
        "grid_thw": found.grid_thw.tolist(),
        "frame_indices": found.frame_indices,
        "mm_token_type_ids": digest(found.token_types.astype(np.int32)),
        "second_per_grid_ts": None if found.seconds_per_grid is None else found.seconds_per_grid.tolist(),
        "mrope_position_ids": None if found.positions is None else digest(_as_sent(found.positions)),
        "mrope_position_delta": None if found.delta is None else found.delta.item(),
        "pixels": pixel_digests(found.patches, found.pixels),
    }


def _as_sent(positions: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Fractions as they are, whole numbers as int32."""
    return positions if positions.dtype == np.float32 else positions.astype(np.int32)


def pixel_digests(patches: npt.NDArray[np.uint8], pixels: npt.NDArray[np.float32]) -> dict[str, str]:
    """Of the pixels [P, F] in every form; none where there are no pixels."""
    if not len(patches):
        return {}
    fp32 = torch.from_numpy(pixels)
    return {
        "uint8": digest(patches),
        "fp32": digest(pixels),
        "bf16": digest(fp32.to(torch.bfloat16).view(torch.int16).numpy()),
        "fp16": digest(fp32.to(torch.float16).numpy()),
    }


def main() -> None:
    MEDIA.mkdir(exist_ok=True)
    for name, make in MAKERS.items():
        if not (MEDIA / name).is_file():
            (MEDIA / name).write_bytes(make())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_models(folder)
        answers = {
            case: golden(oracle.answer(model_named(model, folder), request))
            for case, (model, request) in cases().items()
        }
    goldens: dict[str, Any] = {
        "made_with": oracle.stamp(),
        "media": {name: hashlib.sha256((MEDIA / name).read_bytes()).hexdigest() for name in sorted(MAKERS)},
        "cases": answers,
    }
    GOLDENS.write_text(json.dumps(goldens, indent=1) + "\n")
    print(f"{GOLDENS}: {len(goldens['cases'])} cases")


if __name__ == "__main__":
    main()
