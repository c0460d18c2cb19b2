"""Messages as files hold them, in OpenAI's or Hugging Face's form → the messages of `chat`, with the files that they name read.

>>> messages = [{"role": "user", "content": [{"type": "image", "path": photo}, {"type": "text", "text": "What is this?"}]}]
>>> [medium.key for medium in chat(with_files(messages)).spec.media]
['photo.jpg']

`chat` alone opens no file that a message names, so it may be given untrusted messages. `with_files` opens them: it is
for messages of your own.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from preprocessor.client.media import URL, Medium, Source, audio, image, video
from preprocessor.errors import InvalidRequest

MakeMedium = Callable[[str, Source | list[Path]], Medium]
"""Makes a medium of "image", "video", "audio", or "frames" and their paths."""

_BASE64_URL = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
# OpenAI's form, with vLLM's `video_url` and `audio_url`. Hugging Face's: transformers 5.23, `ProcessorMixin.apply_chat_template`.
_BY_URL = {"image_url": "image", "video_url": "video", "audio_url": "audio"}


def make_medium(kind: str, source: Source | list[Path]) -> Medium:
    """A medium as the model samples and resizes it unless told otherwise.

    Raises:
        InvalidRequest: `INVALID_FRAMES`: frames, of which no message says when they are shown.
        OSError: The file cannot be read.
    """
    if isinstance(source, list):
        return video(frames=source)
    if kind == "video":
        return video(source)
    return image(source) if kind == "image" else audio(source)


def with_files(
    messages: Sequence[Mapping[str, Any]], folder: str | Path = ".", make: MakeMedium = make_medium
) -> list[dict[str, Any]]:
    """The same messages with media in the place of the parts that name them. A file that is named twice is sent once.

    Args:
        messages: With parts as OpenAI has them (`image_url`, `video_url`, `audio_url`, `input_audio`), or Hugging Face
            ({"type": "image", "path": …}, or `url`, `base64`, `image`; the same with video and audio). Fields that are None are
            left out, as both do.
        folder: What relative paths start from.
        make: Such as `lambda kind, source: video(source, fps=2)`.
    Raises:
        InvalidRequest: A message or a part has another form.
        OSError: A file cannot be read.
    """
    made: dict[tuple[str, str], Medium] = {}

    def medium(kind: str, value: Any) -> Medium:
        known = made.get((kind, value)) if isinstance(value, str) else None
        if known is None:
            known = make(*_opened(kind, value, Path(folder)))
        if isinstance(value, str):
            made[kind, value] = known
        return known

    return [_with_media(message, medium) for message in messages]


def _with_media(message: Any, medium: Callable[[str, Any], Medium]) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequest("a message is an object with role and content", reason="INVALID_MESSAGE")
    told = {name: value for name, value in message.items() if value is not None}
    content = told.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        told["content"] = [_part(part, medium) for part in content]
    elif not isinstance(content, str | None):
        raise InvalidRequest("a message's content is a text or a list of parts", reason="INVALID_MESSAGE")
    return told


def _part(part: Any, medium: Callable[[str, Any], Medium]) -> Any:
    match part:
        case str() | Medium() | {"type": "text" | "literal_text", "text": str()}:
            return part
        case {"type": "input_audio", "input_audio": {"data": str(data)}}:
            return medium("audio", _decoded(data))
        case {"type": "image_url" | "video_url" | "audio_url" as kind}:
            match part.get(kind):
                case str(url) | {"url": str(url)}:
                    return medium(_BY_URL[kind], url)
        case {"type": "image" | "video" | "audio" as kind}:
            sources = {name: value for name, value in part.items() if name != "type"}
            if len(sources) == 1:
                ((name, value),) = sources.items()
                if name == "base64" and isinstance(value, str):
                    return medium(kind, _decoded(value))
                if name in (kind, "url", "path") and (isinstance(value, str) or kind == "video"):
                    return medium(kind, value)
    raise InvalidRequest(
        f"{_shown(part)} is no part of a message; give text, image_url, video_url, audio_url, input_audio, or image, "
        "video or audio with one of path, url and base64",
        reason="INVALID_MESSAGE",
    )


def _opened(kind: str, value: Any, folder: Path) -> tuple[str, Source | list[Path]]:
    """Kind and source, as `MakeMedium` takes them."""
    if isinstance(value, bytes):
        return kind, value
    if isinstance(value, str):
        data = _BASE64_URL.match(value)
        return kind, _located(value, folder) if data is None else _decoded(value[data.end() :])
    if isinstance(value, list) and all(isinstance(one, str) and not URL.match(one) for one in value):
        return "frames", [folder / one for one in value]
    raise InvalidRequest("a video is a path, a URL, or a list of paths of its frames", reason="INVALID_MESSAGE")


def _located(text: str, folder: Path) -> str | Path:
    """A path, or the URL that a service is to fetch."""
    if text[:7].lower() == "file://":
        return Path(unquote(urlsplit(text).path))
    return text if URL.match(text) else folder / text


def _decoded(text: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as error:
        raise InvalidRequest(f"a part's data is not base64 ({error})", reason="INVALID_MESSAGE") from error


def _shown(part: Any) -> str:
    """A part in short: it may be megabytes of base64."""
    if not isinstance(part, Mapping):
        return f"{part!r:.60}"
    return f"a part with {', '.join(f'{name}={value!r:.40}' for name, value in part.items())}"
