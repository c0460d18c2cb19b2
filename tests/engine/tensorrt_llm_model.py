"""`vlm_tensorrt_llm` for tests: its modules, small prompts, and a checkpoint's configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploy.triton.local_server import REPOSITORY
from engine_client.contract.assembler import PromptAssembler
from engine_client.contract.layout import ModelLayout
from engine_client.triton.backend.rows import TorchRows
from tests.engine.model_files import model_file

FOLDER = REPOSITORY / "vlm_tensorrt_llm"
STAND_IN = Path(__file__).parent / "stand_in"

module = partial(model_file, FOLDER.name)
params, pixels, settings = module("params"), module("pixels"), module("settings")
engine, surface = module("engine"), module("surface")

Tensors = dict[str, np.ndarray]
IMAGE_TOKEN, VIDEO_TOKEN, VOCABULARY_SIZE, MAX_POSITIONS = 97, 98, 100, 64
LAYOUT = ModelLayout(
    patch_size=1,
    temporal_patch_size=1,
    merge_size=1,
    image_token_id=IMAGE_TOKEN,
    video_token_id=VIDEO_TOKEN,
    vocabulary_size=VOCABULARY_SIZE,
    max_positions=MAX_POSITIONS,
)
"""A patch is a pixel, a token is a patch: every row of a prompt can be written down."""


QWEN3_VL_LAYOUT = ModelLayout(
    patch_size=16,
    temporal_patch_size=2,
    merge_size=2,
    image_token_id=151655,
    video_token_id=151656,
    vocabulary_size=151936,
    max_positions=32768,
)
"""Of a real checkpoint, for prompts that this project prepares."""

PARAMETERS = {
    "checkpoint": "",
    "dtype": "auto",
    "tensor_parallel_size": "1",
    "pixel_device": "cpu",
    "kv_cache_free_fraction": "0.8",
    "kv_cache_dtype": "",
    "kv_cache_reuse": "true",
    "max_in_flight": "64",
    "max_row_wait_seconds": "60",
    "drain_seconds": "30",
    "accept_other_versions": "false",
    "llm_arguments": "{}",
}
"""Of `config.pbtxt`, but for the device."""


def read_settings(**changed: str) -> Any:
    """`ModelParameters`, with changed parameters."""
    return settings.ModelParameters.from_parameters(PARAMETERS | {"checkpoint": "somewhere"} | changed, {})


def build(
    tensors: Tensors, layout: Any, family: str, dtype: torch.dtype = torch.float32, *, reuses_kv_blocks: bool = True
) -> Any:
    """`PromptParams` of a prompt that came at once, with its pixels."""
    cpu, rules = torch.device("cpu"), params.FAMILY_RULES[family]
    layout = replace(layout, one_span_a_video=rules.one_span_a_video)
    assembler = PromptAssembler(tensors, None, layout, TorchRows(cpu), is_whole=True)
    built = params.build_params(
        tensors, assembler.prompt, rules, layout.max_positions, reuses_kv_blocks=reuses_kv_blocks
    )
    taken = pixels.Pixels(assembler.prompt, assembler.rows, layout.feature_count, cpu, dtype)
    taken.take_rows()
    return replace(built, multimodal_data=taken.data() | built.multimodal_data)


def prepare(loaded: Any, tensors: Tensors, sampling: Any) -> Any:
    """`SharedPrompt` of a prompt that came at once."""
    _, started = loaded.begin(tensors | {"max_tokens": np.array([sampling.max_tokens], np.int32)})
    started.pixels.take_rows()
    return loaded.share(started)


def text_tensors(*token_ids: int) -> Tensors:
    """A prompt of text, with its positions."""
    return _with_positions({"input_ids": np.array(token_ids, np.int32)})


def mixed_tensors(first_id: int = 1) -> Tensors:
    """Two pixels of an image, a video of two steps with text between them, an image of one pixel: Qwen3-VL's form."""
    ids = [first_id, 97, 97, 2, 98, 3, 98, 4, 97, 5]
    spans = [(0, 1, 2), (1, 4, 1), (1, 6, 1), (2, 8, 1)]
    return _vision(ids, spans, [(1, 1, 2), (2, 1, 1), (1, 1, 1)], [1, 2, 1])


def image_tensors(first_id: int = 1) -> Tensors:
    """An image of 1 × 2 pixels."""
    return _vision([first_id, 97, 97, 2], [(0, 1, 2)], [(1, 1, 2)], [1])


def video_tensors(first_id: int = 1) -> Tensors:
    """A video of two steps of 1 × 2 pixels, all its tokens in one run: the form of Qwen2-VL and Qwen2.5-VL."""
    return _vision([first_id, 98, 98, 98, 98, 2], [(0, 1, 4)], [(2, 1, 2)], [2])


def write_checkpoint(folder: Path, model_type: str = "qwen3_vl", layout: Any = LAYOUT) -> Path:
    """A configuration that says what `layout` says."""
    text = {"vocab_size": layout.vocabulary_size, "max_position_embeddings": layout.max_positions}
    sizes = {"patch_size": layout.patch_size, "temporal_patch_size": layout.temporal_patch_size}
    vision = sizes | {"spatial_merge_size": layout.merge_size}
    ids = {"image_token_id": layout.image_token_id, "video_token_id": layout.video_token_id}
    config = {"model_type": model_type, "text_config": text, "vision_config": vision, **ids}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _vision(
    ids: list[int], spans: list[tuple[int, int, int]], grids: list[tuple[int, int, int]], modality: list[int]
) -> Tensors:
    row_count = sum(t * h * w for t, h, w in grids)
    return _with_positions(
        {
            "input_ids": np.array(ids, np.int32),
            "pixel_patches": np.arange(3 * row_count, dtype=np.uint8).reshape(row_count, 3),
            "pixel_mean": np.array([0.0, 0.5, 1.0], np.float32),
            "pixel_std": np.array([1.0, 0.5, 0.25], np.float32),
            "grid_thw": np.array(grids, np.int64),
            "item_modality": np.array(modality, np.int32),
            "item_spans": np.array(spans, np.int32),
            "item_hash": np.arange(32 * len(grids), dtype=np.uint8).reshape(-1, 32),
        }
    )


def _with_positions(tensors: Tensors) -> Tensors:
    """One position for every two tokens, so that the delta is not 0 and the axes differ from `arange`."""
    length = len(tensors["input_ids"])
    positions = np.broadcast_to(np.arange(length, dtype=np.int32) // 2, (3, length)).copy()
    delta = np.array([positions.max() + 1 - length], np.int32)
    return tensors | {"mrope_position_ids": positions, "mrope_position_delta": delta}
