"""What transformers answers to prompts, from a checkpoint on disk: python saved_answers.py CHECKPOINT PROMPTS_FOLDER MAX_TOKENS

Prints JSON: the new token ids by the name of each PROMPTS_FOLDER/*.npz. Run in a process of its own, for its memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import tests.golden.huggingface  # noqa: F401  # makes torchvision importable, which transformers looks for
from tests.engine.direct_answers import model_inputs

from transformers import AutoModelForImageTextToText  # isort: skip


def main(checkpoint: str, folder: str, max_tokens: str) -> None:
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    answers = {}
    for path in sorted(Path(folder).glob("*.npz")):
        with np.load(path) as prompt:
            inputs = model_inputs(dict(prompt))
        generated = model.generate(**inputs, max_new_tokens=int(max_tokens), do_sample=False)
        answers[path.stem] = generated[0, inputs["input_ids"].shape[1] :].tolist()
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
