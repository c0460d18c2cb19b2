"""A fine-tune's directory, with settings and token names of its own, is read as transformers reads it. No code knows it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer

from preprocessor.models.family import Model
from preprocessor.models.registry import load_model
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
from tests.media import moving_shapes_clip, photo

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed", allow_module_level=True)

from tests.golden.huggingface import CLASSES
from tests.parity.compare import differences
from tests.parity.directories import write_config

TOKENS = {"image_token": "<img>", "video_token": "<vid>", "vision_start_token": "<v>", "vision_end_token": "</v>"}
TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% else %}<v>{{ {'image': '<img>', 'video': '<vid>'}[part.type] }}</v>"
    "{% endif %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@dataclass(frozen=True, slots=True)
class FineTune:
    """What a directory says, apart from its token names.

    Attributes:
        common: Settings of both processors.
        video: Further settings of the video processor.
        vision: `vision_config` of config.json.
    """

    family: str
    common: dict[str, Any]
    video: dict[str, Any]
    vision: dict[str, Any]


SMALL = {"patch_size": 8, "merge_size": 2, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7]}
WIDE = {"patch_size": 12, "merge_size": 3, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
BUDGET = {"size": {"shortest_edge": 10_000, "longest_edge": 90_000}}
FINE_TUNES = {
    "qwen2-vl": FineTune("qwen2_vl", SMALL | BUDGET, {"fps": 4, "min_frames": 2, "max_frames": 6}, {}),
    "qwen2.5-vl": FineTune("qwen2_5_vl", WIDE | BUDGET, {"fps": 3}, {"tokens_per_second": 25}),
    "qwen2.5-vl, seconds left out": FineTune("qwen2_5_vl", BUDGET | {"patch_size": 10}, {"fps": 3}, {}),
    "qwen3-vl": FineTune("qwen3_vl", WIDE | BUDGET, {"fps": 5, "min_frames": 3, "max_frames": 7}, {}),
    "qwen3-vl, capped": FineTune(
        "qwen3_vl", SMALL, {"cap_pixels_per_frame": True, "max_video_tokens": 40, "size": BUDGET["size"]}, {}
    ),
    "qwen3-vl, three frames a patch": FineTune("qwen3_vl", SMALL | BUDGET | {"temporal_patch_size": 3}, {}, {}),
    "qwen3-vl, every frame": FineTune("qwen3_vl", SMALL | BUDGET, {"do_sample_frames": False}, {}),
    "qwen2-vl, one frame a patch": FineTune("qwen2_vl", SMALL | BUDGET | {"temporal_patch_size": 1}, {"fps": 2}, {}),
}


def save(tune: FineTune, directory: Path) -> None:
    """The directory as transformers writes it, with a token a byte."""
    bytes_only = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=bytes_only, merges=[], model_specific_special_tokens=TOKENS)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    classes = CLASSES[tune.family]
    classes.processor(
        image_processor=transformers.Qwen2VLImageProcessor(**tune.common),
        tokenizer=tokenizer,
        video_processor=classes.video_processor(**tune.common | tune.video),
        chat_template=TEMPLATE,
    ).save_pretrained(directory)
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in TOKENS.items()}
    write_config(directory, model_type=tune.family, vision_config=tune.vision, **ids)


def request() -> PreparationRequest:
    media = (
        Media("i", Modality.IMAGE, photo(301, 187, "PNG")),
        Media("v", Modality.VIDEO, moving_shapes_clip(2, 25, 222, 130)),
        Media("w", Modality.VIDEO, moving_shapes_clip(1, 25, 130, 222), Sampling(indices=(0, 3, 9, 10, 24))),
    )
    parts = (TextPart("look "), MediaPart("v"), TextPart(", "), MediaPart("i"), TextPart(" and "), MediaPart("w"))
    return PreparationRequest(
        ChatPrompt((Message("system", (TextPart("brief"),)), Message("user", parts))), media, PixelForm.UINT8
    )


@pytest.fixture(scope="module", params=FINE_TUNES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fine-tunes") / "model"
    save(FINE_TUNES[request.param], folder)
    return folder


def test_a_fine_tune_comes_out_as_from_hugging_face(directory: Path) -> None:
    model = load_model(str(directory))
    assert isinstance(model, Model)
    kind: Any = CLASSES[model.family.name].processor
    processor = kind.from_pretrained(directory)
    if processor.video_processor.fps is None:  # Qwen2's class then takes every frame; ours two a second, as published
        processor.video_processor.fps = model.video.fps
    assert differences(model, request(), processor) == []
