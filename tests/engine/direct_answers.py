"""What transformers itself answers, without Triton: the other side of the comparison in `test_generation.py`.

Run by the models' Python, in a process of its own, with the same releases as the server's. Shares with the served model
only the making of its weights; pixels, token types and the call are written down again here, the way Hugging Face's
processors and documentation have them.

    python direct_answers.py CHECKPOINT_MODULE_PARENT PROMPTS_DIRECTORY MAX_TOKENS [SAVE_DIRECTORY]

Prints JSON: the new token ids by the name of each PROMPTS_DIRECTORY/*.npz. With SAVE_DIRECTORY the model has another
seed and is saved there, to be served as a real checkpoint would be.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

IMAGE_TOKEN, VIDEO_TOKEN = 151655, 151656


def normalized(patches: np.ndarray, mean: np.ndarray, std: np.ndarray) -> torch.Tensor:
    """float32 [P, F], from uint8 [P, F] of values in the order channel, temporal, row, column."""
    pixels = torch.from_numpy(patches).reshape(len(patches), 3, -1).to(torch.float32)
    shift, scale = (torch.tensor(value.tolist()).view(1, 3, 1) * (1.0 / (1 / 255)) for value in (mean, std))
    return ((pixels - shift) / scale).reshape(len(patches), -1)


def model_inputs(prompt: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    ids = torch.from_numpy(prompt["input_ids"]).long()[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "grid_thw" in prompt:
        inputs["mm_token_type_ids"] = (ids == IMAGE_TOKEN).int() + 2 * (ids == VIDEO_TOKEN).int()
        grids = prompt["grid_thw"]
        pixels = normalized(prompt["pixel_patches"], prompt["pixel_mean"], prompt["pixel_std"])
        for modality, pixel_name, grid_name in (
            (1, "pixel_values", "image_grid_thw"),
            (2, "pixel_values_videos", "video_grid_thw"),
        ):
            of_item = prompt["item_modality"] == modality
            if of_item.any():
                inputs[pixel_name] = pixels[torch.from_numpy(np.repeat(of_item, grids.prod(axis=1)))]
                inputs[grid_name] = torch.from_numpy(grids[of_item])
                if modality == 2 and "second_per_grid_ts" in prompt:
                    inputs["second_per_grid_ts"] = torch.from_numpy(prompt["second_per_grid_ts"][of_item])
    return inputs


def print_answers(model: Any, prompts_directory: str, max_tokens: str) -> None:
    """The new token ids of each prompt, as JSON."""
    answers = {}
    for path in sorted(Path(prompts_directory).glob("*.npz")):
        with np.load(path) as prompt:
            inputs = model_inputs(dict(prompt))
        generated = model.generate(**inputs, max_new_tokens=int(max_tokens), do_sample=False)
        answers[path.stem] = generated[0, inputs["input_ids"].shape[1] :].tolist()
    print(json.dumps(answers))


def main(module_parent: str, prompts_directory: str, max_tokens: str, save_directory: str | None = None) -> None:
    sys.path.insert(0, module_parent)
    model = importlib.import_module("1.checkpoint").build_tiny_model(seed=0 if save_directory is None else 1)
    if save_directory is not None:
        model.save_pretrained(save_directory)
    print_answers(model, prompts_directory, max_tokens)


if __name__ == "__main__":
    main(*sys.argv[1:])
