"""A model's parts by name: what an engine set up elsewhere is compared with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from preprocessor.models.family import Model
from preprocessor.models.fingerprint import CONTRACT_VERSION, digest_vocabulary, fingerprint_parts, library_versions
from preprocessor.models.registry import load_model


@pytest.fixture(scope="module")
def parts(model: Model) -> dict[str, str]:
    return fingerprint_parts(model)


def test_the_pixel_settings_are_the_models_own(parts: dict[str, str]) -> None:
    names = ("patch_size", "merge_size", "temporal_patch_size", "pixel_mean", "pixel_std", "rescale_factor")
    assert [json.loads(parts[name]) for name in names] == [16, 2, 2, [0.5] * 3, [0.5] * 3, 1 / 255]


def test_the_other_parts_say_which_model_contract_and_libraries(model: Model, parts: dict[str, str]) -> None:
    assert (parts["contract_version"], parts["model"], parts["family"]) == (CONTRACT_VERSION, "qwen3-vl", "qwen3_vl")
    assert parts["preprocessing_sha256"] == model.fingerprint
    assert {name: parts[f"library.{name}"] for name in library_versions()} == library_versions()
    assert all(isinstance(value, str) and value for value in parts.values())


def test_models_with_other_patches_differ_in_just_those_parts(parts: dict[str, str]) -> None:
    other = fingerprint_parts(load_model("qwen2.5-vl"))
    assert {name for name in parts if parts[name] != other[name]} == {
        "model",
        "family",
        "patch_size",
        "pixel_mean",
        "pixel_std",
        "preprocessing_sha256",
        "tokenizer_sha256",
    }


def test_the_same_tokenizer_from_another_layout_has_the_same_digest(model: Model, tmp_path: Path) -> None:
    model.tokenizer.save_pretrained(tmp_path)
    again = type(model.tokenizer).from_pretrained(tmp_path)
    assert digest_vocabulary(again) == digest_vocabulary(model.tokenizer)


def test_one_more_token_changes_the_digest(model: Model, tmp_path: Path) -> None:
    model.tokenizer.save_pretrained(tmp_path)
    other = type(model.tokenizer).from_pretrained(tmp_path)
    other.add_tokens(["<|one_more|>"])
    assert digest_vocabulary(other) != digest_vocabulary(model.tokenizer)
