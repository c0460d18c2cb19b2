"""Prompts of a model's own processor for vLLM: what it makes of them is what it makes itself of the same pictures."""

from __future__ import annotations

import io
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine_client import EngineRejected, EngineRequest
from engine_client.contract.tensors import IMAGE, Array
from engine_client.contract.vllm_families import read_layout
from engine_client.vllm.prompt import encode_prompt
from engine_client.vllm.server import VllmServer
from preprocessor.config import Limits
from preprocessor.models.generic import GenericModel, load_generic, prepare_generic
from preprocessor.models.generic.prompt import render
from preprocessor.types.request import ChatPrompt, Media, MediaPart, Message, Modality, PreparationRequest, TextPart
from tests.engine.tiny_own_tensors import WRITERS
from tests.engine.vllm_server import INSTALLED
from tests.media import photo

WIDE, TALL = photo(90, 30, "PNG"), photo(20, 70, "PNG")
PROMPTS = {"one": (WIDE,), "two": (WIDE, TALL), "three": (TALL, TALL, WIDE)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in WRITERS}
    for name, folder in made.items():
        WRITERS[name](folder)
    return made


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, GenericModel]:
    return {name: load_generic(name, folder) for name, folder in folders.items()}


def request(pictures: tuple[bytes, ...]) -> PreparationRequest:
    media = tuple(Media(f"{number}", Modality.IMAGE, content) for number, content in enumerate(pictures))
    parts = tuple(part for medium in media for part in (MediaPart(medium.key), TextPart("and")))
    return PreparationRequest(ChatPrompt((Message("user", parts),)), media)


def tensors_of(model: GenericModel, pictures: tuple[bytes, ...]) -> dict[str, Array]:
    plan = prepare_generic(model, request(pictures), Limits())
    return {**plan.tensors, **plan.item_tensors}


def server_of(name: str, folder: Path) -> VllmServer:
    config = json.loads((folder / "config.json").read_text())
    layout = read_layout(name, config, vocabulary_size=512, max_positions=2048)
    assert layout is not None
    return VllmServer(
        model_name=name,
        model_type=name,
        normalizes=False,
        float_type="float32",
        max_prompt_tokens=2048,
        max_item_tokens=0,
        max_items={IMAGE: 3},
        vocabulary_size=512,
        pad_ids=layout.placeholder_ids,
        vision_start_id=None,
        rows_per_token=None,
        shm_namespace="",
        parameters={},
        layout=layout,
    )


@pytest.mark.vllm
@pytest.mark.timeout(900)
@pytest.mark.skipif(not INSTALLED.exists(), reason="no vLLM; `make vllm` sets one up")
@pytest.mark.parametrize("name", WRITERS)
def test_the_input_is_what_vllm_itself_makes_of_the_same_pictures(
    name: str, folders: dict[str, Path], models: dict[str, GenericModel], tmp_path: Path
) -> None:
    model = models[name]
    for kind, pictures in PROMPTS.items():
        wire = encode_prompt("test", EngineRequest(kind, tensors_of(model, pictures)), server_of(name, folders[name]))
        (tmp_path / f"{kind}.bin").write_bytes(wire)
        text, _ = render(model, request(pictures), Limits())
        images: dict[str, Any] = {f"image{i}": np.array(Image.open(io.BytesIO(one))) for i, one in enumerate(pictures)}
        np.savez(tmp_path / f"{kind}.npz", text=np.array(text), **images)
    ran = subprocess.run(
        [INSTALLED.with_name("python"), Path(__file__).with_name("vllm_own_tensors_input.py"), folders[name], tmp_path],
        env=dict(os.environ) | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == f"equal {len(PROMPTS)}"


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"item_hash": None}, "the prompt lacks item_hash"),
        ({"item_spans": np.array([[0, 1, 4]], np.int32)}, "each of 2 images must have one"),
        (
            {"pixel_values": np.zeros((1, 3, 28, 28), np.float32)},
            r"pixel_values is float32 \[1, 3, 28, 28\]; it must be",
        ),
        ({"pixel_values": np.zeros((2, 3, 14, 28), np.float32)}, "it must be a float"),
        ({"pixel_values": np.zeros((2, 3, 28, 28), np.uint8)}, "it must be a float"),
        ({"item_modality": np.array([1, 2], np.int32)}, "takes images alone"),
        ({"image_sizes": np.zeros((2, 2), np.int64)}, "image_sizes cannot be sent to a gemma3"),
        ({"item_hash": np.zeros((2, 8), np.uint8)}, "item_hash is uint8"),
    ],
)
def test_what_would_end_vllms_core_is_rejected(
    changed: dict[str, Array | None], complaint: str, folders: dict[str, Path], models: dict[str, GenericModel]
) -> None:
    tensors = tensors_of(models["gemma3"], (WIDE, TALL)) | changed
    given = {name: array for name, array in tensors.items() if array is not None}
    with pytest.raises(EngineRejected, match=complaint):
        encode_prompt("test", EngineRequest("wrong", given), server_of("gemma3", folders["gemma3"]))


def test_spans_that_are_not_the_engines_runs_are_rejected(
    folders: dict[str, Path], models: dict[str, GenericModel]
) -> None:
    tensors, server = tensors_of(models["gemma3"], (WIDE,)), server_of("gemma3", folders["gemma3"])
    assert server.layout is not None
    for place, token_id in ((0, server.layout.image_token_id), (int(tensors["item_spans"][0, 1]), 7)):
        ids = tensors["input_ids"].copy()
        ids[place] = token_id
        with pytest.raises(EngineRejected, match="not the runs of the engine's placeholder"):
            encode_prompt("test", EngineRequest("wrong", tensors | {"input_ids": ids}), server)
