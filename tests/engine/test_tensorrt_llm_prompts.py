"""Prompts that this project prepares reach TensorRT-LLM's layout without loss, for every family that both know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from preprocessor.models.family import Model
from preprocessor.models.registry import load_model
from preprocessor.pipeline import prepare
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PixelForm,
    PreparationRequest,
    Sampling,
    TextPart,
)
from tests.engine.tensorrt_llm_model import QWEN3_VL_LAYOUT, build
from tests.media import moving_shapes_clip, photo

REPLACED = "qwen3-vl, video markers replaced"  # as the transformers before 5.10 that TensorRT-LLM may have
FAMILIES = {"qwen2-vl": "qwen2_vl", "qwen2.5-vl": "qwen2_5_vl", "qwen3-vl": "qwen3_vl", REPLACED: "qwen3_vl"}
CLIP = Media("clip", Modality.VIDEO, moving_shapes_clip(2, 10, 160, 120), Sampling(frame_count=6))
PHOTOS = [Media(f"photo-{side}", Modality.IMAGE, photo(side, 200, "PNG")) for side in (150, 333)]
MEDIA = {"text": (), "image": (PHOTOS[0],), "images": tuple(PHOTOS), "video": (CLIP,)}
MIXED = (PHOTOS[0], CLIP, PHOTOS[1])
CASES = [(name, kind) for name in FAMILIES for kind in MEDIA] + [("qwen3-vl", "mixed"), (REPLACED, "mixed")]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(
    request: pytest.FixtureRequest, load: Callable[[str], Model]
) -> tuple[Any, dict[str, np.ndarray], torch.Tensor]:
    """One prompt in TensorRT-LLM's layout, as the contract has it, and its rows as Hugging Face's float32."""
    name, kind = request.param
    model: Any = load_model("qwen3-vl", "replace") if name == REPLACED else load(name)
    media = MIXED if kind == "mixed" else MEDIA[kind]
    parts: tuple[MediaPart | TextPart, ...] = (*(MediaPart(medium.key) for medium in media), TextPart("What is this?"))
    asked = PreparationRequest(ChatPrompt((Message("user", parts),)), media, PixelForm.UINT8)
    tensors = dict(prepare(model, asked).tensors)
    floats = prepare(model, replace(asked, pixel_form=PixelForm.FP32)).tensors.get("pixel_values", np.empty((0, 0)))
    layout = replace(QWEN3_VL_LAYOUT, patch_size=model.image.patch_size)
    return build(tensors, layout, FAMILIES[name]), tensors, torch.from_numpy(floats)


Case = tuple[Any, dict[str, np.ndarray], torch.Tensor]


def test_token_ids_and_positions_are_those_that_were_prepared(case: Case) -> None:
    built, tensors, _ = case
    assert built.prompt_token_ids == tensors["input_ids"].tolist()
    config = built.multimodal_data["mrope_config"]
    assert np.array_equal(config["mrope_position_ids"][:, 0], tensors["mrope_position_ids"])
    assert config["mrope_position_deltas"].item() == tensors["mrope_position_delta"][0]


def test_pixels_are_hugging_faces_bit_for_bit_in_the_order_of_the_prompt(case: Case) -> None:
    built, tensors, floats = case
    rooms = {
        1: built.multimodal_data.get("image", {}).get("pixel_values"),
        2: built.multimodal_data.get("video", {}).get("pixel_values_videos"),
    }
    taken = {1: 0, 2: 0}
    row = 0
    for kind, grid in zip(tensors.get("item_modality", ()), tensors.get("grid_thw", ()), strict=True):
        count = int(grid.prod())
        assert torch.equal(rooms[kind][taken[kind] : taken[kind] + count], floats[row : row + count])
        taken[kind] += count
        row += count
    assert row == len(floats)
    assert taken == {kind: 0 if room is None else len(room) for kind, room in rooms.items()}


def test_every_placeholder_belongs_to_one_run(case: Case) -> None:
    built, tensors, _ = case
    places = np.flatnonzero(np.isin(tensors["input_ids"], (151655, 151656))).tolist()
    if built.keys is None:
        assert not places
        return
    runs = zip(built.keys.run_positions, built.keys.run_lengths, strict=True)
    assert [place for start, length in runs for place in range(start, start + length)] == places
    assert sum(built.multimodal_data["multimodal_embedding_lengths"]) == len(places)


def test_an_item_has_as_many_embeddings_as_merged_patches(case: Case) -> None:
    built, tensors, _ = case
    merged = [int(grid.prod()) // 4 for grid in tensors.get("grid_thw", ())]
    assert built.multimodal_data.get("multimodal_embedding_lengths", []) == merged


def test_hashes_are_the_items_digests(case: Case) -> None:
    built, tensors, _ = case
    got = [] if built.keys is None else built.keys.hashes
    assert np.array(got, ">i4").tobytes() == tensors.get("item_hash", np.empty(0, np.uint8)).tobytes()
