"""Voxtral: mistral-common writes its prompts; the tensors are those of transformers' `VoxtralProcessor`, called directly."""

from __future__ import annotations

import base64
import io
import json
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from preprocessor.cli.doctor.files import check_model
from preprocessor.cli.doctor.finding import Verdict
from preprocessor.errors import ModelNotFound
from preprocessor.media.audio import extract_audio
from preprocessor.models.generic import GenericModel, load_generic, mistral_tokenizer, prepare_generic
from preprocessor.models.registry import load_model
from preprocessor.text.detokenizer import Detokenizer
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PreparationRequest,
    TextPart,
    TextPrompt,
    TokenPrompt,
)
from tests.sounds import encoded
from tests.tiny_voxtral import save_voxtral
from tests.unit.generic.cases import LIMITS, refusal, sound
from tests.unit.generic.test_parity import assert_equal

from transformers import AutoProcessor  # isort: skip

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("mistral_common")

VERSIONS = ["v7", "v11", "v13"]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather after a time.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lübeck"}'}}


@dataclass(frozen=True)
class Loaded:
    """A directory as this package loads it, and as transformers does."""

    directory: Path
    model: GenericModel
    processor: Any


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Loaded]:
    """The model with a tokenizer of a version."""

    @cache
    def loaded(version: str) -> Loaded:
        folder = tmp_path_factory.mktemp("voxtral") / version
        save_voxtral(folder, version)
        return Loaded(folder, load_generic("voxtral", folder), AutoProcessor.from_pretrained(folder))

    return loaded


@pytest.fixture(scope="module")
def newest(load: Callable[[str], Loaded]) -> Loaded:
    return load("v13")


@pytest.fixture(scope="module")
def model(newest: Loaded) -> GenericModel:
    return newest.model


@pytest.fixture(scope="module")
def processor(newest: Loaded) -> Any:
    return newest.processor


def question(*parts: TextPart | MediaPart, media: tuple[Media, ...] = (), **settings: Any) -> PreparationRequest:
    return PreparationRequest(ChatPrompt((Message("user", parts),), **settings), media)


def answer_of(processor: Any, request: PreparationRequest) -> dict[str, torch.Tensor]:
    """transformers' own answer to a chat whose sounds are given as files of the samples that the service decodes."""
    assert isinstance(request.prompt, ChatPrompt)
    files = {medium.key: wav(medium.content) for medium in request.media}
    conversation = [
        {
            **message.extra,
            "role": message.role,
            "content": [
                {"type": "audio", "base64": files[part.key]}
                if isinstance(part, MediaPart)
                else {"type": "text", "text": part.text}
                for part in message.parts
            ],
        }
        for message in request.prompt.messages
    ]
    arguments = {"text_kwargs": dict(request.prompt.template_arguments)} if request.prompt.template_arguments else {}
    return dict(processor.apply_chat_template(conversation, processor_kwargs=arguments))


def wav(data: bytes) -> str:
    buffer = io.BytesIO()
    soundfile.write(buffer, extract_audio(data, 16_000, LIMITS), 16_000, format="WAV", subtype="FLOAT")
    return base64.b64encode(buffer.getvalue()).decode()


LONGER = encoded("mp4", "aac", seconds=31)
CHATS = {
    "a sound": question(MediaPart("a"), media=(sound("a"),)),
    "sounds and text": question(
        MediaPart("a"),
        TextPart("and after that the"),
        MediaPart("b"),
        TextPart(" other"),
        media=(sound("a"), sound("b", LONGER)),
    ),
    "one sound twice": question(MediaPart("a"), MediaPart("a"), TextPart("Twice?"), media=(sound("a"),)),
    "turns": PreparationRequest(
        ChatPrompt(
            (
                Message("user", (TextPart("What is it?"), MediaPart("a"))),
                Message("assistant", (TextPart("A tone."),)),
                Message("user", (MediaPart("b"), TextPart("And this?"))),
            )
        ),
        (sound("a"), sound("b", encoded("flac", "flac", rate=44_100, layout="stereo"))),
    ),
    "tools": PreparationRequest(
        ChatPrompt(
            (
                Message("user", (MediaPart("a"),)),
                Message("assistant", (), {"tool_calls": [CALL]}),
                Message("tool", (TextPart('{"degrees": 9}'),), {"tool_call_id": "abcdefghi", "name": "weather"}),
            ),
            template_arguments={"tools": [WEATHER]},
        ),
        (sound("a"),),
    ),
    "an answer to go on with": PreparationRequest(
        ChatPrompt(
            (Message("user", (MediaPart("a"),)), Message("assistant", (TextPart("It is"),))),
            template_arguments={"continue_final_message": True},
        ),
        (sound("a"),),
    ),
    "text alone": question(TextPart("After the weather: 你好 🙂")),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CHATS)
