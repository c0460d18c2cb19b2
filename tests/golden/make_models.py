"""Write the model directories in `models`: real processor classes and settings as published, a token a byte, no weights.

    python -m tests.golden.make_models

A tokenizer has the special tokens of the real one under the names that its processor asks for; ids are its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tests.golden.huggingface  # isort: skip # noqa: F401  # first: torchvision is imported there

import transformers
from transformers import PreTrainedTokenizerFast

from tests.golden.tile_cases import MODELS
from tests.tiny_processors import byte_tokenizer

# Turns between markers, each part in its place.
_TEMPLATE = (
    "{{% set marks = {marks} %}}{{{{ bos_token if bos_token is defined and bos_token else '' }}}}"
    "{{% for message in messages %}}{{{{ '<turn>' + message['role'] + '\n' }}}}{{% for part in message['content'] %}}"
    "{{{{ part['text'] if part['type'] == 'text' else marks[part['type']] }}}}{{% endfor %}}{{{{ '</turn>\n' }}}}{{% endfor %}}"
    "{{% if add_generation_prompt %}}{{{{ '<turn>assistant\n' }}}}{{% endif %}}"
)
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def internvl(directory: Path) -> None:
    """Settings as OpenGVLab/InternVL3_5-8B-HF has them."""
    tokens = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    size = {"height": 448, "width": 448}
    processor = transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(size=size, **_IMAGENET),
        tokenizer=_tokenizer(tokens),
        video_processor=transformers.InternVLVideoProcessor(size=size, **_IMAGENET),
        chat_template=_template(image="<IMG_CONTEXT>\n", video="<video>\n"),
    )
    _save(processor, directory, model_type="internvl")


def mistral3(directory: Path) -> None:
    """Settings as mistralai/Mistral-Small-3.1-24B-Instruct-2503 has them."""
    processor = transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(
            size={"longest_edge": 1540}, patch_size={"height": 14, "width": 14}
        ),
        tokenizer=_tokenizer({}, ("[IMG]", "[IMG_BREAK]", "[IMG_END]"), bos="<s>"),
        patch_size=14,
        spatial_merge_size=2,
        chat_template=_template(image="[IMG]"),
    )
    _save(processor, directory, model_type="mistral3")


def gemma3(directory: Path) -> None:
    """Settings as google/gemma-3-4b-it has them."""
    tokens = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    processor = transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size={"height": 896, "width": 896}),
        tokenizer=_tokenizer(tokens, bos="<bos>"),
        chat_template=_template(image="<start_of_image>"),
    )
    _save(processor, directory, model_type="gemma3")


def gemma4(directory: Path) -> None:
    """Settings as the sizes without sound have them."""
    tokens = {
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "image_token": "<|image|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
        "audio_token": "<|audio|>",
    }
    processor = transformers.Gemma4Processor(
        feature_extractor=transformers.Gemma4AudioFeatureExtractor(),
        image_processor=transformers.Gemma4ImageProcessor(),
        tokenizer=_tokenizer(tokens, ("<|video|>",), bos="<bos>"),
        video_processor=transformers.Gemma4VideoProcessor(),
        chat_template=_template(image="<|image|>", video="<|video|>"),
    )
    _save(processor, directory, model_type="gemma4")


MAKERS: Mapping[str, Callable[[Path], None]] = {
    "internvl": internvl,
    "mistral3": mistral3,
    "gemma3": gemma3,
    "gemma4": gemma4,
}


def _tokenizer(named: Mapping[str, str], more: tuple[str, ...] = (), bos: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer of 256 bytes and these special tokens; `bos` stands before every text."""
    return byte_tokenizer("<turn>", *named.values(), *more, named=named, bos=bos, eos="</turn>")


def _template(**marks: str) -> str:
    return _TEMPLATE.format(marks=marks)


def _save(processor: Any, directory: Path, **config: Any) -> None:
    processor.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def main(names: list[str]) -> None:
    for name in names or MAKERS:
        MAKERS[name](MODELS / name)


if __name__ == "__main__":
    main(sys.argv[1:])
