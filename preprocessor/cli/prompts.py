"""Command-line options → a prompt and its parameters."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessor.client import Credentials, Medium, Parameters, Prompt, audio, chat, image, video, with_files
from preprocessor.client.media import Source
from preprocessor.config import SettingError
from preprocessor.errors import InvalidRequest

if TYPE_CHECKING:
    from preprocessor.types.request import PreparationRequest


_FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def has_prompt(options: argparse.Namespace) -> bool:
    """Whether the command line has a prompt at all."""
    return bool(options.parts or options.messages or options.system)


def build_prompt(options: argparse.Namespace) -> Prompt:
    """The conversation of the command line.

    Raises:
        SettingError: Text that is no UTF-8, or a file of messages that has another form.
        InvalidRequest: There is nothing to prepare, or options contradict each other.
        OSError: A file cannot be read.
    """
    parts: list[tuple[str, Source]] = options.parts or []
    if not has_prompt(options):
        raise InvalidRequest(
            "there is nothing to prepare; give --text, --video, --frames, --image or --audio, or --messages",
            reason="EMPTY_PROMPT",
        )
    if options.frame_times and not any(kind == "frames" for kind, _ in parts) and not options.messages:
        raise InvalidRequest("--frame-times are those of --frames, which is not given", reason="INVALID_FRAMES")
    for option in ("system", "model", "template_arguments", "processor_arguments", "background"):
        _check_text(f"--{option.replace('_', '-')}", getattr(options, option) or "")
    for kind, value in parts:
        _check_text(f"--{kind}", str(value))
    if options.messages:
        if options.system:
            raise InvalidRequest("--messages has the system prompt; leave --system out", reason="INVALID_MESSAGE")
        return _chat(options, *_read_messages(options), parts)
    return build_prompt_of(options, parts)


def build_prompt_of(options: argparse.Namespace, parts: Sequence[tuple[str, Source]]) -> Prompt:
    """A conversation of these parts.

    Args:
        parts: Kind ("text", "assistant", a modality or "frames"), and text, path, file or URL.
    Raises:
        InvalidRequest, OSError: As `build_prompt`.
    """
    begin = [{"role": "system", "content": options.system}] if options.system else []
    return _chat(options, begin, None, parts)


def _chat(
    options: argparse.Namespace,
    begin: list[dict[str, Any]],
    tools: list[Any] | None,
    parts: Sequence[tuple[str, Source]],
) -> Prompt:
    if options.tools and tools is not None:
        raise InvalidRequest("--messages has tools; leave --tools out", reason="FIELD_CONFLICT")
    return chat(
        [*begin, *_turns(options, parts)],
        tools=_read_text("--tools", options.tools) if options.tools else tools or "",
        template_arguments=options.template_arguments,
        processor_arguments=options.processor_arguments,
        model=options.model,
        pixel_form=getattr(options, "dtype", None),  # without one the model decides: a generic one makes no uint8
    )


def _turns(options: argparse.Namespace, parts: Sequence[tuple[str, Source]]) -> list[dict[str, Any]]:
    """Messages of user and assistant by turns."""
    messages: list[dict[str, Any]] = []
    content: list[Any] = []
    for kind, value in [*parts, ("end", "")]:
        if kind in ("assistant", "end"):
            if content:
                messages.append({"role": "user", "content": _text_last(content)})
            if kind == "assistant":
                messages.append({"role": "assistant", "content": value})
            content = []
        elif kind != "text":
            content.append(_medium(options, kind, value))
        elif value:
            content.append({"type": "literal_text" if options.literal else "text", "text": value})
    return messages


def _text_last(content: list[Any]) -> list[Any]:
    """The parts of a message, its only text behind its media."""
    texts = [part for part in content if isinstance(part, dict)]
    return content if len(texts) != 1 else [part for part in content if part is not texts[0]] + texts


def _read_messages(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """Messages and tools of --messages, None where it has no tools."""
    path: str = options.messages
    is_piped = path == "-"
    text = sys.stdin.read() if is_piped else _read_text("--messages", path)
    tools: list[Any] | None = None
    try:
        match json.loads(text):
            case list(held):
                pass
            case {"messages": list(held), **nothing} if not nothing:
                pass
            case {"messages": list(held), "tools": list(tools), **nothing} if not nothing:
                pass
            case _:
                raise ValueError("it is neither an array of messages nor an object with `messages` and `tools` alone")
    except ValueError as error:
        raise SettingError("--messages", path, f"a JSON file with messages ({error})") from error
    folder = Path() if is_piped else Path(path).parent
    messages = with_files(held, folder, lambda kind, source: _medium(options, kind, source))
    return [_as_literal(one) for one in messages] if options.literal else messages, tools


def _as_literal(message: dict[str, Any]) -> dict[str, Any]:
    """The message with literal text where it is of the user or of a tool."""
    content = message.get("content")
    if message.get("role") not in ("user", "tool") or content is None:
        return message
    parts = []
    for part in [content] if isinstance(content, str) else content:
        text = part if isinstance(part, str) else part["text"] if isinstance(part, dict) else None
        parts.append(part if text is None else {"type": "literal_text", "text": text})
    return {**message, "content": parts}


def _medium(options: argparse.Namespace, kind: str, source: Source | list[Path]) -> Medium:
    """See `client.messages.MakeMedium`; of frames the source may also be their folder."""
    if kind == "audio" and not isinstance(source, list):
        return audio(source)
    if kind == "image" and not isinstance(source, list):
        return image(
            source,
            min_pixels=options.min_pixels,
            max_pixels=options.max_pixels,
            background=options.background or "",
        )
    name, files = "", None
    if kind == "frames":
        if options.fps is None and not options.frame_times:
            raise InvalidRequest(
                "--frames needs their rate or their times: --fps or --frame-times", reason="INVALID_FRAMES"
            )
        folder = source[0].parent if isinstance(source, list) and source else Path(str(source))
        name, files = folder.resolve().name, source if isinstance(source, list) else _frame_files(folder)
    medium = video(
        None if isinstance(source, list) or kind == "frames" else source,
        frames=files,
        times_seconds=_read_times(options.frame_times) if files and options.frame_times else None,
        fps=options.fps,
        frame_count=options.num_frames,
        every_frame=options.every_frame,
        start_seconds=options.start_seconds,
        end_seconds=options.end_seconds,
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
        tolerant=options.tolerant,
    )
    return dataclasses.replace(medium, name=name or medium.name)


def _frame_files(folder: Path) -> list[Path]:
    """The image files of a folder in the order of their names; hidden ones, which macOS leaves beside each, are left out."""
    found = (path for path in folder.iterdir() if path.suffix.lower() in _FRAME_SUFFIXES)
    files = sorted((path for path in found if not path.name.startswith(".")), key=_by_numbers)
    if not files:
        raise InvalidRequest(f"{folder}: no {', '.join(_FRAME_SUFFIXES)} file is in it", reason="INVALID_FRAMES")
    return files


def _by_numbers(path: Path) -> tuple[list[str | int], str]:
    """A key by which frame2.png comes before frame10.png: text and numbers alternate."""
    pieces = re.split("([0-9]+)", path.name)
    return [int(piece) if place % 2 else piece for place, piece in enumerate(pieces)], path.name


def _read_times(path: str) -> list[float]:
    text = _read_text("--frame-times", path)
    try:
        return [float(word) for word in text.split()]
    except ValueError as error:
        raise SettingError("--frame-times", path, f"a file of numbers ({error})") from error


def generation_parameters(options: argparse.Namespace) -> Parameters:
    """What the command line says of the generation.

    Raises:
        SettingError: Text that is no UTF-8.
        OSError: A file cannot be read.
    """
    parameters = Parameters(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=options.seed,
        stop_strings=options.stop,
    )
    for name in ("min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "logprobs"):
        if (value := getattr(options, name)) is not None:
            parameters[name] = value
    if options.answers is not None:
        parameters["answer_count"] = options.answers
    if options.json_schema is not None:
        parameters["json_schema"] = _read_text("--json-schema", options.json_schema)
    if options.grammar is not None:
        parameters["grammar"] = _read_text("--grammar", options.grammar)
    if options.regex is not None:
        _check_text("--regex", options.regex)
        parameters["regex"] = options.regex
    return parameters


def read_whole(prompt: Prompt) -> PreparationRequest:
    """A prompt for this process, with every file in its place.

    Raises:
        InvalidRequest: It is not accepted, or names a URL that only a service fetches.
    """
    from preprocessor.service import reading  # needs the extra `serve`

    request, sources = reading.read_spec(prompt.spec)
    if sources.urls:
        raise InvalidRequest("only a service fetches by URL; give the file itself", reason="FETCH_DISABLED")
    return sources.fill(request, prompt.files)


def _check_text(option: str, text: str) -> None:
    try:
        text.encode()
    except (
        UnicodeEncodeError
    ) as error:  # bytes of the command line that are no text stand in Python's as lone surrogates
        raise SettingError(option, text.encode(errors="replace").decode(), "text in UTF-8") from error


def _read_text(option: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingError(option, path, "a file with text in UTF-8") from error


def credentials_of(options: argparse.Namespace) -> Credentials:
    """How to call the service."""
    given = vars(options)
    return Credentials(**{field.name: given[field.name] for field in dataclasses.fields(Credentials)})
