"""Prompts from plain Python: what the messages are that they make."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocessor.client import InvalidRequest, Medium, audio, chat, image, text, token_ids, tools, video
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.tensors import MAX_CHUNK_BYTES


def user(*parts: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": list(parts)}]


def media_of(*media: Medium) -> list[pb.Media]:
    return list(chat(user(*media)).spec.media)


def test_a_medium_is_named_by_its_file_and_stands_where_it_was_put(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"film")
    prompt = chat(user("Before", video(path, fps=2), "after"))
    (sent,) = prompt.spec.media
    assert (sent.key, sent.modality, sent.inline_data, sent.sampling.fps) == ("clip.mp4", pb.MODALITY_VIDEO, b"film", 2)
    assert [(part.text, part.media_key) for part in prompt.spec.chat.messages[0].parts] == [
        ("Before", ""),
        ("", "clip.mp4"),
        ("after", ""),
    ]


def test_files_of_one_name_get_keys_of_their_own(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "photo.jpg").write_bytes(folder.encode())
    keys = [one.key for one in media_of(image(tmp_path / "a/photo.jpg"), image(str(tmp_path / "b/photo.jpg")))]
    assert keys == ["photo.jpg", "photo.jpg#2"]
    assert [one.key for one in media_of(image(b"1"), image(b"2"), video(b"3"), audio(b"4"))] == [
        *("image", "image#2", "video", "audio"),
    ]


def test_one_object_in_two_places_is_sent_once() -> None:
    photo = image(b"photo", key="it")
    prompt = chat([*user(photo, "What is this?"), *user("And here?", photo)])
    assert [one.key for one in prompt.spec.media] == ["it"]
    assert [message.parts[i].media_key for message, i in zip(prompt.spec.chat.messages, (0, 1), strict=True)] == [
        "it",
        "it",
    ]


def test_two_media_of_one_key_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="it") as refused:
        media_of(image(b"1", key="it"), image(b"2", key="it"))
    assert refused.value.reason == "DUPLICATE_MEDIA_KEY"


def test_small_files_go_into_the_spec_and_others_follow_in_chunks() -> None:
    small, half, large = b"s", bytes(MAX_CHUNK_BYTES // 2), bytes(MAX_CHUNK_BYTES + 1)
    prompt = chat(user(image(large), image(half), image(half), image(small)))
    ways = [one.WhichOneof("source") for one in prompt.spec.media]
    assert ways == ["chunked", "inline_data", "inline_data", "chunked"]
    assert dict(prompt.files) == {"image": large, "image#4": small}


@pytest.mark.parametrize("url", ["https://host/clip.mp4", "s3://bucket/clip.mp4", "data:video/mp4;base64,AAAA"])
def test_a_url_is_left_to_the_service(url: str) -> None:
    (sent,) = media_of(video(url))
    assert (sent.key, sent.url) == ("video", url)


def test_a_url_in_openai_s_form_reads_no_file_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    url = f"data:image/png;base64,{base64.b64encode(b'x').decode()}"
    parts = [
        {"type": kind, kind: {"url": one}}
        for kind, one in (("image_url", url), ("video_url", str(tmp_path / "secret")))
    ]
    sent = chat(user(*parts)).spec.media
    assert [(one.modality, one.url) for one in sent] == [
        (pb.MODALITY_IMAGE, url),
        (pb.MODALITY_VIDEO, str(tmp_path / "secret")),
    ]


def test_a_video_s_sound_is_its_own_file_sent_once() -> None:
    clip = video(b"clip", key="clip")
    sent = media_of(clip, audio(clip))
    assert [(one.key, one.WhichOneof("source")) for one in sent] == [("clip", "inline_data"), ("audio", "same_file_as")]
    assert sent[1].same_file_as == "clip"


def test_frames_are_one_file_with_their_sizes(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"three")
    (sent,) = media_of(
        video(frames=[b"one", tmp_path / "b.jpg", str(tmp_path / "b.jpg")], times_seconds=[0, 1, 5], duration_seconds=6)
    )
    assert (sent.key, sent.inline_data, sent.HasField("sampling")) == ("video", b"onethreethree", False)
    assert list(sent.frames.sizes_bytes) == [3, 5, 5]
    assert (list(sent.frames.times_seconds.values), sent.frames.duration_seconds) == ([0, 1, 5], 6)


def test_frames_may_be_arrays_whatever_their_layout_in_memory() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    (sent,) = media_of(video(frames=pixels, fps=2))
    assert sent.frames == pb.FrameList(
        encoding=pb.FRAME_ENCODING_RGB24, sizes_bytes=[72, 72], width_px=6, height_px=4, fps=2
    )
    assert sent.inline_data == pixels.tobytes()
    (mirrored,) = media_of(video(frames=[frame[:, ::-1] for frame in pixels], fps=2))
    assert mirrored.inline_data == np.ascontiguousarray(pixels[:, :, ::-1]).tobytes()


def test_large_frames_follow_in_chunks() -> None:
    prompt = chat(user(video(frames=[bytes(MAX_CHUNK_BYTES), b"x"], fps=1)))
    assert prompt.spec.media[0].WhichOneof("source") == "chunked"
    assert dict(prompt.files) == {"video": bytes(MAX_CHUNK_BYTES) + b"x"}


ARRAY = np.zeros((4, 6, 3), np.uint8)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({}, "INVALID_FRAMES"),
        ({"source": b"film", "frames": [b"x"], "fps": 1}, "INVALID_FRAMES"),
        ({"source": b"film", "duration_seconds": 2}, "INVALID_FRAMES"),
        ({"frames": [], "fps": 1}, "INVALID_FRAMES"),
        ({"frames": [b"x"]}, "INVALID_FRAMES"),
        ({"frames": [b"x"], "fps": 1, "times_seconds": [0]}, "INVALID_FRAMES"),
        ({"frames": [b"x", ARRAY], "fps": 1}, "INVALID_FRAMES"),
        ({"frames": [ARRAY[..., :1]], "fps": 1}, "INVALID_FRAMES"),
        ({"frames": [ARRAY.astype(np.float32)], "fps": 1}, "INVALID_FRAMES"),
        ({"frames": [ARRAY, ARRAY[1:]], "fps": 1}, "RESOLUTION_CHANGE"),
        ({"frames": [b"x"], "fps": 1, "frame_count": 2}, "SAMPLING_CONFLICT"),
        ({"frames": [b"x"], "fps": 1, "start_seconds": 2}, "SAMPLING_CONFLICT"),
    ],
)
def test_frames_that_cannot_be_meant_are_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        video(**arguments)
    assert refused.value.reason == reason


def test_budgets_and_sampling_are_keyword_arguments() -> None:
    (sent,) = media_of(
        video(b"", indices=[0, 5], min_pixels=1, max_pixels=2, cap_pixels_per_frame=False, tolerant=True, basis="time")
    )
    assert (list(sent.sampling.indices.values), sent.sampling.basis) == ([0, 5], pb.SAMPLING_BASIS_TIME)
    assert (sent.min_pixel_count, sent.max_pixel_count) == (1, 2)
    assert sent.HasField("cap_pixels_per_frame")
    assert sent.damage_policy == pb.DAMAGE_POLICY_TOLERANT
    assert not media_of(video(b""))[0].HasField("sampling"), "the model's own rule"
    (windowed,) = media_of(video(b"", every_frame=True, start_seconds=1, end_seconds=2))
    assert windowed.sampling.WhichOneof("choice") == "every_frame"
    assert (windowed.sampling.start_seconds, windowed.sampling.end_seconds) == (1, 2)


@pytest.mark.parametrize("ways", [{"fps": 1, "frame_count": 2}, {"every_frame": True, "times_seconds": [0.5]}])
def test_two_ways_to_choose_frames_are_refused(ways: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        video(b"", **ways)  # type: ignore[arg-type]
    assert refused.value.reason == "SAMPLING_CONFLICT"


def test_no_frames_at_all_are_not_the_model_s_own_choice() -> None:
    assert media_of(video(b"", indices=[]))[0].sampling.WhichOneof("choice") == "indices"


def test_rendered_prompts_take_media_in_their_order() -> None:
    media = [image(b"1"), image(b"2")]
    rendered = text("<|image_pad|> <|image_pad|>", media, model="m", pixel_form="bf16", with_token_types=True).spec
    assert (rendered.text, [one.key for one in rendered.media]) == ("<|image_pad|> <|image_pad|>", ["image", "image#2"])
    assert (rendered.model, rendered.pixel_form, rendered.with_token_types) == ("m", pb.PIXEL_FORM_BF16, True)
    by_id = token_ids([1, 2, 3], media, cache_salt="tenant").spec
    assert (list(by_id.token_ids.ids), len(by_id.media), by_id.cache_salt) == ([1, 2, 3], 2, "tenant")


def test_tools_and_arguments_keep_their_order_and_json_text_is_sent_as_it_is() -> None:
    made = chat("Hi", tools=tools({"name": "zoom"}), template_arguments={"b": 1, "a": 2}, add_generation_prompt=False)
    assert made.spec.chat.tools_json == '[{"type": "function", "function": {"name": "zoom"}}]'
    assert made.spec.chat.template_arguments_json == '{"b": 1, "a": 2}'
    assert made.spec.chat.omit_generation_prompt
    assert chat("Hi", tools="[1.0]").spec.chat.tools_json == "[1.0]"


def test_arguments_of_a_processor_keep_their_order() -> None:
    made = text("Hi", processor_arguments={"size": {"width": 2, "height": 1}, "do_resize": True})
    assert made.spec.processor_arguments_json == '{"size": {"width": 2, "height": 1}, "do_resize": true}'


@pytest.mark.parametrize(
    ("message", "reason"),
    [({"content": "Hi"}, "INVALID_MESSAGE"), ({"role": "user", "content": "", "x": float("nan")}, "NOT_FINITE_NUMBER")],
)
def test_a_message_of_another_form_is_refused(message: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        chat([message])
    assert refused.value.reason == reason


def test_a_file_that_cannot_be_read_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        video(tmp_path / "nowhere.mp4")
