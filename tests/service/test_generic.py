"""A model of the generic path, served: its processor's tensors arrive under their own names."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from safetensors import safe_open

from engine_client import EngineCapabilities
from engine_client.testing import FakeEngine
from preprocessor import pipeline
from preprocessor.__main__ import main
from preprocessor.client import CallFailed
from preprocessor.models.generic import load_generic
from preprocessor.models.registry import load_model
from preprocessor.service.reading import read_spec
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.golden import oracle  # noqa: F401  # makes torchvision importable, before transformers looks for it
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import Caller, chat, image, serving
from tests.service.openai_calls import data_url, serving_openai, user
from tests.service.test_prepare import assert_same_tensors
from tests.sounds import encoded, with_sound
from tests.tiny_omni_processors import ALL_MAKERS
from tests.tiny_voxtral import save_voxtral

PHOTO = photo(200, 120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generic-models")


@pytest_asyncio.fixture(scope="module")
async def idefics(folder: Path) -> AsyncIterator[Caller]:
    ALL_MAKERS["idefics3"](folder / "idefics3")
    model = load_model(str(folder / "idefics3"))
    # In process: the oracle's torchvision is in this interpreter alone, and its classes are what is compared with.
    async with serving(model, is_in_process=True) as caller:
        yield caller


async def test_the_processor_s_tensors_equal_the_pipeline_s(idefics: Caller) -> None:
    spec = chat(image("a", PHOTO), "and", image("b", photo(90, 60, "PNG")), "?")
    expected = pipeline.prepare(idefics.server.model, read_spec(spec)[0])
    result = await idefics.prepare(spec)
    assert_same_tensors(result.tensors, dict(expected.tensors))
    assert {"input_ids", "pixel_values"} <= result.tensors.keys()
    assert [item.key for item in result.header.items] == ["a", "b"]
    assert result.header.token_count == len(result.tensors["input_ids"])


@pytest.mark.parametrize("asks", [True, False])
async def test_an_engine_that_asks_is_told_which_tokens_stand_for_which_image(folder: Path, asks: bool) -> None:
    ALL_MAKERS["gemma3"](folder / "gemma3")
    model = load_generic(str(folder / "gemma3"), folder / "gemma3")  # `load_model` would choose the fast path
    engine = FakeEngine([5], capabilities=EngineCapabilities(tells_items_apart=asks))
    spec = chat(image("a", PHOTO), "and", image("b", PHOTO))
    async with serving(model, engine, is_in_process=True) as caller:
        await caller.generate(spec, max_tokens=1)
    own = pipeline.prepare(model, read_spec(spec)[0])
    told = {"item_modality", "item_spans", "item_hash"}
    assert engine.requests[0].tensors.keys() == {*own.tensors} | (told if asks else set())


async def test_arguments_of_the_processor_reach_it(idefics: Caller) -> None:
    whole = '{"do_image_splitting": false}'
    spec = chat(image("a", PHOTO), processor_arguments_json=whole)
    expected = pipeline.prepare(idefics.server.model, read_spec(spec)[0])
    result = await idefics.prepare(spec)
    assert_same_tensors(result.tensors, dict(expected.tensors))
    split = await idefics.prepare(chat(image("a", PHOTO)))
    assert result.tensors["pixel_values"].shape[1] == 1 < split.tensors["pixel_values"].shape[1]


async def test_arguments_that_are_not_accepted_are_refused_before_the_upload(idefics: Caller) -> None:
    medium = pb.Media(key="a", modality=pb.MODALITY_IMAGE, chunked=pb.Chunked())
    with pytest.raises(CallFailed, match="'device' is not accepted") as caught:
        await idefics.prepare(chat(medium, processor_arguments_json='{"device": "cuda"}'))
    assert (caught.value.reason, caught.value.fields) == ("INVALID_PROCESSOR_ARGUMENTS", ("processor_arguments_json",))


async def test_the_model_says_that_it_takes_the_generic_path(idefics: Caller) -> None:
    answer = await idefics.stub.GetModel(pb.GetModelRequest())
    assert (answer.path, answer.family) == (pb.PREPROCESSING_PATH_GENERIC, "Idefics3Processor")
    assert list(answer.modalities) == [pb.MODALITY_IMAGE]


async def test_a_modality_it_does_not_take_is_refused_before_the_upload(idefics: Caller) -> None:
    spec = chat(pb.Media(key="v", modality=pb.MODALITY_VIDEO, chunked=pb.Chunked()))
    with pytest.raises(CallFailed) as caught:
        await idefics.prepare(spec)
    assert caught.value.reason == "UNSUPPORTED_MODALITY"


async def test_a_file_with_another_digest_than_stated_is_refused(idefics: Caller) -> None:
    with pytest.raises(CallFailed) as caught:
        await idefics.prepare(chat(image("a", PHOTO, content_sha256=bytes(32))))
    assert (caught.value.reason, caught.value.fields) == ("DIGEST_MISMATCH", ("media[0].content_sha256",))


async def test_uint8_pixels_are_refused(idefics: Caller) -> None:
    with pytest.raises(CallFailed) as caught:
        await idefics.prepare(chat(image("a", PHOTO), pixel_form=pb.PIXEL_FORM_UINT8))
    assert caught.value.reason == "UNSUPPORTED_PIXEL_FORM"


@pytest.mark.parametrize("form", [(), ("--dtype", "bf16")], ids=["as the processor makes them", "bf16"])
async def test_the_command_line_takes_such_a_model_like_any_other(
    idefics: Caller, folder: Path, form: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "photo.jpg").write_bytes(PHOTO)
    output = folder / "tensors.safetensors"
    local = ("prepare", "--local", "--model", str(folder / "idefics3"), "--image", str(folder / "photo.jpg"))
    status = await asyncio.to_thread(main, [*local, "--text", "Hi", "--output", str(output), *form])
    assert (status, capsys.readouterr().err) == (0, "")
    with safe_open(output, "np") as tensors:
        assert tensors.get_slice("pixel_values").get_dtype() == ("BF16" if form else "F32")


async def test_the_command_line_takes_arguments_of_the_processor(
    idefics: Caller, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "photo.jpg").write_bytes(PHOTO)
    asked = ["prepare", "--local", "--model", str(folder / "idefics3"), "--image", str(folder / "photo.jpg")]
    assert await asyncio.to_thread(main, [*asked, "--processor-arguments", '{"device": "cuda"}']) == 1
    assert "INVALID_PROCESSOR_ARGUMENTS" in capsys.readouterr().err


async def test_the_command_line_lists_the_pixel_forms(
    idefics: Caller, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "photo.jpg").write_bytes(PHOTO)
    asked = ["prepare", "--local", "--model", str(folder / "idefics3"), "--image", str(folder / "photo.jpg")]
    assert await asyncio.to_thread(main, [*asked, "--dtype", "uint8"]) == 1
    error = capsys.readouterr().err
    assert "UNSUPPORTED_PIXEL_FORM" in error and "BF16, FP16 or FP32" in error


async def test_a_model_of_sound_takes_it_from_any_file(folder: Path) -> None:
    ALL_MAKERS["qwen2_audio"](folder / "qwen2_audio")
    async with serving(load_model(str(folder / "qwen2_audio"))) as caller:
        sound = pb.Media(key="sound", modality=pb.MODALITY_AUDIO, inline_data=encoded("mp4", "aac", seconds=0.5))
        result = await caller.prepare(chat(sound, "What is heard?"))
    assert "input_features" in result.tensors
    assert result.header.items[0].source.audio.duration_seconds == pytest.approx(0.5, abs=0.1)


async def test_a_video_and_its_sound_are_sent_once(folder: Path) -> None:
    ALL_MAKERS["gemma4"](folder / "gemma4")
    clip = with_sound(moving_shapes_clip(seconds=1, width=64, height=64), encoded("mp4", "aac"))
    film = pb.Media(key="film", modality=pb.MODALITY_VIDEO, inline_data=clip)
    sound = pb.Media(key="sound", modality=pb.MODALITY_AUDIO, same_file_as="film")
    async with serving(load_model(str(folder / "gemma4"))) as caller:
        result = await caller.prepare(chat(film, sound, "What is heard?"))
    assert {"pixel_values_videos", "input_features"} <= result.tensors.keys()
    assert result.header.items[1].source.audio.duration_seconds == pytest.approx(1, abs=0.1)


async def test_each_prompt_of_a_model_that_takes_sound_goes_its_own_way(folder: Path) -> None:
    """What is known of the video from the first prompt does not replace its file in the second."""
    ALL_MAKERS["qwen3_omni"](folder / "qwen3_omni")
    clip = with_sound(moving_shapes_clip(seconds=1, width=64, height=64), encoded("mp4", "aac"))
    film = pb.Media(key="film", modality=pb.MODALITY_VIDEO, inline_data=clip)
    sound = pb.Media(key="sound", modality=pb.MODALITY_AUDIO, same_file_as="film")
    model = load_model(str(folder / "qwen3_omni"))
    async with serving(model) as caller:
        answer = await caller.stub.GetModel(pb.GetModelRequest())
        alone, again = [await caller.prepare(chat(film, "What is seen?")) for _ in range(2)]
        beside = await caller.prepare(chat(film, sound, "What is heard?"))
    assert (answer.path, answer.family) == (pb.PREPROCESSING_PATH_FAST, "qwen3_omni")
    assert pb.MODALITY_AUDIO in answer.modalities
    assert alone.tensors["pixel_patches"].tobytes() == again.tensors["pixel_patches"].tobytes()
    assert {"pixel_values_videos", "input_features"} <= beside.tensors.keys()
    frames = [list(result.header.items[0].frame_indices) for result in (alone, beside)]
    assert frames[0] == frames[1]


async def test_a_sandboxed_worker_draws_with_the_model_s_font(folder: Path) -> None:
    ALL_MAKERS["ernie4_5_vl"](folder / "ernie4_5_vl")
    clip = moving_shapes_clip(seconds=1, width=64, height=64)
    film = pb.Media(key="film", modality=pb.MODALITY_VIDEO, inline_data=clip)
    model = load_model(str(folder / "ernie4_5_vl"))
    spec = chat(film, "What is seen?")
    async with serving(model) as caller:
        result = await caller.prepare(spec)
    assert_same_tensors(result.tensors, dict(pipeline.prepare(model, read_spec(spec)[0]).tensors))


async def test_a_sandboxed_worker_writes_prompts_by_mistral_common(folder: Path) -> None:
    pytest.importorskip("mistral_common")
    save_voxtral(folder / "voxtral")
    model = load_model(str(folder / "voxtral"))
    sound = pb.Media(key="sound", modality=pb.MODALITY_AUDIO, inline_data=encoded("mp4", "aac"))
    spec = chat(sound, "What is heard?")
    async with serving(model) as caller:
        result = await caller.prepare(spec)
    assert_same_tensors(result.tensors, dict(pipeline.prepare(model, read_spec(spec)[0]).tensors))


async def test_openai_s_input_audio_is_the_same_prompt(folder: Path) -> None:
    ALL_MAKERS["qwen2_audio"](folder / "sound")
    data, engine = encoded("mp4", "aac", seconds=0.5), FakeEngine([1])
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}
    async with serving_openai(load_model(str(folder / "sound")), engine, is_in_process=True) as (caller, client):
        for one in (part, {"type": "audio_url", "audio_url": {"url": data_url(data, "audio/mp4")}}):
            await client.chat.completions.create(model="", messages=user(one, "What is heard?"))  # type: ignore[arg-type]
        await caller.generate(chat(pb.Media(key="a", modality=pb.MODALITY_AUDIO, inline_data=data), "What is heard?"))
    first, second, expected = (request.tensors for request in engine.requests)
    assert first.keys() == second.keys() == expected.keys()
    assert first["input_ids"].tolist() == second["input_ids"].tolist() == expected["input_ids"].tolist()
