"""Run a model of transformers on tensors of the service: the logits are those of transformers' own processor.

python to_transformers.py ADDRESS MODEL clip.mp4 "What happens?"     # MODEL as `from_pretrained` takes it
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from preprocessor.client import Client, chat, video


def main(address: str, name: str, clip: str, question: str) -> None:
    with Client(address) as client:
        content = [video(clip, fps=2), question]
        # Already normalized: "bf16" would halve the transfer, and is what a model in bfloat16 casts them to.
        prompt = chat([{"role": "user", "content": content}], pixel_form="fp32", with_token_types=True)
        inputs = model_inputs(client.prepare(prompt, timeout_seconds=60).tensors)
    model = AutoModelForImageTextToText.from_pretrained(name)
    with torch.inference_mode():
        answer = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    print(AutoTokenizer.from_pretrained(name).decode(answer[0, inputs["input_ids"].shape[1] :]))


def model_inputs(tensors: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, torch.Tensor]:
    """Tensors by the engine contract's names → the arguments of Qwen2-VL to Qwen3.5 in transformers, a batch of one."""
    input_ids = torch.tensor(tensors["input_ids"])[None].long()
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if "pixel_values" not in tensors:
        return inputs
    inputs["mm_token_type_ids"] = torch.tensor(tensors["mm_token_type_ids"])[None]
    grids = torch.tensor(tensors["grid_thw"])
    # Rows of all items lie one behind the other; transformers takes those of images and of videos apart.
    pixels = torch.from_numpy(tensors["pixel_values"]).split(grids.prod(dim=1).tolist())
    for modality, pixel_name, grid_name in (
        (1, "pixel_values", "image_grid_thw"),
        (2, "pixel_values_videos", "video_grid_thw"),
    ):
        chosen = np.flatnonzero(tensors["item_modality"] == modality).tolist()
        if chosen:
            inputs[pixel_name] = torch.cat([pixels[index] for index in chosen])
            inputs[grid_name] = grids[chosen]
    return inputs


if __name__ == "__main__":
    main(*sys.argv[1:])
