"""The part of TensorRT-LLM that this model stands on, found and checked before a checkpoint is loaded.

`PreprocessedInputs` is a prototype interface, and what must be in it has changed from one release candidate to the
next. A wrong guess would not fail: it would deal features to the wrong placeholders. So the release must be one that is
known, and each name and field that is used must be there.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

# From the first release after image and video features could be put back into prompt order (pull request 16337, July
# 2026) to the newest on the package index in November 2026. Earlier ones also had ids beyond the vocabulary at Qwen's
# placeholders, and no place for the runs of an item with text between them in the key of a KV block.
KNOWN_VERSIONS = (
    "1.3.0rc23",
    "1.3.0rc23.post1",
    "1.3.0rc24",
    "1.3.0rc25",
    "1.3.0rc26",
    "1.3.0rc27",
    "1.3.0rc28",
    "1.3.0rc29",
    "1.4.0rc0",
    "1.4.0rc1",
)
KNOWN = f"this model knows the releases {KNOWN_VERSIONS[0]} to {KNOWN_VERSIONS[-1]}"

_NAMES = {
    "tensorrt_llm": ("LLM", "SamplingParams"),
    "tensorrt_llm.llmapi": ("KvCacheConfig", "GuidedDecodingParams"),
    "tensorrt_llm.llmapi.llm": ("PreprocessedInputs",),
    "tensorrt_llm.inputs.multimodal": ("MultimodalInput", "MultimodalParams"),
    "tensorrt_llm.inputs.registry": ("maybe_compute_mm_embed_cumsum",),
    "tensorrt_llm.executor.utils": ("RequestError",),
}
_FIELDS = {
    "PreprocessedInputs": ("prompt_token_ids", "multimodal_params"),
    "MultimodalParams": ("multimodal_input", "multimodal_data", "mm_item_order"),
    "MultimodalInput": (
        "multimodal_hashes",
        "multimodal_positions",
        "multimodal_lengths",
        "multimodal_item_run_cu_offsets",
        "multimodal_run_positions",
        "multimodal_run_lengths",
    ),
    "SamplingParams": ("min_p", "presence_penalty", "prompt_ignore_length", "logprobs", "guided_decoding"),
    "GuidedDecodingParams": ("json", "regex", "grammar"),
}


class UnsupportedEngine(RuntimeError):
    """TensorRT-LLM is missing, or is not what this model was written for; the text says what, and what would do."""


@dataclass(frozen=True, slots=True)
class Surface:
    """Names of TensorRT-LLM, as it spells them."""

    version: str
    LLM: Any
    SamplingParams: Any
    KvCacheConfig: Any
    GuidedDecodingParams: Any
    PreprocessedInputs: Any
    MultimodalInput: Any
    MultimodalParams: Any
    RequestError: type[Exception]
    maybe_compute_mm_embed_cumsum: Any
    item_metadata_key: str | None
    """Where the encoder's scheduler looks for item sizes; None in releases that have no such scheduler."""


def find_surface(*, accept_other_versions: bool) -> Surface:
    """Import TensorRT-LLM and look at what is used of it.

    Args:
        accept_other_versions: Go on with a release that is not known, if names and fields are as expected.
    Raises:
        UnsupportedEngine: it is missing, another release, or lacks something.
    """
    try:
        package = importlib.import_module("tensorrt_llm")
    except ImportError as error:
        raise UnsupportedEngine(f"tensorrt_llm cannot be imported ({error}); {KNOWN}") from error
    version = str(getattr(package, "__version__", "unknown"))
    if version.partition("+")[0] not in KNOWN_VERSIONS and not accept_other_versions:
        raise UnsupportedEngine(
            f"tensorrt_llm is {version}; {KNOWN}. With accept_other_versions = true it is tried all the same"
        )

    found = {name: _find(module, name) for module, names in _NAMES.items() for name in names}
    lacking = [f"{module}.{name}" for module, names in _NAMES.items() for name in names if found[name] is None]
    for name, fields in _FIELDS.items():
        if found[name] is not None:
            present = getattr(found[name], "__dataclass_fields__", ())
            lacking += [f"{name}.{field}" for field in fields if field not in present]
    if lacking:
        raise UnsupportedEngine(f"tensorrt_llm {version} lacks {', '.join(lacking)}; {KNOWN}")
    key = _find("tensorrt_llm.inputs.multimodal", "MULTIMODAL_ENCODER_ITEM_METADATA_KEY")
    return Surface(version=version, item_metadata_key=key, **found)


def _find(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
