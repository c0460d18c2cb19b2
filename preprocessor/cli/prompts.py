"""Command-line options → the messages of a request."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from preprocessor.client.channel import Credentials
from preprocessor.config import SettingError
from preprocessor.errors import InvalidRequest
from preprocessor.v1 import preprocessor_pb2 as pb

_FORMS = {
    None: pb.PIXEL_FORM_UNSPECIFIED,  # the service's path decides: a generic model makes no uint8
    "uint8": pb.PIXEL_FORM_UINT8,
    "bf16": pb.PIXEL_FORM_BF16,
    "fp16": pb.PIXEL_FORM_FP16,
    "fp32": pb.PIXEL_FORM_FP32,
}
_URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)
_MODALITIES = {"image": pb.MODALITY_IMAGE, "video": pb.MODALITY_VIDEO}


def build_spec(options: argparse.Namespace) -> tuple[pb.PrepareSpec, dict[str, bytes]]:
    """The files and the text of the command line as one user message.

    Returns:
        The spec, and media key → file.
    Raises:
        SettingError: Text that is no UTF-8.
        InvalidRequest: There is neither text nor a file.
        OSError: A file cannot be read.
    """
    if not (options.media or options.text):
        raise InvalidRequest("there is nothing to prepare; give --text, --video or --image", reason="EMPTY_PROMPT")
    for option in ("text", "model", "template_arguments", "background"):
        _check_text(f"--{option.replace('_', '-')}", getattr(options, option) or "")
    media: dict[str, tuple[str, bytes | str]] = {}
    for modality, path in options.media or []:
        if _URL.match(path) is not None:
            media[_unique_key(modality, media)] = (modality, path)
        else:
            _check_text(f"--{modality}", path)
            media[_unique_key(Path(path).name, media)] = (modality, Path(path).read_bytes())
    return build_spec_of(options, media, options.text)


def build_spec_of(
    options: argparse.Namespace, media: Mapping[str, tuple[str, bytes | str]], text: str
) -> tuple[pb.PrepareSpec, dict[str, bytes]]:
    """One user message, its media before its text, every file to follow in chunks but those that the service is to fetch.

    Args:
        media: Key → modality, and the file or its URL.
    Returns:
        As `build_spec`.
    """
    spec = pb.PrepareSpec(model=options.model, pixel_form=_FORMS[getattr(options, "dtype", None)])
    spec.chat.template_arguments_json = options.template_arguments
    if options.tools:
        spec.chat.tools_json = _read_text("--tools", options.tools)
    message = spec.chat.messages.add(role="user")
    for key, (modality, source) in media.items():
        medium = spec.media.add(key=key, modality=_MODALITIES[modality])
        if isinstance(source, str):
            medium.url = source
        else:
            medium.chunked.SetInParent()
        if modality == "video":
            medium.sampling.CopyFrom(_sampling(options))
            medium.damage_policy = pb.DAMAGE_POLICY_TOLERANT if options.tolerant else pb.DAMAGE_POLICY_STRICT
        if options.min_pixels is not None:
            medium.min_pixel_count = options.min_pixels
        if options.max_pixels is not None:
            medium.max_pixel_count = options.max_pixels
        if options.background is not None and modality == "image":
            medium.background = options.background
        message.parts.add(media_key=key)
    if options.literal and text:
        message.parts.add(literal_text=text)
    elif text or not media:
        message.parts.add(text=text)
    return spec, {key: source for key, (_, source) in media.items() if not isinstance(source, str)}


def _sampling(options: argparse.Namespace) -> pb.Sampling:
    return pb.Sampling(
        fps=options.fps,
        frame_count=options.num_frames,
        every_frame=pb.EveryFrame() if options.every_frame else None,
        start_seconds=options.start_seconds,
        end_seconds=options.end_seconds,
    )


def build_parameters(options: argparse.Namespace) -> pb.GenerationParameters:
    return pb.GenerationParameters(
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        seed=options.seed,
        stop_strings=options.stop,
    )


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


def _unique_key(name: str, taken: Collection[str]) -> str:
    """A name, numbered where it is taken."""
    return name if name not in taken else next(k for n in range(2, len(taken) + 2) if (k := f"{name}#{n}") not in taken)


def credentials_of(options: argparse.Namespace) -> Credentials:
    """How to call the service."""
    given = vars(options)
    return Credentials(**{field.name: given[field.name] for field in dataclasses.fields(Credentials)})
