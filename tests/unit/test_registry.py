"""From a name to a model: built-ins, directories in both layouts, and names that lead nowhere."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from tokenizers import Tokenizer
from tokenizers.models import BPE

from preprocessor.config import Limits
from preprocessor.errors import ModelNotFound
from preprocessor.models import registry
from preprocessor.models.family import Model
from preprocessor.models.names import builtin_names
from preprocessor.models.registry import load_model
from preprocessor.models.video_markers import VideoMarkers
from preprocessor.pipeline import plan, prepare
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PixelForm,
    PreparationRequest,
    TextPart,
    TextPrompt,
)
from tests.media import photo
from tests.unit.tiles import TILES


def family_model(directory: Path) -> Model:
    """A model of a known family."""
    model = load_model(str(directory))
    assert isinstance(model, Model)
    return model


@pytest.fixture
def directory(small: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(small, tmp_path / "model"))


def merge_processor_files(directory: Path) -> None:
    """The two processor files as the one that transformers 5 writes."""
    image, video = directory / "preprocessor_config.json", directory / "video_preprocessor_config.json"
    combined = {"image_processor": json.loads(image.read_text()), "video_processor": json.loads(video.read_text())}
    (directory / "processor_config.json").write_text(json.dumps(combined))
    image.unlink()
    video.unlink()


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(name: str) -> ModelNotFound:
    with pytest.raises(ModelNotFound) as caught:
        load_model(name)
    return caught.value


def test_these_models_are_built_in() -> None:
    assert builtin_names() == ["internvl3.5", "qwen2-vl", "qwen2.5-vl", "qwen3-vl"]


@pytest.mark.parametrize(
    "name",
    ["internvl3.5", "qwen3-vl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2-vl", "qwen2.5-vl"))],
)
def test_a_built_in_is_prepared_the_same_on_the_generic_path(load: Callable[[str], Model], name: str) -> None:
    generic = load_model(name, preparation="generic")
    parts = (TextPart("What — 你好? It's <|im_end|> 12345."), MediaPart("i"))
    media = (Media("i", Modality.IMAGE, photo(90, 60)),)
    request = PreparationRequest(ChatPrompt((Message("user", parts),)), media, PixelForm.FP32)
    ours, theirs = (prepare(model, request, Limits()).tensors for model in (load(name), generic))
    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    assert ours["pixel_values"].tobytes() == theirs["pixel_values"].tobytes()
    assert generic.stop_token_ids == load(name).stop_token_ids


@pytest.mark.parametrize("preparation", ["auto", "generic"])
@pytest.mark.parametrize(
    ("content", "said"), [(None, "tokenizer.json is missing"), (Tokenizer(BPE()).to_str(), "has no vocabulary")]
)
def test_a_tokenizer_that_knows_no_text_is_refused(
    directory: Path, preparation: str, content: str | None, said: str
) -> None:
    """transformers would load it, and turn every text into nothing."""
    path = directory / "tokenizer.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(ModelNotFound, match=said) as caught:
        load_model(str(directory), preparation=preparation)
    assert caught.value.reason == "BAD_MODEL_DIRECTORY"


@pytest.mark.parametrize(
    ("vision_config", "expected"), [({"tokens_per_second": 25}, 25), ({}, 4), (None, 4)], ids=["given", "empty", "null"]
)
def test_tokens_per_second_are_the_configs_or_transformers_default(
    directory: Path, vision_config: dict[str, int] | None, expected: int
) -> None:
    edit(directory / "config.json", model_type="qwen2_5_vl", vision_config=vision_config)
    assert family_model(directory).tokens_per_second == expected


def test_qwen3_8_is_of_the_family_of_qwen3_vl(directory: Path) -> None:
    edit(directory / "config.json", model_type="qwen4_exp")
    assert load_model(str(directory)).describe().family == "qwen3_vl"


@pytest.mark.parametrize(("name", "has_a_choice"), [("qwen3-vl", True), ("qwen2.5-vl", False)])
def test_markers_around_videos_are_part_of_the_fingerprint_where_there_is_a_choice(
    name: str, has_a_choice: bool
) -> None:
    auto, keep, replace = (load_model(name, asked) for asked in ("auto", "keep", "replace"))
    assert auto.fingerprint == keep.fingerprint
    assert (keep.fingerprint != replace.fingerprint) == has_a_choice
    expected = (VideoMarkers.KEEP, VideoMarkers.REPLACE) if has_a_choice else (None, None)
    assert (keep.describe().video_markers, replace.describe().video_markers) == expected


def test_vision_markers_are_those_of_the_config(directory: Path) -> None:
    edit(directory / "config.json", vision_start_token_id=151646, vision_end_token_id=151647)
    assert family_model(directory).vision_markers == ("<|object_ref_start|>", "<|object_ref_end|>")


def test_a_directory_gives_the_token_ids_of_the_built_in(model: Model, written: Model) -> None:
    parts = (TextPart("Naïve 你好 <think> 3.14\n\n"), MediaPart("i"))
    request = PreparationRequest(
        ChatPrompt((Message("user", parts),)), (Media("i", Modality.IMAGE, photo(64, 64, "PNG")),)
    )
    ours = plan(written, request, Limits()).token_ids
    assert ours.tolist() == plan(model, request, Limits()).token_ids.tolist()


def test_a_directory_gives_the_settings_of_the_built_in(model: Model, small: Path) -> None:
    loaded = family_model(small)
    assert (loaded.image, loaded.video, loaded.placeholders) == (model.image, model.video, model.placeholders)


def test_both_processor_layouts_give_the_same_settings(model: Model, directory: Path) -> None:
    merge_processor_files(directory)
    loaded = family_model(directory)
    assert (loaded.image, loaded.video) == (model.image, model.video)


def test_a_model_without_video_settings_uses_its_images(directory: Path) -> None:
    (directory / "video_preprocessor_config.json").unlink()
    loaded = family_model(directory)
    assert loaded.video.pixels == loaded.image


def test_stop_tokens_are_those_of_the_generation_config(model: Model) -> None:
    assert model.stop_token_ids == (151645, 151643)


def test_a_changed_setting_changes_the_fingerprint(small: Path, directory: Path) -> None:
    edit(directory / "preprocessor_config.json", size={"shortest_edge": 1, "longest_edge": 2})
    assert load_model(str(directory)).fingerprint != load_model(str(small)).fingerprint


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json"])
def test_a_directory_without_a_needed_file_is_refused(directory: Path, name: str) -> None:
    (directory / name).unlink()
    assert refusal(str(directory)).reason == "BAD_MODEL_DIRECTORY"


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "tokenizer.json"])
def test_a_missing_file_is_named_with_what_to_do(directory: Path, name: str) -> None:
    for other in (name, "tokenizer_config.json"):
        (directory / other).unlink(missing_ok=True)
    assert refusal(str(directory)).message == f"{directory}: {name} is missing; copy it from where the model came from"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("chat_template.jinja", b"{% for x in messages %}", "its chat template is no Jinja template (line 1: "),
        ("chat_template.json", b"{}", "chat_template.json holds no text under chat_template"),
        ("chat_template.json", b"{", "chat_template.json is not JSON"),
        ("config.json", b"\xff\xfe", "config.json is not text in UTF-8"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_in_one_line(directory: Path, name: str, content: bytes, said: str) -> None:
    (directory / "chat_template.jinja").unlink()
    (directory / name).write_bytes(content)
    message = refusal(str(directory)).message
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_file_that_is_no_json_object_is_refused(directory: Path, content: str) -> None:
    (directory / "config.json").write_text(content)
    assert refusal(str(directory)).reason == "BAD_MODEL_DIRECTORY"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_tokenizer_that_is_damaged_is_refused(directory: Path, content: str) -> None:
    (directory / "tokenizer.json").write_text(content)
    assert refusal(str(directory)).reason == "BAD_MODEL_DIRECTORY"


def test_an_unknown_model_type_is_refused(directory: Path) -> None:
    edit(directory / "config.json", model_type="llama")
    error = refusal(str(directory))
    assert error.reason == "UNSUPPORTED_MODEL"


@pytest.mark.parametrize(
    ("setting", "value"), [("do_resize", False), ("resample", 2), ("patch_size", 0), ("image_mean", [0.5])]
)
def test_a_processor_setting_that_is_not_done_here_is_refused(directory: Path, setting: str, value: object) -> None:
    edit(directory / "preprocessor_config.json", **{setting: value})
    error = refusal(str(directory))
    assert (error.reason, setting in error.message) == ("UNSUPPORTED_PROCESSOR", True)


def test_a_further_family_is_one_more_entry_of_the_registry(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads its own processor's settings, and may take images alone."""
    family = dataclasses.replace(TILES, modalities=frozenset({Modality.IMAGE}))
    monkeypatch.setattr(registry, "FAMILIES", (*registry.FAMILIES, family))
    edit(directory / "config.json", model_type="tiles", video_token_id=None)
    (directory / "video_preprocessor_config.json").unlink()
    settings = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    loaded = load_model(str(directory))
    assert (loaded.describe().family, loaded.modalities) == ("tiles", {Modality.IMAGE})
    request = PreparationRequest(TextPrompt("<|image_pad|>"), (Media("i", Modality.IMAGE, photo(64, 64, "PNG")),))
    assert prepare(loaded, request).tensors["pixel_patches"].shape == (5, 3 * 32 * 32)


