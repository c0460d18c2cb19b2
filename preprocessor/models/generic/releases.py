"""Which release of transformers has a model type of its own, for the refusal of a model that the installed one cannot prepare."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

# Model types → the first release with them, of releases after the one that is constrained here; `make parity TRANSFORMERS=latest`
# prints what is missing. Source: transformers 5.24.0, models/auto/auto_mappings.py, CONFIG_MAPPING_NAMES, without parts.
NEWER_MODEL_TYPES: Mapping[str, str] = {
    "apertus1p5": "5.24.0",
    "dory": "5.24.0",
    "exaone": "5.24.0",
    "hy_v4_vl": "5.24.0",
    "inkling2_loop": "5.24.0",
    "lara_mini": "5.24.0",
    "omniasr": "5.24.0",
    "omniasr_ctc": "5.24.0",
    "sarvam_mla": "5.24.0",
    "sarvam_moe": "5.24.0",
    "wavtokenizer": "5.24.0",
}


def release_sentence(model_type: str) -> str:
    """Which release knows a model type: the installed one, a newer one, or none that this version knows of."""
    if not model_type:
        return "its config.json names no model type"
    if model_type in _installed_model_types():
        return (
            f"the installed transformers {version('transformers')} has the model type {model_type}, by code of its own"
        )
    if newer := NEWER_MODEL_TYPES.get(model_type):
        return f"transformers {newer} is the first release with the model type {model_type}"
    return f"the model type {model_type} is in no release of transformers that this version knows"


def _installed_model_types() -> frozenset[str]:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # only now: it may import torchvision

    return frozenset(CONFIG_MAPPING_NAMES)
