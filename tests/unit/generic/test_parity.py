"""What leaves the generic path equals transformers' own `apply_chat_template` with the same pixels."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch

from preprocessor.media.audio import extract_audio
from preprocessor.models.generic import GenericModel, load_generic, prepare_generic
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PreparationRequest,
    Sampling,
    TextPart,
    TextPrompt,
)
from tests.media import photo
from tests.tiny_omni_processors import ALL_MAKERS
from tests.unit.generic.cases import LIMITS, chat, clip, image, refusal, sound, video

from transformers import AutoProcessor  # isort: skip
from transformers.image_utils import load_image  # isort: skip
from transformers.video_utils import VideoMetadata  # isort: skip

IMAGE_MODELS = [name for name in ALL_MAKERS if name != "qwen2_audio"]
# Seconds of the clips of one request; some processors take clips of different frame counts together.
VIDEO_LENGTHS = {
    "llava_onevision": (1.5, 1.8),
    "internvl": (1.5, 1.8),
    "glm46v": (1.5, 3),
    "gemma4": (1.5, 1.8),
    "video_llama_3": (1.5, 3),
    "kimi_k25": (1.5, 3),
    "ernie4_5_vl": (1.5, 3),
}


def answer_of(
    processor: Any, request: PreparationRequest, *, load_sound: bool = False, **arguments: Any
) -> dict[str, torch.Tensor]:
    """transformers' own answer to a chat whose media need no sampling of ours.

    Args:
        load_sound: As `load_audio_from_video`.
        arguments: As `processor_kwargs`.
    """
    assert isinstance(request.prompt, ChatPrompt)
    contents = {medium.key: content_of(processor, medium) for medium in request.media}
    conversation = [
        {
            "role": message.role,
            "content": [
                contents[part.key] if isinstance(part, MediaPart) else {"type": "text", "text": part.text}
                for part in message.parts
            ],
        }
        for message in request.prompt.messages
    ]
    output = processor.apply_chat_template(
        conversation,
        chat_template=processor.chat_template or processor.tokenizer.chat_template,  # Phi-4's processor leaves it there
        load_audio_from_video=load_sound,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs=arguments,
    )
    return dict(output)


def content_of(processor: Any, medium: Media) -> dict[str, Any]:
    if medium.modality is Modality.IMAGE:
        return {"type": "image", "image": load_image("data:image/any;base64," + base64.b64encode(medium.data).decode())}
    if medium.modality is Modality.VIDEO:
        return {"type": "video", "video": all_frames(medium.content)[frame_indices(medium.content)]}
    rate = processor._audio_processor.sampling_rate
    return {"type": "audio", "audio": extract_audio(medium.content, rate, LIMITS)}


def all_frames(data: bytes) -> npt.NDArray[Any]:
    with av.open(io.BytesIO(data), "r") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def frame_indices(data: bytes) -> npt.NDArray[np.int64]:
    """2 a second of 10, at least 4, from first to last."""
    total = len(all_frames(data))
    return np.linspace(0, total - 1, max(4, int(total / 10 * 2))).round().astype(np.int64)


def metadata(data: bytes) -> VideoMetadata:
    total = len(all_frames(data))
    return VideoMetadata(
        total_num_frames=total, fps=10.0, duration=total / 10, frames_indices=frame_indices(data).tolist()
    )


def assert_equal(tensors: Any, expected: dict[str, torch.Tensor]) -> None:
    """Same names; same dtypes, shapes and bits, but for the text's batch axis, the ids' int32 and booleans as uint8."""
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        array = tensor.numpy()
        if name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
            array = array[0]
        if name == "input_ids":
            array = array.astype(np.int32)
        if array.dtype == bool:
            array = array.view(np.uint8)
        assert (tensors[name].dtype, tensors[name].shape) == (array.dtype, array.shape), name
        assert tensors[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("name", IMAGE_MODELS)
@pytest.mark.parametrize("sizes", [[(90, 60)], [(60, 90), (64, 64), (31, 200)]], ids=["one", "three"])
def test_images_come_out_as_transformers_makes_them(
    loaded: dict[str, GenericModel], processors: dict[str, Any], name: str, sizes: list[tuple[int, int]]
) -> None:
    request = chat(*[image(f"i{n}", photo(*size, "PNG", seed=n)) for n, size in enumerate(sizes)])
    prepared = prepare_generic(loaded[name], request, LIMITS)
    assert_equal(prepared.tensors, answer_of(processors[name], request))


@pytest.mark.parametrize(
    "data",
    [photo(90, 60, "JPEG", orientation=6), photo(90, 60, "PNG", mode="RGBA"), photo(90, 60, "GIF", mode="P")],
    ids=["turned", "see-through", "palette"],
)
def test_image_files_are_read_as_transformers_reads_them(
    loaded: dict[str, GenericModel], processors: dict[str, Any], data: bytes
) -> None:
    request = chat(image("i", data))
    assert_equal(prepare_generic(loaded["pixtral"], request, LIMITS).tensors, answer_of(processors["pixtral"], request))


@pytest.mark.parametrize("name", list(ALL_MAKERS))
def test_text_alone_comes_out_as_transformers_makes_it(
    loaded: dict[str, GenericModel], processors: dict[str, Any], name: str
) -> None:
    assert_equal(prepare_generic(loaded[name], chat(), LIMITS).tensors, answer_of(processors[name], chat()))


@pytest.mark.parametrize("name", list(VIDEO_LENGTHS))
def test_videos_come_out_as_transformers_makes_them_of_the_same_frames(
    loaded: dict[str, GenericModel], processors: dict[str, Any], name: str
) -> None:
    request = chat(*[video(f"v{seconds}", clip(seconds)) for seconds in VIDEO_LENGTHS[name]])
    frames = [metadata(medium.content) for medium in request.media]
    expected = answer_of(processors[name], request, videos_kwargs={"do_sample_frames": False, "video_metadata": frames})
    assert_equal(prepare_generic(loaded[name], request, LIMITS).tensors, expected)


def test_the_only_video_of_nemotron_comes_out_as_transformers_makes_it(
    loaded: dict[str, GenericModel], processors: dict[str, Any]
) -> None:
    """Its processor takes the metadata of one video, without a list around it."""
    request = chat(video("v"), image("i"))
    frames = {"do_sample_frames": False, "video_metadata": metadata(clip())}
    expected = answer_of(processors["nemotron_h_omni"], request, videos_kwargs=frames)
    assert_equal(prepare_generic(loaded["nemotron_h_omni"], request, LIMITS).tensors, expected)
    assert refusal(loaded["nemotron_h_omni"], chat(video("v"), video("w"))).reason == "PROCESSOR_REFUSED"


@pytest.fixture(scope="module")
def unsampled(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose files turn off the sampling that its class does."""
    directory = tmp_path_factory.mktemp("unsampled") / "glm46v"
    shutil.copytree(models / "glm46v", directory)
    path = directory / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["video_processor"]["do_sample_frames"] = False
    path.write_text(json.dumps(settings))
    return directory


