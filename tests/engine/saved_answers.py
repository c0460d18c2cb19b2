"""What transformers answers to prompts, from a checkpoint on disk: python saved_answers.py CHECKPOINT PROMPTS_FOLDER MAX_TOKENS

Prints JSON: the new token ids by the name of each PROMPTS_FOLDER/*.npz. Run in a process of its own, for its memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import tests.golden.huggingface  # noqa: F401  # makes torchvision importable, which transformers looks for
from tests.engine.direct_answers import print_answers

from transformers import AutoModelForImageTextToText  # isort: skip


def main(checkpoint: str, folder: str, max_tokens: str) -> None:
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    print_answers(model, folder, max_tokens)


if __name__ == "__main__":
    main(*sys.argv[1:])
