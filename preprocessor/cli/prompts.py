"""Command-line options → a prompt and its parameters."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessor.client import Credentials, Medium, Parameters, Prompt, audio, chat, image, video
from preprocessor.client.media import Source
from preprocessor.config import SettingError
from preprocessor.errors import InvalidRequest

if TYPE_CHECKING:
    from preprocessor.types.request import PreparationRequest


_FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def build_prompt(options: argparse.Namespace) -> Prompt:
    """The files and the text of the command line as one user message.

    Raises:
        SettingError: Text that is no UTF-8.
        InvalidRequest: There is neither text nor a file, or options contradict each other.
        OSError: A file cannot be read.
    """
    if not (options.media or options.text):
        raise InvalidRequest(
            "there is nothing to prepare; give --text, --video, --frames, --image or --audio", reason="EMPTY_PROMPT"
        )
    if options.frame_times and not any(modality == "frames" for modality, _ in options.media or []):
        raise InvalidRequest("--frame-times are those of --frames, which is not given", reason="INVALID_FRAMES")
    for option in ("text", "model", "template_arguments", "processor_arguments", "background"):
        _check_text(f"--{option.replace('_', '-')}", getattr(options, option) or "")
    for modality, path in options.media or []:
        _check_text(f"--{modality}", path)
    return build_prompt_of(options, options.media or [], options.text)


def build_prompt_of(options: argparse.Namespace, media: Sequence[tuple[str, Source]], text: str) -> Prompt:
    """One user message, its media before its text.

    Args:
        media: Modality, and path, file or URL.
    Raises:
        InvalidRequest, OSError: As `build_prompt`.
    """
    content: list[Any] = [_medium(options, modality, source) for modality, source in media]
    if text or not media:
        content.append({"type": "literal_text" if options.literal and text else "text", "text": text})
    return chat(
        [{"role": "user", "content": content}],
        tools=_read_text("--tools", options.tools) if options.tools else "",
        template_arguments=options.template_arguments,
        processor_arguments=options.processor_arguments,
        model=options.model,
        pixel_form=getattr(options, "dtype", None),  # without one the model decides: a generic one makes no uint8
    )


def _medium(options: argparse.Namespace, modality: str, source: Source) -> Medium:
    if modality == "image":
        return image(
            source,
            min_pixels=options.min_pixels,
            max_pixels=options.max_pixels,
            background=options.background or "",
        )
    if modality == "audio":
        return audio(source)
    folder = Path(str(source)) if modality == "frames" else None
    if folder is not None and options.fps is None and not options.frame_times:
        raise InvalidRequest(
            "--frames needs their rate or their times: --fps or --frame-times", reason="INVALID_FRAMES"
        )
    medium = video(
        source if folder is None else None,
        frames=None if folder is None else _frame_files(folder),
        times_seconds=_read_times(options.frame_times) if folder and options.frame_times else None,
        fps=options.fps,
        frame_count=options.num_frames,
        every_frame=options.every_frame,
        start_seconds=options.start_seconds,
        end_seconds=options.end_seconds,
        min_pixels=options.min_pixels,
        max_pixels=options.max_pixels,
        tolerant=options.tolerant,
    )
    return medium if folder is None else dataclasses.replace(medium, name=folder.resolve().name or medium.name)


def _frame_files(folder: Path) -> list[Path]:
    """The image files of a folder, by name."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _FRAME_SUFFIXES)
    if not files:
        raise InvalidRequest(f"{folder}: no {', '.join(_FRAME_SUFFIXES)} file is in it", reason="INVALID_FRAMES")
    return files


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