def test_a_model_that_does_not_sample_gets_every_frame(unsampled: Path) -> None:
    processor, frames = AutoProcessor.from_pretrained(unsampled), all_frames(clip())
    whole = VideoMetadata(total_num_frames=len(frames), fps=10.0, frames_indices=list(range(len(frames))))
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What?"}]}],
        add_generation_prompt=True,
    )
    expected = processor(
        text=text, videos=[frames], video_metadata=[whole], add_special_tokens=False, return_tensors="pt"
    )
    messages = (Message("user", (MediaPart("v"), TextPart("What?"))),)
    prepared = prepare_generic(
        load_generic("unsampled", unsampled), PreparationRequest(ChatPrompt(messages), (video("v"),)), LIMITS
    )
    assert_equal(prepared.tensors, dict(expected))


def test_a_caller_may_sample_for_a_model_that_does_not(unsampled: Path, loaded: dict[str, GenericModel]) -> None:
    model = load_generic("unsampled", unsampled)
    for sampling in (Sampling(fps=4), Sampling(frame_count=3)):
        request = chat(video("v", sampling=sampling))
        theirs, ours = (prepare_generic(one, request, LIMITS).token_ids.tolist() for one in (loaded["glm46v"], model))
        assert ours == theirs


def test_a_class_that_never_samples_by_default_is_sampled_all_the_same(loaded: dict[str, GenericModel]) -> None:
    """transformers writes its `do_sample_frames = False` into every file: no statement of the model."""
    assert loaded["internvl"].processor.video_processor.do_sample_frames is False
    (item,) = prepare_generic(loaded["internvl"], chat(video("v")), LIMITS).items
    assert item.frames is not None and len(item.frames.indices) == 4


