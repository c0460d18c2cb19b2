"""Sounds alone, beside pictures, and as the sound of a video, as transformers makes them of the same samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from preprocessor.media.audio import extract_audio
from preprocessor.models.generic import GenericModel, prepare_generic
from preprocessor.types.request import ChatPrompt, Media, MediaPart, Modality, PreparationRequest, Sampling
from tests.sounds import encoded
from tests.unit.generic.cases import LIMITS, chat, clip, image, refusal, sound, sounding_clip, video
from tests.unit.generic.test_parity import all_frames, answer_of, assert_equal, content_of, frame_indices, metadata

SOUND_MODELS = ["qwen2_audio", "qwen2_5_omni", "qwen3_omni", "gemma3n", "gemma4", "phi4_multimodal", "nemotron_h_omni"]
OMNI_MODELS = ["qwen2_5_omni", "qwen3_omni"]
LONGER = encoded("mp4", "aac", seconds=0.8)
SAMPLED_FPS = 4 / 1.5  # of a clip of 1.5 s


@pytest.mark.parametrize("name", SOUND_MODELS)
def test_sounds_alone(loaded: dict[str, GenericModel], processors: dict[str, Any], name: str) -> None:
    request = chat(sound("a"), sound("b", LONGER))
    assert_equal(prepare_generic(loaded[name], request, LIMITS).tensors, answer_of(processors[name], request))


@pytest.mark.parametrize("name", [name for name in SOUND_MODELS if name != "qwen2_audio"])
def test_sounds_beside_images(loaded: dict[str, GenericModel], processors: dict[str, Any], name: str) -> None:
    request = chat(image("i"), sound("a"), image("j"), sound("b", LONGER))
    assert_equal(prepare_generic(loaded[name], request, LIMITS).tensors, answer_of(processors[name], request))


@pytest.mark.parametrize("name", [*OMNI_MODELS, "gemma4"])
def test_the_sound_of_a_video_as_an_item_of_its_own(
    loaded: dict[str, GenericModel], processors: dict[str, Any], name: str
) -> None:
    request = chat(video("v", sounding_clip()), sound("a", sounding_clip()))
    of_videos: dict[str, Any] = {"do_sample_frames": False, "video_metadata": [metadata(clip())]}
    if name in OMNI_MODELS:
        of_videos["fps"] = SAMPLED_FPS
    expected = answer_of(processors[name], request, videos_kwargs=of_videos)
    assert_equal(prepare_generic(loaded[name], request, LIMITS).tensors, expected)


@pytest.mark.parametrize("name", OMNI_MODELS)
@pytest.mark.parametrize(
    "media",
    [
        [video("v", sounding_clip())],
        [video("v")],
        [video("v", sounding_clip()), sound("a"), image("i")],
        [sound("a"), video("silent"), video("v", sounding_clip()), sound("b", LONGER)],
    ],
    ids=["one", "silent", "beside others", "among others"],
)
def test_the_sound_of_a_video_between_its_frames(
    loaded: dict[str, GenericModel], processors: dict[str, Any], name: str, media: list[Media]
) -> None:
    request = chat(*media, processor_arguments={"load_audio_from_video": True})
    prepared = prepare_generic(loaded[name], request, LIMITS)
    assert_equal(prepared.tensors, interleaved_answer_of(processors[name], request))
    assert [item.key for item in prepared.items] == [medium.key for medium in media]


@pytest.mark.parametrize("name", SOUND_MODELS)
def test_a_sound_of_a_hundredth_of_a_second_is_as_in_transformers_or_refused(
    loaded: dict[str, GenericModel], processors: dict[str, Any], name: str
) -> None:
    """transformers fails by RuntimeError where a sound is shorter than the window of its features."""
    request = chat(sound("a", encoded("wav", "pcm_s16le", seconds=0.01)))
    try:
        expected = answer_of(processors[name], request)
    except RuntimeError:
        error = refusal(loaded[name], request)
        assert (error.reason, "0.0100 s" in error.message) == ("PROCESSOR_REFUSED", True)
        assert error.trace
    else:
        assert_equal(prepare_generic(loaded[name], request, LIMITS).tensors, expected)


def interleaved_answer_of(processor: Any, request: PreparationRequest) -> dict[str, torch.Tensor]:
    """transformers' own, called with the samples of each video: its chat template call would read files by torchcodec."""
    images: list[Any] = []
    videos: list[Any] = []
    sounds: list[Any] = []
    slots: list[int | None] = []
    for medium in request.media:
        if medium.modality is Modality.IMAGE:
            images.append(content_of(processor, medium)["image"])
        elif medium.modality is Modality.AUDIO:
            sounds.append(content_of(processor, medium)["audio"])
            slots.append(None)
        else:
            videos.append(all_frames(medium.content)[frame_indices(medium.content)])
            if medium.key != "silent" and medium.content != clip():
                sounds.append(extract_audio(medium.content, processor.feature_extractor.sampling_rate, LIMITS))
                slots.append(len(videos) - 1)
    assert isinstance(request.prompt, ChatPrompt)
    conversation = [
        {
            "role": message.role,
            "content": [
                {"type": next(m.modality.name.lower() for m in request.media if m.key == part.key)}
                if isinstance(part, MediaPart)
                else {"type": "text", "text": part.text}
                for part in message.parts
            ],
        }
        for message in request.prompt.messages
    ]
    frames = [metadata(medium.content) for medium in request.media if medium.modality is Modality.VIDEO]
    output = processor(
        text=processor.apply_chat_template(conversation, add_generation_prompt=True),
        images=images or None,
        videos=videos,
        audio=sounds or None,
        audio_from_video_indices=slots,
        load_audio_from_video=True,
        videos_kwargs={"do_sample_frames": False, "video_metadata": frames, "fps": SAMPLED_FPS},
        add_special_tokens=False,
        return_tensors="pt",
    )
    return dict(output)


