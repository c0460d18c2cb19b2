"""A file of messages in Hugging Face's form comes out as transformers' own processor makes it of the same messages."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from preprocessor.__main__ import main
from preprocessor.models.family import Model
from tests.media import photo

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed", allow_module_level=True)

from tests.golden.huggingface import processor_of  # first: torchvision is imported there

from transformers.image_utils import load_image  # isort: skip

ZOOM = {"type": "function", "function": {"name": "zoom", "arguments": {"x": 1}}}


def conversation(folder: Path) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Is this "},
                {"type": "image", "path": str(folder / "one.png")},
                {"type": "text", "text": " the place of "},
                {"type": "image", "image": str(folder / "two.jpg")},
                {"type": "text", "text": "?"},
            ],
        },
        {"role": "assistant", "content": None, "tool_calls": [ZOOM]},
        {"role": "tool", "content": [{"type": "image", "url": str(folder / "two.jpg")}]},
        {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
        {"role": "user", "content": "Why?"},
    ]


def opened(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same for transformers, with images in the place of their paths: reading those needs a complete torchvision."""
    messages = copy.deepcopy(messages)
    for part in (part for message in messages for part in message["content"] or () if isinstance(part, dict)):
        if part["type"] == "image":
            path = next(value for name, value in part.items() if name != "type")
            part.clear()
            part.update(type="image", image=load_image(path))
    return messages


def test_a_conversation_comes_out_as_from_hugging_face(model: Model, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(photo(200, 120, "PNG"))
    (tmp_path / "two.jpg").write_bytes(photo(90, 150, seed=2))
    messages, output = conversation(tmp_path), tmp_path / "out.safetensors"
    (tmp_path / "talk.json").write_text(json.dumps(messages))
    asked = ("--messages", str(tmp_path / "talk.json"), "--dtype", "fp32", "--output", str(output))
    assert main(["prepare", "--local", *asked]) == 0
    ours = load_file(output)
    theirs = processor_of(model).apply_chat_template(
        opened(messages), tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    assert ours["input_ids"].tolist() == theirs["input_ids"][0].tolist()
    np.testing.assert_array_equal(ours["grid_thw"], theirs["image_grid_thw"].numpy())
    np.testing.assert_array_equal(ours["pixel_values"], theirs["pixel_values"].numpy())
