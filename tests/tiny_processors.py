"""Tiny Hugging Face processors, built here and saved as model directories: no hub, no weights, real processor classes.

Each maker writes what a model's repository holds (`config.json`, `processor_config.json`, tokenizer files, chat template)
with sizes so small that a request takes milliseconds. The tokenizer has one token a byte and the family's special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from preprocessor.models.generic.torchvision import settle_torchvision

settle_torchvision()  # the classes that transformers takes by default need it

BOS, EOS = "<bos>", "<eos>"

# Loops over typed parts, as the templates of LLaVA, Idefics3 and Pixtral do: a string for `content` would vanish in it.
_PARTS_TEMPLATE = """{{ bos_token }}{% for message in messages %}{{ message['role'] | upper }}: \
{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}\
{% elif part['type'] in placeholders %}{{ placeholders[part['type']] }}\n{% endif %}{% endfor %}<eos>
{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"""


def save_llava_onevision(directory: Path) -> None:
    """Images and videos: tiles by aspect ratio for one image, a pooled grid of tokens for each frame."""
    size = {"height": 28, "width": 28}
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size=size, image_grid_pinpoints=[[28, 28], [28, 56], [56, 28], [56, 56]]
        ),
        tokenizer=byte_tokenizer("<image>", "<video>"),
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=chat_template({"image": "<image>", "video": "<video>"}),
    )
    save(processor, directory, model_type="llava_onevision")


def save_llava_next(directory: Path) -> None:
    """Images only; tiles padded to the most that one image has."""
    processor = transformers.LlavaNextProcessor(
        image_processor=transformers.LlavaNextImageProcessor(
            size={"shortest_edge": 28},
            crop_size={"height": 28, "width": 28},
            image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
        ),
        tokenizer=byte_tokenizer("<image>"),
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=chat_template({"image": "<image>"}),
    )
    save(processor, directory, model_type="llava_next")


def save_gemma3(directory: Path) -> None:
    """Images only; text knows `<boi>`, ids hold a fixed number of soft tokens, `token_type_ids` mark them."""
    tokens = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image_soft_token>"}
    processor = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size={"height": 28, "width": 28}),
        tokenizer=byte_tokenizer(*tokens.values(), named=tokens),
        image_seq_length=4,
        chat_template=chat_template({"image": "<boi>"}),
    )
    save(processor, directory, model_type="gemma3")


def save_pixtral(directory: Path) -> None:
    """Images only, each in its own size, padded to the largest; break tokens between rows of patches."""
    processor = transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(
            size={"longest_edge": 64}, patch_size={"height": 16, "width": 16}
        ),
        tokenizer=byte_tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        patch_size=16,
        chat_template=chat_template({"image": "[IMG]"}),
    )
    save(processor, directory, model_type="pixtral")


def save_idefics3(directory: Path) -> None:
    """Images only, split into numbered tiles and one view of the whole; a `pixel_attention_mask` beside the pixels."""
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    processor = transformers.Idefics3Processor(
        image_processor=transformers.Idefics3ImageProcessor(
            size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
        ),
        tokenizer=byte_tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles),
        image_seq_len=4,
        chat_template=chat_template({"image": "<image>"}),
    )
    save(processor, directory, model_type="idefics3")


def save_internvl(directory: Path) -> None:
    """Images and videos: tiles of one size, and a line of text before every frame."""
    tokens = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    size = {"height": 28, "width": 28}
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=size, crop_to_patches=True, max_patches=4),
        tokenizer=byte_tokenizer(*tokens.values(), named=tokens),
        video_processor=transformers.InternVLVideoProcessor(size=size),
        image_seq_length=4,
        chat_template=chat_template({"image": "<IMG_CONTEXT>", "video": "<video>"}),
    )
    save(processor, directory, model_type="internvl")


def save_glm46v(directory: Path) -> None:
    """Images and videos in patches with grids; a timestamp after every frame; a pixel budget as in Qwen-VL."""
    marks = ["<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"]
    placeholders = {"image": "<|image|>", "video": "<|begin_of_video|><|video|><|end_of_video|>"}
    size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    processor = transformers.Glm46VProcessor(
        image_processor=transformers.Glm46VImageProcessor(size=size),
        tokenizer=byte_tokenizer("<|image|>", "<|video|>", *marks),
        video_processor=transformers.Glm46VVideoProcessor(size={"shortest_edge": 2 * 56 * 56, "longest_edge": 2**19}),
        chat_template=chat_template(placeholders),
    )
    save(processor, directory, model_type="glm46v")


def save_qwen2_audio(directory: Path) -> None:
    """Sounds only: spectrograms of one second at 16 kHz, padded."""
    tokens = {"audio": "<|AUDIO|>"}
    processor = transformers.Qwen2AudioProcessor(
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1),
        tokenizer=byte_tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"),
        chat_template=chat_template(tokens),
    )
    save(processor, directory, model_type="qwen2_audio")


def save_qwen2_5_omni(directory: Path) -> None:
    """Images, videos and sounds in one prompt; a video's frame rate decides its positions (`video_second_per_grid`)."""
    tokens = {
        "image_token": "<|IMAGE|>",
        "video_token": "<|VIDEO|>",
        "audio_token": "<|AUDIO|>",
        "vision_bos_token": "<|vision_bos|>",
        "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>",
        "audio_eos_token": "<|audio_eos|>",
    }
    placeholders = {
        "image": "<|vision_bos|><|IMAGE|><|vision_eos|>",
        "video": "<|vision_bos|><|VIDEO|><|vision_eos|>",
        "audio": "<|audio_bos|><|AUDIO|><|audio_eos|>",
    }
    size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    processor = transformers.Qwen2_5OmniProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(size=size),
        video_processor=transformers.Qwen2VLVideoProcessor(size=size),
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1),
        tokenizer=byte_tokenizer(*tokens.values(), named=tokens),
        chat_template=chat_template(placeholders),
    )
    save(processor, directory, model_type="qwen2_5_omni")


MAKERS: Mapping[str, Callable[[Path], None]] = {
    "llava_onevision": save_llava_onevision,
    "llava_next": save_llava_next,
    "gemma3": save_gemma3,
    "pixtral": save_pixtral,
    "idefics3": save_idefics3,
    "internvl": save_internvl,
    "glm46v": save_glm46v,
    "qwen2_audio": save_qwen2_audio,
    "qwen2_5_omni": save_qwen2_5_omni,
}


def byte_tokenizer(
    *special_tokens: str, named: Mapping[str, str] | None = None, bos: str | None = BOS, eos: str = EOS
) -> PreTrainedTokenizerFast:
    """A tokenizer of 256 bytes, BOS (put before every text), EOS and these special tokens.

    Args:
        named: Special tokens that the tokenizer should have as attributes of these names.
        bos: None: there is none.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*([] if bos is None else [bos]), eos, *special_tokens])
    if bos is not None:
        added = [(bos, backend.token_to_id(bos))]
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=added)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=eos,
        pad_token=eos,
        extra_special_tokens=dict(named or {}),
        **({} if bos is None else {"bos_token": bos}),
    )


def save(processor: Any, directory: Path, **config: object) -> None:
    """Write the processor as a model directory, with a `config.json` of these entries."""
    processor.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(config))


def chat_template(placeholders: Mapping[str, str]) -> str:
    """A chat template that writes these placeholders, by modality."""
    return f"{{% set placeholders = {dict(placeholders)} %}}" + _PARTS_TEMPLATE
