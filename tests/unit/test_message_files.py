"""Messages as files hold them: which media they become, and what is refused."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from preprocessor.client import InvalidRequest, Prompt, chat, video, with_files
from preprocessor.v1 import preprocessor_pb2 as pb

FILE = b"\x00 any file \xff"
BASE64 = base64.b64encode(FILE).decode()
IMAGE, VIDEO, AUDIO = pb.MODALITY_IMAGE, pb.MODALITY_VIDEO, pb.MODALITY_AUDIO


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("it", "with blank"):
        (tmp_path / name).write_bytes(FILE)
    return tmp_path


def read(folder: Path, *parts: Any) -> Prompt:
    return chat(with_files([{"role": "user", "content": list(parts)}], folder))


@pytest.mark.parametrize(
    ("part", "modality"),
    [
        ({"type": "image", "path": "it"}, IMAGE),
        ({"type": "image", "image": "it"}, IMAGE),
        ({"type": "image", "base64": BASE64}, IMAGE),
        ({"type": "image_url", "image_url": {"url": "it", "detail": "high"}}, IMAGE),
        ({"type": "image_url", "image_url": f"data:image/png;base64,{BASE64}"}, IMAGE),
        ({"type": "video", "video": "it"}, VIDEO),
        ({"type": "video_url", "video_url": {"url": "it"}}, VIDEO),
        ({"type": "audio", "path": "it"}, AUDIO),
        ({"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}}, AUDIO),
        ({"type": "audio_url", "audio_url": {"url": "it"}}, AUDIO),
    ],
    ids=str,
)
def test_a_file_is_read(part: dict[str, Any], modality: int, folder: Path) -> None:
    (medium,) = read(folder, part).spec.media
    assert (medium.modality, medium.inline_data) == (modality, FILE)


@pytest.mark.parametrize("form", ["image", "image_url"])
def test_a_url_is_left_to_the_service(form: str, folder: Path) -> None:
    url = "https://host/it.png"
    (medium,) = read(folder, {"type": form, "image_url" if form == "image_url" else "url": url}).spec.media
    assert (medium.modality, medium.url) == (IMAGE, url)


def test_a_file_url_is_a_path(folder: Path) -> None:
    url = (folder / "with blank").as_uri()
    assert "%20" in url
    (medium,) = read(folder, {"type": "image_url", "image_url": {"url": url}}).spec.media
    assert (medium.key, medium.inline_data) == ("with blank", FILE)


def test_parts_keep_their_order_and_a_file_that_is_named_twice_is_sent_once(folder: Path) -> None:
    one = {"type": "image", "path": "it"}
    spec = read(folder, "a", one, {"type": "text", "text": "b"}, {"type": "image", "url": "it"}, one).spec
    assert [medium.key for medium in spec.media] == ["it"]
    assert [part.text or part.media_key for part in spec.chat.messages[0].parts] == ["a", "it", "b", "it", "it"]


def test_fields_of_a_message_stay_but_for_those_that_are_none() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "zoom", "arguments": '{"x": 1}'}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None}
    assert with_files([answer, {"role": "tool", "tool_call_id": "1", "content": "done"}]) == [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
    ]


def test_frames_are_given_to_who_knows_their_times(folder: Path) -> None:
    def make(kind: str, source: Any) -> Any:
        assert (kind, source) == ("frames", [folder / "it", folder / "with blank"])
        return video(frames=source, fps=2)

    content = [{"type": "video", "video": ["it", "with blank"]}]
    (told,) = with_files([{"role": "user", "content": content}], folder, make)
    assert chat([told]).spec.media[0].frames.fps == 2
    with pytest.raises(InvalidRequest) as refused:
        with_files([{"role": "user", "content": content}], folder)
    assert refused.value.reason == "INVALID_FRAMES"


@pytest.mark.parametrize(
    "content",
    [
        5,
        [5],
        [{"type": "image"}],
        [{"type": "image", "path": "it", "url": "it"}],
        [{"type": "video", "path": "it", "fps": 2}],
        [{"type": "image", "image": ["it"]}],
        [{"type": "video", "video": ["https://host/1.png"]}],
        [{"type": "image_url", "image_url": {"uri": "it"}}],
        [{"type": "image", "base64": "no base64!"}],
        [{"type": "input_audio", "input_audio": {"data": BASE64[:-1]}}],
        [{"type": "file", "file": {"file_id": "1"}}],
        [{"type": "text", "text": 1}],
    ],
    ids=str,
)
def test_another_form_is_refused(content: Any, folder: Path) -> None:
    with pytest.raises(InvalidRequest) as refused:
        with_files([{"role": "user", "content": content}], folder)
    assert refused.value.reason == "INVALID_MESSAGE"
    assert len(str(refused.value)) < 300


def test_a_file_that_is_not_there_is_told(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(folder, {"type": "image", "path": "nowhere"})


def test_chat_itself_opens_no_file() -> None:
    (medium,) = chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": __file__}}]}]).spec.media
    assert medium.url == __file__
    with pytest.raises(InvalidRequest):
        chat([{"role": "user", "content": [{"type": "image", "path": __file__}]}])
