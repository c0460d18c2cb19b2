"""What a script that uses transformers has: a model directory, `AutoProcessor`, and its media as files."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from preprocessor.models import registry
from preprocessor.models.family import Model
from preprocessor.types.request import ChatPrompt, MediaPart, Modality, PreparationRequest, TextPart
from tests.golden import oracle  # noqa: F401  # first: torchvision is imported there

from transformers import AutoProcessor  # isort: skip

_BUILTIN = Path(registry.__file__).parent / "builtin" / "qwen3-vl"
_SETTINGS = ("config.json", "preprocessor_config.json", "video_preprocessor_config.json", "chat_template.jinja")


@cache
def auto_processor(model: Model) -> Any:
    """`AutoProcessor.from_pretrained` of a directory as the hub has it; the tokenizer is `model`'s."""
    directory = _folder() / "qwen3-vl"
    model.tokenizer.save_pretrained(directory)
    for name in _SETTINGS:
        shutil.copy(_BUILTIN / name, directory)
    return AutoProcessor.from_pretrained(directory)


def chat_text(processor: Any, request: PreparationRequest) -> str:
    """The prompt, rendered by the processor's own template."""
    assert isinstance(request.prompt, ChatPrompt)
    kinds = {medium.key: medium.modality for medium in request.media}
    conversation = []
    for message in request.prompt.messages:
        content: list[dict[str, str]] = []
        for part in message.parts:
            if isinstance(part, MediaPart):
                content.append({"type": "image" if kinds[part.key] is Modality.IMAGE else "video"})
            else:
                assert isinstance(part, TextPart)
                content.append({"type": "text", "text": part.text})
        conversation.append({"role": message.role, "content": content})
    return str(processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))


@cache
def file_of(data: bytes) -> Path:
    """The file on disk, as a script finds it; gone when this process ends."""
    path = _folder() / hashlib.sha256(data).hexdigest()
    path.write_bytes(data)
    return path


@cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="bench-scripts-")


def _folder() -> Path:
    return Path(_directory().name)