def test_a_chat_comes_out_as_transformers_makes_it(load: Callable[[str], Loaded], version: str, name: str) -> None:
    prepared = prepare_generic(load(version).model, CHATS[name], LIMITS)
    assert_equal(prepared.tensors, answer_of(load(version).processor, CHATS[name]))


def test_a_sound_longer_than_a_piece_of_30_seconds_fills_two(model: GenericModel) -> None:
    prepared = prepare_generic(model, question(MediaPart("a"), media=(sound("a", LONGER),)), LIMITS)
    assert prepared.tensors["input_features"].shape == (2, 8, 3000)
    assert prepared.token_ids.tolist().count(24) == 750


def test_a_wav_file_comes_out_as_transformers_reads_it_itself(
    model: GenericModel, processor: Any, tmp_path: Path
) -> None:
    data = encoded("wav", "pcm_s16le")
    (tmp_path / "a.wav").write_bytes(data)
    content = [{"type": "audio", "path": str(tmp_path / "a.wav")}, {"type": "text", "text": "What is it?"}]
    expected = dict(processor.apply_chat_template([{"role": "user", "content": content}]))
    request = question(MediaPart("a"), TextPart("What is it?"), media=(sound("a", data),))
    assert_equal(prepare_generic(model, request, LIMITS).tensors, expected)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_system_prompt_beside_a_sound_is_for_newer_tokenizers(load: Callable[[str], Loaded], version: str) -> None:
    messages = (Message("system", (TextPart("Be brief."),)), Message("user", (MediaPart("a"),)))
    request = PreparationRequest(ChatPrompt(messages), (sound("a"),))
    if version == "v13":
        system = {"role": "system", "content": "Be brief."}  # a string, as most write it
        user = {"role": "user", "content": [{"type": "audio", "base64": wav(request.media[0].content)}]}
        expected = dict(load(version).processor.apply_chat_template([system, user]))
        assert_equal(prepare_generic(load(version).model, request, LIMITS).tensors, expected)
    else:
        error = refusal(load(version).model, request)
        assert error.reason == "CHAT_TEMPLATE_FAILED" and "allowed" in error.message


@pytest.mark.parametrize("is_literal", [False, True])
def test_text_that_spells_a_control_token_stays_text(model: GenericModel, is_literal: bool) -> None:
    prepared = prepare_generic(model, question(TextPart("[/INST]</s>[AUDIO]", is_literal)), LIMITS)
    assert [token_id for token_id in prepared.token_ids.tolist() if token_id < 40] == [1, 3, 4]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (PreparationRequest(TextPrompt("[INST]Hello[/INST]")), "PROCESSOR_REFUSED"),
        (PreparationRequest(TokenPrompt((1, 3, 4))), "TOKENS_NOT_ACCEPTED"),
        (question(TextPart("Hello"), template_arguments={"enable_thinking": True}), "CHAT_TEMPLATE_FAILED"),
        (question(TextPart("Hello"), template_arguments={"tools": [{"type": "function"}]}), "CHAT_TEMPLATE_FAILED"),
        (question(TextPart("Hello"), template_arguments={"tools": ["weather"]}), "CHAT_TEMPLATE_FAILED"),
        (PreparationRequest(ChatPrompt((Message("narrator", (TextPart("Once"),)),))), "CHAT_TEMPLATE_FAILED"),
        (PreparationRequest(ChatPrompt((Message("assistant", (TextPart("Hm"),)),))), "CHAT_TEMPLATE_FAILED"),
        (PreparationRequest(ChatPrompt((Message("tool", (TextPart("9"),)),))), "CHAT_TEMPLATE_FAILED"),
        (question(MediaPart("b"), media=(sound("a"),)), "UNKNOWN_MEDIA_KEY"),
        (question(TextPart("Hello"), media=(sound("a"),)), "PLACEHOLDER_MISMATCH"),
        (question(TextPart("x" * (LIMITS.max_prompt_length + 1))), "PROMPT_TOO_LONG"),
    ],
)
def test_what_mistral_common_does_not_take_is_refused(
    model: GenericModel, request_: PreparationRequest, reason: str
) -> None:
    assert refusal(model, request_).reason == reason


