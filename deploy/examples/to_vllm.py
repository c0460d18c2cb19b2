"""Offline inference in vLLM on prompts that `prepare_folder.py`, `ray_folder.py` or `preprocessor prepare --output` have saved.

python to_vllm.py MODEL prompt1.safetensors prompt2.safetensors …

vLLM's own processing is left out: this process has nothing to do but to feed the GPU. It needs vLLM and safetensors, nothing of
this project. Written for vLLM 0.32 and Qwen3-VL; a running vLLM needs none of it: `preprocessor serve --engine vllm://HOST:PORT`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import BatchFeature
from vllm import LLM, SamplingParams
from vllm.inputs.engine import mm_input, tokens_input
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems, PlaceholderRange


def main(model: str, *paths: str) -> None:
    llm = LLM(model, max_model_len=8192)
    answers = llm.generate(
        [engine_input(load_file(path)) for path in paths], SamplingParams(max_tokens=32, temperature=0)
    )
    for path, answer in zip(paths, answers, strict=True):
        print(f"{Path(path).name}: {answer.outputs[0].text!r}")


def engine_input(tensors: dict[str, torch.Tensor]) -> Any:
    """Tensors by the engine contract's names → what vLLM's processor would make of the same messages."""
    token_ids = tensors["input_ids"].tolist()
    if "grid_thw" not in tensors:
        return tokens_input(token_ids)
    grids = tensors["grid_thw"]
    rows = pixels_of(tensors).split(grids.prod(dim=1).tolist())
    values: dict[str, torch.Tensor] = {}
    fields: dict[str, MultiModalFieldConfig] = {}
    hashes: dict[str, list[str]] = {}
    ranges: dict[str, list[PlaceholderRange]] = {}
    for modality, name, pixel_name in ((1, "image", "pixel_values"), (2, "video", "pixel_values_videos")):
        chosen = (tensors["item_modality"] == modality).nonzero()[:, 0].tolist()
        if not chosen:
            continue
        values[pixel_name] = torch.cat([rows[item] for item in chosen])
        fields[pixel_name] = MultiModalFieldConfig.flat_from_sizes(name, grids[chosen].prod(dim=1))
        values[f"{name}_grid_thw"] = grids[chosen]
        fields[f"{name}_grid_thw"] = MultiModalFieldConfig.batched(name, keep_on_cpu=True)
        hashes[name] = [bytes(tensors["item_hash"][item].tolist()).hex() for item in chosen]  # keys of vLLM's caches
        ranges[name] = [placeholders(tensors["item_spans"], item, is_video=name == "video") for item in chosen]
    return mm_input(token_ids, MultiModalKwargsItems.from_hf_inputs(BatchFeature(values), fields), hashes, ranges)


def pixels_of(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Normalized rows; of uint8 patches bit for bit what transformers makes of them."""
    if "pixel_values" in tensors:
        return tensors["pixel_values"]
    pixels = tensors["pixel_patches"].float()
    mean, std = (tensors[name][:, None] * 255.0 for name in ("pixel_mean", "pixel_std"))
    pixels.view(len(pixels), 3, -1).sub_(mean).div_(std)
    return pixels


def placeholders(spans: torch.Tensor, item: int, *, is_video: bool) -> PlaceholderRange:
    """Where an item's features go: a video has a span for each step, with times and markers between."""
    own = spans[spans[:, 0] == item, 1:].tolist()
    first, stop = own[0][0] - is_video, own[-1][0] + own[-1][1]  # a video's range begins at its first marker
    is_feature = torch.zeros(stop - first, dtype=torch.bool)
    for offset, length in own:
        is_feature[offset - first : offset - first + length] = True
    return PlaceholderRange(offset=first, length=stop - first, is_embed=is_feature)


if __name__ == "__main__":
    main(*sys.argv[1:])
