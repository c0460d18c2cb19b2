"""Command-line options → the messages of a request."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from preprocessor.connection import Credentials
from preprocessor.v1 import preprocessor_pb2 as pb

_FORMS = {
    "uint8": pb.PIXEL_FORM_UINT8,
    "bf16": pb.PIXEL_FORM_BF16,
    "fp16": pb.PIXEL_FORM_FP16,
    "fp32": pb.PIXEL_FORM_FP32,
}
_MODALITIES = {"image": pb.MODALITY_IMAGE, "video": pb.MODALITY_VIDEO}


def build_spec(options: argparse.Namespace) -> tuple[pb.PrepareSpec, dict[str, bytes]]:
    """One user message, its media before its text, every file to follow in chunks.

    Returns:
        The spec, and media key → file.
    Raises:
        OSError: A file cannot be read.
    """
    spec = pb.PrepareSpec(model=options.model, pixel_form=_FORMS[getattr(options, "dtype", "uint8")])
    message = spec.chat.messages.add(role="user")
    files: dict[str, bytes] = {}
    for modality, path in options.media or []:
        key = _unique_key(Path(path).name, files)
        files[key] = Path(path).read_bytes()
        medium = spec.media.add(key=key, modality=_MODALITIES[modality], chunked=True)
        if modality == "video":
            medium.sampling.CopyFrom(_sampling(options))
            medium.damage_policy = pb.DAMAGE_POLICY_TOLERANT if options.tolerant else pb.DAMAGE_POLICY_STRICT
        if options.min_pixels is not None:
            medium.min_pixels = options.min_pixels
        if options.max_pixels is not None:
            medium.max_pixels = options.max_pixels
        message.parts.add(media_key=key)
    if options.text or not files:
        message.parts.add(text=options.text)
    return spec, files


def _sampling(options: argparse.Namespace) -> pb.Sampling:
    return pb.Sampling(
        fps=options.fps,
        frame_count=options.num_frames,
        every_frame=options.every_frame,
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


def _unique_key(name: str, taken: dict[str, bytes]) -> str:
    """The file's name, numbered where it is taken."""
    return name if name not in taken else next(k for n in range(2, len(taken) + 2) if (k := f"{name}#{n}") not in taken)


def credentials_of(options: argparse.Namespace) -> Credentials:
    """How to call the service."""
    given = vars(options)
    return Credentials(**{field.name: given[field.name] for field in dataclasses.fields(Credentials)})
