"""Rows become the model's floats as they come: `pixels.py` of `vlm_tensorrt_llm`, without Triton or TensorRT-LLM."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from engine_client.contract.assembler import PromptAssembler
from engine_client.triton.backend.rows import TorchRows, normalize_patches
from tests.engine.prompts import FEATURE_COUNT, image_prompt, mixed_prompt, text_prompt, video_prompt
from tests.engine.tensorrt_llm_model import QWEN3_VL_LAYOUT, pixels

CPU = torch.device("cpu")
MIXED = mixed_prompt()  # 16 rows of an image, 48 of a video, 16 of an image


def taken(
    tensors: dict[str, np.ndarray], cuts: Iterable[int] = (), dtype: torch.dtype = torch.float32, device: Any = CPU
) -> dict[str, dict[str, torch.Tensor]]:
    """What the rows become that come up to each cut, then to the end."""
    sent = tensors.get("pixel_patches", np.empty((0, FEATURE_COUNT), np.uint8))
    opening = {name: array for name, array in tensors.items() if name != "pixel_patches"}
    assembler = PromptAssembler(opening, None, QWEN3_VL_LAYOUT, TorchRows(device), is_whole=not len(sent))
    made = pixels.Pixels(assembler.prompt, assembler.rows, FEATURE_COUNT, device, dtype)
    made.take_rows()
    for start, stop in pairwise((0, *cuts, len(sent))):
        assembler.add_rows(start, sent[start:stop].copy(), is_last=False)
        made.take_rows()
    data: dict[str, dict[str, torch.Tensor]] = made.data()
    return data


def floats(tensors: dict[str, np.ndarray], kind: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of the items of that modality, all normalized at once."""
    kinds = np.repeat(tensors["item_modality"], tensors["grid_thw"].prod(axis=1))
    chosen = torch.from_numpy(tensors["pixel_patches"][kinds == kind])
    normalized: torch.Tensor = normalize_patches(chosen, tensors["pixel_mean"], tensors["pixel_std"])
    return normalized.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cuts", [(), (1, 2), (16,), (15, 17), (10, 70), range(1, 80)], ids=str)
def test_floats_are_those_of_all_rows_at_once_wherever_they_are_cut(cuts: Iterable[int], dtype: torch.dtype) -> None:
    data = taken(MIXED, cuts, dtype)
    assert torch.equal(data["image"]["pixel_values"], floats(MIXED, 1, dtype))
    assert torch.equal(data["video"]["pixel_values_videos"], floats(MIXED, 2, dtype))


def test_slices_are_no_seams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pixels, "SLICE_BYTES", 7 * FEATURE_COUNT)
    data = taken(MIXED, (33,))
    assert torch.equal(data["image"]["pixel_values"], floats(MIXED, 1, torch.float32))
    assert torch.equal(data["video"]["pixel_values_videos"], floats(MIXED, 2, torch.float32))


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        (text_prompt(), set()),
        (image_prompt(), {"image"}),
        (video_prompt(), {"video"}),
        (MIXED, {"image", "video"}),
    ],
    ids=["text", "image", "video", "mixed"],
)
def test_only_what_a_prompt_has_is_there(prompt: dict[str, np.ndarray], names: set[str]) -> None:
    assert set(taken(prompt)) == names


def test_grids_are_dealt_with_the_pixels() -> None:
    data = taken(MIXED)
    assert data["image"]["image_grid_thw"].tolist() == [[1, 4, 4], [1, 2, 8]]
    assert data["video"]["video_grid_thw"].tolist() == [[2, 6, 4]]


def test_a_prompt_that_waits_for_its_first_row_takes_no_memory() -> None:
    opening = {name: array for name, array in MIXED.items() if name != "pixel_patches"}
    assembler = PromptAssembler(opening, None, QWEN3_VL_LAYOUT, TorchRows(CPU), is_whole=False)
    made = pixels.Pixels(assembler.prompt, assembler.rows, FEATURE_COUNT, CPU, torch.float32)
    made.take_rows()
    assert made.data() == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_makes_the_same_floats(dtype: torch.dtype) -> None:
    data = taken(MIXED, (10, 70), dtype, torch.device("cuda:0"))
    assert torch.equal(data["image"]["pixel_values"].cpu(), floats(MIXED, 1, dtype))
    assert torch.equal(data["video"]["pixel_values_videos"].cpu(), floats(MIXED, 2, dtype))