def test_placeholder_ids_that_the_tokenizer_lacks_are_refused(directory: Path) -> None:
    edit(directory / "config.json", image_token_id=10**7)
    assert refusal(str(directory)).reason == "BAD_MODEL_DIRECTORY"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", ["no/such-model", "not a name", "/no/such/directory", "a/b/c"])
def test_a_name_that_leads_nowhere_is_not_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert refusal(name).reason == "MODEL_NOT_FOUND"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (LocalEntryNotFoundError, "the hub cannot be reached"),
        (OfflineModeIsEnabled, "the hub cannot be reached"),
        (RepositoryNotFoundError, "the hub has no such model, or one that needs HF_TOKEN"),
        (GatedRepoError, "accepted its terms; do so there, and set HF_TOKEN"),
        (PermissionError, "set HF_HOME to a directory that can be written"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception], said: str
) -> None:
    refused = kind.__new__(kind)  # the hub's own want a whole HTTP response
    refused.args = ("of\nmany lines",)
    monkeypatch.setattr(registry, "snapshot_download", Mock(side_effect=refused))
    error = refusal("some/model")
    assert error.reason == "MODEL_NOT_FOUND"
    assert said in error.message
    assert "\n" not in error.message


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_generation_config_is_told_as_such(directory: Path, content: str) -> None:
    (directory / "generation_config.json").write_text(content)
    assert refusal(str(directory)).reason == "BAD_MODEL_DIRECTORY"