def test_the_sound_changes_the_prompt_and_the_digest_of_its_video(loaded: dict[str, GenericModel]) -> None:
    with_sound, without = (
        prepare_generic(loaded["qwen3_omni"], chat(video("v", sounding_clip()), processor_arguments=arguments), LIMITS)
        for arguments in ({"load_audio_from_video": True}, {})
    )
    assert len(with_sound.token_ids) > len(without.token_ids)
    assert with_sound.items[0].digest != without.items[0].digest


@pytest.mark.parametrize(
    "arguments", [{"use_audio_in_video": True}, {"videos_kwargs": {"use_audio_in_video": True}}], ids=["own", "videos"]
)
def test_the_older_name_means_the_same(loaded: dict[str, GenericModel], arguments: dict[str, Any]) -> None:
    new, old = (
        prepare_generic(loaded["qwen2_5_omni"], chat(video("v", sounding_clip()), processor_arguments=given), LIMITS)
        for given in ({"load_audio_from_video": True}, arguments)
    )
    assert old.token_ids.tolist() == new.token_ids.tolist()


def test_the_sound_of_a_part_of_a_video_is_refused(loaded: dict[str, GenericModel]) -> None:
    medium = video("v", sounding_clip(), sampling=Sampling(end_seconds=1.0))
    error = refusal(loaded["qwen3_omni"], chat(medium, processor_arguments={"load_audio_from_video": True}))
    assert (error.reason, error.metadata["media_key"]) == ("SAMPLING_CONFLICT", "v")


def test_a_model_that_puts_no_sound_between_frames_refuses_it(loaded: dict[str, GenericModel]) -> None:
    request = chat(video("v", sounding_clip()), processor_arguments={"load_audio_from_video": True})
    assert refusal(loaded["gemma4"], request).reason == "INVALID_PROCESSOR_ARGUMENTS"
