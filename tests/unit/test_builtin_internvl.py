"""The built-in internvl3.5: token ids and template as published, and the answer of transformers' own processor set up alike."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from preprocessor.models import registry
from preprocessor.models.family import Model
from preprocessor.pipeline import prepare
from preprocessor.text.chat_template import render_chat
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
from tests.golden import tile_oracle
from tests.media import moving_shapes_clip, photo

NAMED = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


@pytest.fixture(scope="module")
def internvl(load: Callable[[str], Model]) -> Model:
    return load("internvl3.5")


def question(*media: Media) -> PreparationRequest:
    messages = (
        Message("system", (TextPart("Be brief."),)),
        Message("user", (*(MediaPart(medium.key) for medium in media), TextPart("What — 你好?"))),
    )
    return PreparationRequest(ChatPrompt(messages), media, PixelForm.UINT8)


def test_added_tokens_follow_those_of_qwen3(internvl: Model) -> None:
    """`image_token_id` of OpenGVLab/InternVL3_5-8B-HF is 151671.

    Source of the order: OpenGVLab/InternVL, internvl_chat_finetune.py (`token_list`), and transformers'
    convert_internvl_weights_to_hf.py (`write_tokenizer`). Conversions of a model with these tokens add `<video>` behind them.
    """
    tokens = ["</think>", "<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
    assert internvl.tokenizer.convert_tokens_to_ids([*tokens, "<video>"]) == list(range(151_668, 151_679))


def test_a_chat_is_written_turn_by_turn_each_medium_on_its_line(internvl: Model) -> None:
    request = question(Media("i", Modality.IMAGE, b""), Media("v", Modality.VIDEO, b""))
    assert isinstance(request.prompt, ChatPrompt)
    modalities = {medium.key: medium.modality for medium in request.media}
    assert render_chat(internvl.tokenizer, internvl.chat_template, request.prompt, modalities, as_parts=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<IMG_CONTEXT>\n<video>\nWhat — 你好?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_it_prepares_what_transformers_prepares_with_the_same_files(internvl: Model, tmp_path: Path) -> None:
    builtin = Path(registry.__file__).parent / "builtin" / "internvl3.5"
    copy.deepcopy(internvl.tokenizer).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"extra_special_tokens": NAMED}))
    for name in ("config.json", "processor_config.json", "chat_template.jinja"):
        shutil.copy(builtin / name, tmp_path)
    clip = Media("v", Modality.VIDEO, moving_shapes_clip(1, 10, 96, 64), Sampling(frame_count=2))
    request = question(Media("i", Modality.IMAGE, photo(500, 300)), clip)
    ours, theirs = prepare(internvl, request).tensors, tile_oracle.answer(str(tmp_path), request)
    assert ours["input_ids"].tolist() == theirs.token_ids.tolist()
    assert np.array_equal(ours["pixel_patches"], theirs.patches)
