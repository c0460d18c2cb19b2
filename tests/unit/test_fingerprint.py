"""A model's parts by name: what an engine set up elsewhere is compared with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.models.digests import digest_tokenizer, digest_vocabulary
from preprocessor.models.family import Model
from preprocessor.models.fingerprint import CONTRACT_VERSION, fingerprint_parts
from preprocessor.models.registry import load_model
from preprocessor.models.versions import library_versions
from preprocessor.pipeline import prepare
from preprocessor.types.request import ChatPrompt, Media, MediaPart, Message, Modality, PreparationRequest
from tests.media import photo


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
    assert {name for name in parts if parts[name] != other.get(name)} == {
        "model",
        "family",
        "patch_size",
        "pixel_mean",
        "pixel_std",
        "preprocessing_sha256",
        "tokenizer_sha256",
        "video_markers",
    }


def test_the_same_tokenizer_from_another_layout_has_the_same_digest(model: Model, written: Model) -> None:
    assert digest_vocabulary(written.tokenizer) == digest_vocabulary(model.tokenizer)


# -- what is equal is equal --------------------------------------------------------------------------------------------


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values, indent=2))


def test_the_built_in_and_the_same_in_a_directory_are_one_model(model: Model, written: Model) -> None:
    assert written.fingerprint == model.fingerprint


def test_an_item_has_the_same_hash_from_either(model: Model, written: Model) -> None:
    photos = (Media("photo", Modality.IMAGE, photo(60, 40)),)
    request = PreparationRequest(ChatPrompt((Message("user", (MediaPart("photo"),)),)), photos)
    hashes = [prepare(one, request).tensors["item_hash"].tolist() for one in (model, written)]
    assert hashes[0] == hashes[1]


def test_how_files_are_set_changes_nothing(small: Path, tmp_path: Path) -> None:
    other = shutil.copytree(small, tmp_path / "other")
    rewrite(other / "video_preprocessor_config.json", lambda video: video.update(fps=2.0, max_video_tokens=None))
    rewrite(other / "config.json", lambda config: config.update(transformers_version="4.57.0"))
    template = other / "chat_template.jinja"
    (other / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text().removesuffix("\n")}))
    template.unlink()
    assert load_model(str(other)).fingerprint == load_model(str(small)).fingerprint


def test_another_template_changes_the_fingerprint(small: Path, tmp_path: Path) -> None:
    other = shutil.copytree(small, tmp_path / "other")
    with (other / "chat_template.jinja").open("a") as template:
        template.write("{# #} .")
    assert load_model(str(other)).fingerprint != load_model(str(small)).fingerprint


VOCABULARY = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5}
ONE_PAIR_A_TOKEN = [("a", "b"), ("b", "c"), ("ab", "c")]


def small(merges: Sequence[tuple[str, str]], **parts: Any) -> TokenizersBackend:
    backend = Tokenizer(BPE(vocab=VOCABULARY, merges=list(merges)))
    backend.pre_tokenizer = parts.get("pre_tokenizer", pre_tokenizers.ByteLevel(use_regex=False))
    backend.decoder = parts.get("decoder", decoders.ByteLevel())
    if "post_processor" in parts:
        backend.post_processor = parts["post_processor"]
    made: TokenizersBackend = TokenizersBackend(tokenizer_object=backend)
    return made


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: small([*ONE_PAIR_A_TOKEN, ("a", "bc")]), id="every pair that gives a token"),
        pytest.param(
            lambda: small(ONE_PAIR_A_TOKEN, decoder=decoders.ByteLevel(use_regex=False)),  # type: ignore[call-arg]
            id="decoder's options",
        ),
        pytest.param(
            lambda: small(ONE_PAIR_A_TOKEN, post_processor=processors.ByteLevel(trim_offsets=False)),
            id="a post-processor that moves offsets",
        ),
        pytest.param(
            lambda: small(
                ONE_PAIR_A_TOKEN,
                pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(use_regex=False, trim_offsets=False)]),
            ),
            id="a sequence of one, and offsets",
        ),
    ],
)
def test_tokenizers_that_do_the_same_have_one_digest(other: Callable[[], TokenizersBackend]) -> None:
    assert digest_tokenizer(other()) == digest_tokenizer(small(ONE_PAIR_A_TOKEN))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: small([("b", "c"), ("a", "b"), ("ab", "c")]), id="another order"),
        pytest.param(lambda: small([("a", "b"), ("b", "c")]), id="a token that is never made"),
        pytest.param(
            lambda: small(ONE_PAIR_A_TOKEN, pre_tokenizer=pre_tokenizers.ByteLevel()), id="text is split before"
        ),
        pytest.param(
            lambda: small(
                ONE_PAIR_A_TOKEN,
                post_processor=processors.TemplateProcessing(single="a $A", special_tokens=[("a", 0)]),
            ),
            id="a token before every text",
        ),
    ],
)
def test_tokenizers_that_do_otherwise_have_another_digest(other: Callable[[], TokenizersBackend]) -> None:
    assert digest_tokenizer(other()) != digest_tokenizer(small(ONE_PAIR_A_TOKEN))


def test_what_is_known_of_the_built_in_s_merges_is_true(model: Model) -> None:
    assert digest_tokenizer(model.tokenizer, merges_follow_ids=True) == digest_tokenizer(model.tokenizer)


def test_one_more_token_changes_the_digest(model: Model, saved: Path) -> None:
    other = type(model.tokenizer).from_pretrained(saved)
    other.add_tokens(["<|one_more|>"])
    assert digest_vocabulary(other) != digest_vocabulary(model.tokenizer)
