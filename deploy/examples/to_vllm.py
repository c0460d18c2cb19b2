"""Offline inference in vLLM on prompts that `prepare_folder.py`, `ray_folder.py` or `preprocessor prepare --output` have saved.

python to_vllm.py MODEL prompt1.safetensors prompt2.safetensors …

vLLM's own processing is left out: this process has nothing to do but to feed the GPU. It needs vLLM and safetensors, nothing of
this project. Written for vLLM 0.32 and Qwen3-VL; a running vLLM needs none of it: `preprocessor serve --engine vllm://HOST:PORT`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import BatchFeature
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.inputs.engine import mm_input, tokens_input
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems, PlaceholderRange

AT_ONCE = 256  # prompts whose pixels are in memory
SAMPLING = SamplingParams(max_tokens=32, temperature=0)


def main(model: str, *paths: str) -> None:
    engine = LLMEngine.from_engine_args(EngineArgs(model, max_model_len=8192))
    for path, answer in answers(engine, paths):
        print(f"{Path(path).name}: {answer.outputs[0].text!r}", flush=True)


def answers(engine: LLMEngine, paths: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Path and vLLM's `RequestOutput` of each prompt, as they are finished."""
    waiting = list(reversed(paths))
    while waiting or engine.has_unfinished_requests():
        while waiting and engine.get_num_unfinished_requests() < AT_ONCE:
            path = waiting.pop()
            engine.add_request(path, engine_input(load_file(path)), SAMPLING)
        for answer in engine.step():
            if answer.finished:
                yield answer.request_id, answer


def engine_input(tensors: dict[str, torch.Tensor]) -> Any:
    """Tensors by the engine contract's names → what vLLM's processor would make of the same messages."""
    token_ids = tensors["input_ids"].tolist()
    if "grid_thw" not in tensors:
        return tokens_input(token_ids)
    grids = tensors["grid_thw"]
    rows = tensors["pixel_patches"].split(grids.prod(dim=1).tolist())  # uint8: vLLM normalizes on its device
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
