"""`vlm_tensorrt_llm` for tests: its modules, small prompts, and a checkpoint's configuration.

The modules are imported under a name of their own: the version directories of two models would both be the package `1`.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from deploy.triton.local_server import REPOSITORY

FOLDER = REPOSITORY / "vlm_tensorrt_llm"
STAND_IN = Path(__file__).parent / "stand_in"

_package = ModuleType("vlm_tensorrt_llm_1")
_package.__path__ = [str(FOLDER / "1")]
sys.modules[_package.__name__] = _package


def module(name: str) -> ModuleType:
    """A file of the model's version directory, by its name without the ending."""
    return importlib.import_module(f"{_package.__name__}.{name}")


contract, params, settings = module("contract"), module("params"), module("settings")
engine, surface = module("engine"), module("surface")

Tensors = dict[str, np.ndarray]
IMAGE_TOKEN, VIDEO_TOKEN, VOCABULARY_SIZE, MAX_POSITIONS = 97, 98, 100, 64
LAYOUT = contract.ModelLayout(
    patch_size=1,
    temporal_patch_size=1,
    merge_size=1,
    image_token_id=IMAGE_TOKEN,
    video_token_id=VIDEO_TOKEN,
    vocabulary_size=VOCABULARY_SIZE,
    max_positions=MAX_POSITIONS,
)
"""A patch is a pixel, a token is a patch: every row of a prompt can be written down."""


PARAMETERS = {
    "checkpoint": "",
    "dtype": "auto",
    "tensor_parallel_size": "1",
    "pixel_device": "cpu",
    "kv_cache_free_fraction": "0.8",
    "kv_cache_dtype": "",
    "kv_cache_reuse": "true",
    "max_in_flight": "64",
    "drain_seconds": "30",
    "accept_other_versions": "false",
    "llm_arguments": "{}",
}
"""Of `config.pbtxt`, but for the device."""


def read_settings(**changed: str) -> Any:
    """`EngineSettings`, with changed parameters."""
    return settings.EngineSettings.from_parameters(PARAMETERS | {"checkpoint": "somewhere"} | changed, {})


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


def write_checkpoint(folder: Path, model_type: str = "qwen3_vl") -> Path:
    """A configuration that says what `LAYOUT` says."""
    text = {"vocab_size": VOCABULARY_SIZE, "max_position_embeddings": MAX_POSITIONS}
    vision = {"patch_size": 1, "temporal_patch_size": 1, "spatial_merge_size": 1}
    ids = {"image_token_id": IMAGE_TOKEN, "video_token_id": VIDEO_TOKEN}
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
