"""Loading any model through transformers' own `AutoProcessor`, for those that no fast family knows.

Only code of the installed transformers runs: a repository with Python code of its own is refused. Where a processor needs a
library beyond this package (num2words for SmolVLM), the error names it.

transformers uses its torchvision classes where torchvision can be imported, else its Pillow classes. The two resize differently,
so both the library and the classes are part of the fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.errors import ModelNotFound
from preprocessor.models.digests import digest_files
from preprocessor.models.generic.fonts import keep_font
from preprocessor.models.generic.mistral_tokenizer import missing_libraries, own_versions, writes_prompts
from preprocessor.models.generic.model import GenericModel
from preprocessor.models.generic.processor import part_of
from preprocessor.models.generic.releases import release_sentence
from preprocessor.models.generic.torchvision import settle_torchvision
from preprocessor.models.versions import library_versions
from preprocessor.text.chat_template import check_template
from preprocessor.text.tokenizer import check_vocabulary, check_vocabulary_file, one_line, read_stop_token_ids
from preprocessor.types.request import Modality

_PIP = re.compile(r"pip install ([\w.-]+)")  # in transformers' own words about a library that it lacks
_CONFIG_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.ttf", "additional_chat_templates/*.jinja")


def load_generic(name: str, directory: Path) -> GenericModel:
    """Load a model's processor; no weights, no network, no code but transformers' own.

    Args:
        name: What the user called it, for messages.
        directory: Its configuration and tokenizer files, as a hub repository holds them.
    Raises:
        ModelNotFound: `BAD_MODEL_DIRECTORY` for a file that is missing or damaged, or a tokenizer without a vocabulary;
            `UNSUPPORTED_MODEL` for a processor that this transformers does not know, that needs a library which is not here, or
            that has no fast tokenizer.
    """
    vision_library = settle_torchvision()
    from transformers.processing_utils import ProcessorMixin  # only now: it may import torchvision

    _refuse_other_models(name, directory)
    check_vocabulary_file(directory)
    processor = _load_processor(name, directory)
    tokenizer = getattr(processor, "tokenizer", None)
    modalities = frozenset(modality for modality in Modality if part_of(processor, modality) is not None)
    if not isinstance(processor, ProcessorMixin) or not modalities:
        what = f"transformers {version('transformers')} has no processor for it that takes images, videos or sounds"
        raise _unsupported(name, f"{what}; {release_sentence(_model_type(directory))}")
    is_mistral = writes_prompts(tokenizer)
    if not is_mistral:
        if not isinstance(tokenizer, TokenizersBackend):
            raise _unsupported(name, "its tokenizer has no fast form (tokenizer.json)")
        check_vocabulary(tokenizer, directory)
    keep_font(processor)
    parts = [type(part_of(processor, modality)).__name__ for modality in sorted(modalities)]
    template = "" if is_mistral else _chat_template(processor, tokenizer, name)
    placeholders = {} if is_mistral else _placeholders(processor, modalities)
    return GenericModel(
        name=name,
        processor=processor,
        chat_template=template,
        modalities=modalities,
        placeholders=placeholders,
        stop_token_ids=read_stop_token_ids(directory, tokenizer),
        fingerprint=_fingerprint(
            directory, [type(processor).__name__, *parts, vision_library, *own_versions(tokenizer)]
        ),
        inner_tokens=_inner_tokens(processor, tokenizer, placeholders, template),
    )


def _refuse_other_models(name: str, directory: Path) -> None:
    """An audio tokenizer is a model with weights, which transformers would load from wherever the file points.

    Voxtral's processor can be loaded without mistral-common, but takes sound only with it; that of Voxtral Realtime takes a
    stream of sound and no messages.

    Source: transformers 5.23, ProcessorMixin.get_processor_dict; VoxtralProcessor, VoxtralRealtimeProcessor.
    """
    path = directory / "processor_config.json"
    model_type = _model_type(directory)
    if model_type == "voxtral_realtime":
        raise _unsupported(name, "it transcribes sound while it is streamed, and takes no messages")
    if model_type == "voxtral" and (missing := missing_libraries()):
        what = f"mistral-common writes its prompts; pip install 'vlm-preprocessor[voxtral]', for lack of {' and '.join(missing)}"
        raise _unsupported(name, what, extra="voxtral")
    try:
        settings = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise _damaged(name, f"{path.name} cannot be read ({error})") from error
    if "audio_tokenizer" in settings or (directory / "audio_tokenizer_config.json").is_file():
        raise _unsupported(name, "its audio tokenizer is a model of its own, which is not loaded here")


def _load_processor(name: str, directory: Path) -> Any:
    from transformers import AutoProcessor  # only now: it may import torchvision

    try:
        return AutoProcessor.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        reason = " ".join(str(error).split())
        if "torchvision" in reason.lower():
            what = f"{reason.split(' but it ')[0]}; install the torchvision that belongs to this torch"
            raise _unsupported(name, what, "torchvision") from error
        raise _unsupported(name, reason, *_PIP.findall(reason)) from error
    except ValueError as error:
        if "trust_remote_code" in str(error):
            what = "it brings Python code of its own, which is never run here"
            raise _unsupported(name, f"{what}; {release_sentence(_model_type(directory))}") from error
        if "Unrecognized" in str(error):
            what = f"transformers {version('transformers')} has no processor for it"
            raise _unsupported(name, f"{what}; {release_sentence(_model_type(directory))}") from error
        if "Could not load any" in str(error) and "torchvision:" in str(error):  # transformers 5.23, AutoImageProcessor
            what = "its image processor needs torchvision; install the torchvision that belongs to this torch"
            raise _unsupported(name, what, "torchvision") from error
        raise _damaged(name, one_line(error)) from error
    except Exception as error:  # tokenizers raises bare Exception; a setting of a wrong type may raise anything
        raise _damaged(name, one_line(error)) from error


def _model_type(directory: Path) -> str:
    """As config.json says it; empty where it does not."""
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):
        return ""
    return str(config.get("model_type") or "") if isinstance(config, dict) else ""


def _chat_template(processor: Any, tokenizer: TokenizersBackend, name: str) -> str:
    """The default template; a processor may hold several by name."""
    template = processor.chat_template or tokenizer.chat_template or ""
    if isinstance(template, Mapping):
        if "default" not in template:
            raise _unsupported(name, f"none of its chat templates is the default: {', '.join(sorted(template))}")
        template = template["default"]
    check_template(str(template), name)
    return str(template)


def _placeholders(processor: Any, modalities: frozenset[Modality]) -> dict[Modality, str]:
    tokens = {modality: getattr(processor, f"{modality.name.lower()}_token", None) for modality in sorted(modalities)}
    return {modality: str(token) for modality, token in tokens.items() if token}


def _inner_tokens(
    processor: Any, tokenizer: TokenizersBackend, placeholders: Mapping[Modality, str], template: str
) -> frozenset[str]:
    """Such as Gemma 3's `<image_soft_token>`, which replaces `<start_of_image>`.

    These are the ids by which the processor tells token types, and the tokenizer's own token of a modality, without those that
    the template writes. Source: transformers 5.23, ProcessorMixin.image_token_ids and its like.
    """
    found: set[str] = set()
    for modality in placeholders:
        name = modality.name.lower()
        ids = [one for one in getattr(processor, f"{name}_token_ids", None) or () if isinstance(one, int)]
        tokens = [*tokenizer.convert_ids_to_tokens(ids), getattr(tokenizer, f"{name}_token", None)]
        found.update(str(token) for token in tokens if token)
    return frozenset(token for token in found - set(placeholders.values()) if token not in template)


def _fingerprint(directory: Path, classes: list[str]) -> str:
    files = sorted({path for pattern in _CONFIG_FILES for path in directory.glob(pattern)})
    return hashlib.sha256(json.dumps([classes, library_versions(), digest_files(files)]).encode()).hexdigest()


def _unsupported(name: str, what: str, *missing: str, extra: str = "") -> ModelNotFound:
    """
    Args:
        missing: Libraries that would help, by their names on the package index.
        extra: That of this package which would.
    """
    further = {"missing_libraries": " ".join(missing)} if missing else {"missing_extra": extra} if extra else {}
    return ModelNotFound(f"{name}: this model cannot be prepared: {what}", reason="UNSUPPORTED_MODEL", **further)


def _damaged(name: str, what: str) -> ModelNotFound:
    what = f"its processor cannot be loaded ({what}); copy its files again from where the model came from"
    return ModelNotFound(f"{name}: {what}", reason="BAD_MODEL_DIRECTORY")
