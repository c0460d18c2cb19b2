"""A model directory becomes a model that says what it takes, pickles, and runs no code of its own."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from preprocessor.errors import ModelNotFound
from preprocessor.models.generic import GenericModel, load_generic, prepare_generic
from preprocessor.models.generic.releases import NEWER_MODEL_TYPES
from preprocessor.types.request import Modality, PreparationRequest, TextPrompt
from tests.tiny_processors import MAKERS, byte_tokenizer, save
from tests.unit.generic.cases import LIMITS, chat, image, video


def load_refusal(directory: Path) -> ModelNotFound:
    with pytest.raises(ModelNotFound) as caught:
        load_generic("a-model", directory)
    return caught.value


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "modalities", "placeholders"),
    [
        ("llava_onevision", {Modality.IMAGE, Modality.VIDEO}, {Modality.IMAGE: "<image>", Modality.VIDEO: "<video>"}),
        ("gemma3", {Modality.IMAGE}, {Modality.IMAGE: "<boi>"}),
        ("qwen2_audio", {Modality.AUDIO}, {Modality.AUDIO: "<|AUDIO|>"}),
    ],
)
def test_a_model_says_what_it_takes(
    loaded: dict[str, GenericModel], name: str, modalities: set[Modality], placeholders: dict[Modality, str]
) -> None:
    assert (loaded[name].modalities, loaded[name].placeholders) == (modalities, placeholders)


def test_stop_tokens_are_those_of_the_generation_config_else_the_tokenizers(
    loaded: dict[str, GenericModel], models: Path
) -> None:
    assert loaded["pixtral"].stop_token_ids == (loaded["pixtral"].tokenizer.eos_token_id,)
    path = models / "pixtral" / "generation_config.json"
    path.write_text('{"eos_token_id": [7, 8]}')
    try:
        assert load_generic("pixtral", models / "pixtral").stop_token_ids == (7, 8)
    finally:
        path.unlink()


def test_a_pickled_model_prepares_the_same(loaded: dict[str, GenericModel]) -> None:
    copy = pickle.loads(pickle.dumps(loaded["glm46v"]))
    request = chat(image("i"), video("v"))
    first, second = (prepare_generic(model, request, LIMITS) for model in (loaded["glm46v"], copy))
    assert copy.fingerprint == loaded["glm46v"].fingerprint
    assert {name: t.tobytes() for name, t in first.tensors.items()} == {
        name: t.tobytes() for name, t in second.tensors.items()
    }


def test_a_result_pickles(loaded: dict[str, GenericModel]) -> None:
    prepared = prepare_generic(loaded["pixtral"], chat(image("i")), LIMITS)
    assert pickle.loads(pickle.dumps(prepared)).token_ids.tolist() == prepared.token_ids.tolist()


def test_eight_threads_share_a_model_one_at_a_time(loaded: dict[str, GenericModel]) -> None:
    processor = OneAtATime(loaded["pixtral"].processor)
    model = dataclasses.replace(loaded["pixtral"], processor=processor)
    requests = [PreparationRequest(TextPrompt(f"{'word ' * 200}{n}")) for n in range(8)]
    expected = [prepare_generic(model, request, LIMITS).token_ids.tolist() for request in requests]
    start = threading.Barrier(len(requests))

    def work(request: PreparationRequest) -> list[list[int]]:
        start.wait()
        return [prepare_generic(model, request, LIMITS).token_ids.tolist() for _ in range(10)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads take turns inside every call
    try:
        with ThreadPoolExecutor(len(requests)) as pool:
            answers = list(pool.map(work, requests))
    finally:
        sys.setswitchinterval(interval)
    assert answers == [[ids] * 10 for ids in expected]
    assert processor.was_alone


def test_a_reader_of_the_tokenizer_is_apart_from_the_processor(loaded: dict[str, GenericModel]) -> None:
    model = pickle.loads(pickle.dumps(loaded["pixtral"]))
    model.processor.tokenizer.backend_tokenizer.enable_truncation(max_length=1)
    assert len(model.tokenizer.backend_tokenizer.encode("four").ids) == len("four") + 1


class OneAtATime:
    """A processor that notices a second caller."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer = processor.tokenizer
        self.was_alone = True
        self._processor = processor
        self._free = threading.Lock()

    def __call__(self, **arguments: Any) -> Any:
        is_alone = self._free.acquire(blocking=False)
        self.was_alone = self.was_alone and is_alone
        try:
            return self._processor(**arguments)
        finally:
            if is_alone:
                self._free.release()


