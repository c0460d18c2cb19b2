"""What transformers itself answers: Hugging Face's own processor and `model.generate`, with no part of this project between.

Apart, in a process of its own, so that its weights leave the GPU when it ends:

    python -m tests.bench.device.direct CHECKPOINT
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from preprocessor.models.family import Model
from preprocessor.models.registry import load_model
from tests.bench.device.asking import same_for_the_pipeline
from tests.bench.device.clips import OTHERS, SEED
from tests.engine.model_files import model_file
from tests.golden import oracle  # it makes torchvision importable, which transformers looks for as it loads a model

ANSWER_TOKENS = 16  # of every answer that is compared


QUESTIONS = {"workload, 1 fps": (1.0, SEED), "workload, 8 fps": (8.0, SEED), **{name: (2.0, name) for name in OTHERS}}
"""Frames a second, and of which clip."""


def answers(checkpoint: Path) -> dict[str, list[int]]:
    """Token ids by question, from another process."""
    command = [sys.executable, "-m", "tests.bench.device.direct", str(checkpoint)]
    # On a CPU the last bits of a sum depend on how many threads share it: as many as in Triton, then.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, list[int]] = json.loads(run.stdout.splitlines()[-1])
    return found


def seed_model() -> Model:
    model = load_model("qwen3-vl")
    assert isinstance(model, Model)
    return model


def generate(llm: Any, prompt: oracle.Answer, device: torch.device) -> list[int]:
    """The greedy answer to what Hugging Face's processor has made."""
    ids = torch.from_numpy(prompt.token_ids)[None].to(device)
    with torch.inference_mode():
        generated = llm.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=torch.from_numpy(prompt.token_types)[None].int().to(device),
            pixel_values_videos=torch.from_numpy(prompt.pixels).to(device, llm.dtype),
            video_grid_thw=torch.from_numpy(prompt.grid_thw).to(device),
            max_new_tokens=ANSWER_TOKENS,
            do_sample=False,
        )
    tokens: list[int] = generated[0, ids.shape[1] :].tolist()
    return tokens


def main(checkpoint: str) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    llm = model_file("vlm_transformers", "checkpoint").load_checkpoint(checkpoint, device)
    model = seed_model()
    found = {
        name: generate(llm, oracle.answer(model, same_for_the_pipeline(fps, of_clip)), device)
        for name, (fps, of_clip) in QUESTIONS.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