def test_images_and_videos_mix(loaded: dict[str, GenericModel], processors: dict[str, Any]) -> None:
    request = chat(image("i"), video("v"), image("j"))
    frames = {"do_sample_frames": False, "video_metadata": [metadata(clip())]}
    expected = answer_of(processors["glm46v"], request, videos_kwargs=frames)
    prepared = prepare_generic(loaded["glm46v"], request, LIMITS)
    assert_equal(prepared.tensors, expected)
    assert [item.key for item in prepared.items] == ["i", "v", "j"]


def test_sounds_come_out_as_transformers_makes_them(
    loaded: dict[str, GenericModel], processors: dict[str, Any]
) -> None:
    request = chat(sound("a"), sound("b"))
    expected = answer_of(processors["qwen2_audio"], request)
    assert_equal(prepare_generic(loaded["qwen2_audio"], request, LIMITS).tensors, expected)


def test_images_videos_and_sounds_mix(loaded: dict[str, GenericModel], processors: dict[str, Any]) -> None:
    request = chat(sound("a"), image("i"), video("v"))
    frames = {"do_sample_frames": False, "video_metadata": [metadata(clip())], "fps": 4 / 1.5}
    expected = answer_of(processors["qwen2_5_omni"], request, videos_kwargs=frames)
    assert "video_second_per_grid" in expected
    assert_equal(prepare_generic(loaded["qwen2_5_omni"], request, LIMITS).tensors, expected)


def test_clips_of_two_rates_are_refused_where_the_processor_takes_one(loaded: dict[str, GenericModel]) -> None:
    media = (video("v", sampling=Sampling(frame_count=4)), video("w", sampling=Sampling(frame_count=8)))
    assert refusal(loaded["qwen2_5_omni"], chat(*media)).reason == "SAMPLING_CONFLICT"


def test_a_pixel_budget_reaches_a_processor_that_counts_pixels(
    loaded: dict[str, GenericModel], processors: dict[str, Any]
) -> None:
    request = chat(image("i", photo(300, 200, "PNG"), min_pixels=56 * 56, max_pixels=84 * 84))
    size = {"shortest_edge": 56 * 56, "longest_edge": 84 * 84}
    expected = answer_of(processors["glm46v"], request, images_kwargs={"size": size})
    assert len(expected["pixel_values"]) < len(answer_of(processors["glm46v"], request)["pixel_values"])
    assert_equal(prepare_generic(loaded["glm46v"], request, LIMITS).tensors, expected)


@pytest.mark.parametrize("bound", ["max_pixels", "min_pixels"])
def test_a_single_bound_beyond_the_models_other_one_is_taken_as_transformers_takes_it(
    loaded: dict[str, GenericModel], processors: dict[str, Any], bound: str
) -> None:
    own = dict(processors["glm46v"].image_processor.size)
    value = own["shortest_edge"] // 2 if bound == "max_pixels" else own["longest_edge"] * 2
    size = own | {"longest_edge" if bound == "max_pixels" else "shortest_edge": value}
    request = chat(image("i", photo(300, 200, "PNG"), **{bound: value}))
    expected = answer_of(processors["glm46v"], request, images_kwargs={"size": size})
    assert_equal(prepare_generic(loaded["glm46v"], request, LIMITS).tensors, expected)


def test_a_rendered_prompt_gives_the_tensors_of_its_chat(loaded: dict[str, GenericModel]) -> None:
    text = "<bos>USER: <boi>\nWhat?<eos>\nASSISTANT: "
    messages = (Message("user", (MediaPart("i"), TextPart("What?"))),)
    of_chat = prepare_generic(loaded["gemma3"], PreparationRequest(ChatPrompt(messages), (image("i"),)), LIMITS)
    of_text = prepare_generic(loaded["gemma3"], PreparationRequest(TextPrompt(text), (image("i"),)), LIMITS)
    assert of_text.token_ids.tolist() == of_chat.token_ids.tolist()


def test_bos_is_added_to_a_text_that_lacks_it_and_not_twice(loaded: dict[str, GenericModel]) -> None:
    bos = loaded["gemma3"].tokenizer.bos_token_id
    ids = [
        prepare_generic(loaded["gemma3"], PreparationRequest(TextPrompt(text)), LIMITS).token_ids.tolist()
        for text in ("ab", "<bos>ab")
    ]
    assert ids[0] == ids[1] and ids[0].count(bos) == 1