def test_how_a_file_is_set_and_who_wrote_it_change_no_fingerprint(
    tmp_path: Path, loaded: dict[str, GenericModel]
) -> None:
    MAKERS["pixtral"](tmp_path)
    settings = tmp_path / "processor_config.json"
    values = json.loads(settings.read_text()) | {"transformers_version": "5.23.1"}
    settings.write_text(json.dumps(dict(reversed(values.items())), indent=7))
    assert load_generic("pixtral", tmp_path).fingerprint == loaded["pixtral"].fingerprint


def test_a_setting_changes_the_fingerprint(models: Path, tmp_path: Path, loaded: dict[str, GenericModel]) -> None:
    MAKERS["pixtral"](tmp_path)
    assert load_generic("pixtral", tmp_path).fingerprint == loaded["pixtral"].fingerprint
    edit(tmp_path / "processor_config.json", patch_size=8)
    assert load_generic("pixtral", tmp_path).fingerprint != loaded["pixtral"].fingerprint


@pytest.mark.parametrize("name", ["processor_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_damaged_directory_is_refused(tmp_path: Path, name: str, content: str | None) -> None:
    MAKERS["pixtral"](tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    assert load_refusal(tmp_path).reason == "BAD_MODEL_DIRECTORY"


def test_a_model_of_text_alone_is_refused(tmp_path: Path) -> None:
    save(byte_tokenizer(), tmp_path, model_type="llama")
    assert load_refusal(tmp_path).reason == "UNSUPPORTED_MODEL"


def test_code_in_a_model_directory_is_refused_and_never_run(tmp_path: Path) -> None:
    MAKERS["pixtral"](tmp_path)
    edit(
        tmp_path / "processor_config.json",
        processor_class="StrangeProcessor",
        auto_map={"AutoProcessor": "strange.StrangeProcessor"},
    )
    mark = tmp_path / "it-ran"
    (tmp_path / "strange.py").write_text(f"open({str(mark)!r}, 'w')\nclass StrangeProcessor: pass\n")
    error = load_refusal(tmp_path)
    assert (error.reason, mark.exists()) == ("UNSUPPORTED_MODEL", False)


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("pixtral", f"the installed transformers {version('transformers')} has the model type pixtral"),
        ("hy_v4_vl", "transformers 5.24.0 is the first release with the model type hy_v4_vl"),
        ("deepseek_vl_v2", "deepseek_vl_v2 is in no release of transformers that this version knows"),
    ],
)
@pytest.mark.parametrize("has_code", [True, False])
def test_the_refusal_says_which_release_has_the_model(
    tmp_path: Path, model_type: str, said: str, has_code: bool
) -> None:
    save(byte_tokenizer(), tmp_path, model_type=model_type)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    if has_code:
        code = {"processor_class": "StrangeProcessor", "auto_map": {"AutoProcessor": "strange.StrangeProcessor"}}
        (tmp_path / "processor_config.json").write_text(json.dumps(code))
    elif model_type == "pixtral":
        pytest.skip("without code of its own it would be loaded")
    error = load_refusal(tmp_path)
    assert error.reason == "UNSUPPORTED_MODEL"
    assert said in error.message


def test_a_release_is_told_of_no_type_that_the_installed_one_has() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    assert NEWER_MODEL_TYPES.keys().isdisjoint(CONFIG_MAPPING_NAMES)


def test_a_processor_that_would_load_another_model_is_refused(tmp_path: Path) -> None:
    MAKERS["pixtral"](tmp_path)
    other = {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": "someone/else"}
    edit(tmp_path / "processor_config.json", audio_tokenizer=other)
    assert load_refusal(tmp_path).reason == "UNSUPPORTED_MODEL"