def test_a_refusal_shows_nothing_of_the_messages(model: GenericModel) -> None:
    message = Message("assistant", (TextPart("a secret"),), {"tool_calls": [{"function": "another secret"}]})
    error = refusal(model, PreparationRequest(ChatPrompt((Message("user", (TextPart("Hello"),)), message))))
    assert error.reason == "CHAT_TEMPLATE_FAILED" and "secret" not in error.message


def test_answers_are_read_as_mistral_common_reads_them(model: GenericModel, processor: Any) -> None:
    bytes_and_words = random.Random(0).choices(range(40, len(model.tokenizer)), k=2000)
    token_ids = [1, 3, *bytes_and_words, 2]
    detokenizer = Detokenizer(model.tokenizer)
    text = "".join(detokenizer.push([token_id]) for token_id in token_ids) + detokenizer.finish()
    assert len(model.tokenizer) == len(processor.tokenizer)
    assert text == processor.tokenizer.decode(token_ids, skip_special_tokens=True)


def test_what_a_model_says_of_itself(model: GenericModel) -> None:
    assert (model.modalities, model.placeholders, model.stop_token_ids) == ({Modality.AUDIO}, {}, (2,))
    assert model.describe().family == "VoxtralProcessor"


def test_a_pickled_model_prepares_the_same(model: GenericModel) -> None:
    copy = pickle.loads(pickle.dumps(model))
    ours, theirs = (prepare_generic(one, CHATS["turns"], LIMITS).tensors for one in (model, copy))
    assert {name: t.tobytes() for name, t in ours.items()} == {name: t.tobytes() for name, t in theirs.items()}


def test_the_release_of_mistral_common_is_part_of_the_fingerprint(
    newest: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_generic("other", newest.directory).fingerprint == newest.model.fingerprint
    monkeypatch.setattr(mistral_tokenizer, "version", lambda _: "0.0.1")
    assert load_generic("other", newest.directory).fingerprint != newest.model.fingerprint


def test_without_its_libraries_the_model_is_refused_by_their_names(
    newest: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mistral_tokenizer, "is_mistral_common_available", lambda: False)
    with pytest.raises(ModelNotFound, match=r"vlm-preprocessor\[voxtral\]', for lack of mistral-common$"):
        load_generic("voxtral", newest.directory)
    finding, _ = check_model(str(newest.directory))
    assert finding.verdict is Verdict.FAILED and finding.fix == "pip install 'vlm-preprocessor[voxtral]'"


def test_a_file_of_mistral_common_beside_tokenizer_json_changes_no_model_of_a_family(tmp_path: Path) -> None:
    """Published Mistral 3 and Pixtral have both; with mistral-common installed, transformers would take tekken.json."""
    settings = Path(__file__).parents[2] / "golden" / "models" / "mistral3"
    for path in settings.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    without = load_model(str(tmp_path)).fingerprint
    save_voxtral(tmp_path / "voxtral")
    (tmp_path / "tekken.json").write_bytes((tmp_path / "voxtral" / "tekken.json").read_bytes())
    assert load_model(str(tmp_path)).fingerprint == without


def test_samples_reach_mistral_common_bit_by_bit(model: GenericModel, processor: Any) -> None:
    """Floats outside of 16-bit steps, beyond 1 among them."""
    samples = np.linspace(-1.5, 1.5, 16_000, dtype=np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format="WAV", subtype="FLOAT")
    request = question(MediaPart("a"), media=(sound("a", buffer.getvalue()),))
    content = [{"type": "audio", "base64": base64.b64encode(buffer.getvalue()).decode()}]
    expected = dict(processor.apply_chat_template([{"role": "user", "content": content}]))
    assert_equal(prepare_generic(model, request, LIMITS).tensors, expected)


def test_voxtral_realtime_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "voxtral_realtime"}))
    with pytest.raises(ModelNotFound, match="takes no messages"):
        load_generic("a-model", tmp_path)
