"""Request messages → the types of the pipeline. Pure; checks every rule of the messages that needs no file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import struct_pb2

from preprocessor.config import Limits
from preprocessor.config.values import NO_BACKGROUND, parse_background
from preprocessor.errors import InvalidRequest, LimitExceeded
from preprocessor.media.walk import too_many_frames
from preprocessor.service.fetch.data_urls import is_data_url, read_data_url
from preprocessor.service.frame_lists import ENCODINGS, file_size, frame_count, inline_pictures, read_frame_list
from preprocessor.service.json_text import read_json, value_count
from preprocessor.service.prompts import json_texts, read_prompt
from preprocessor.types.request import (
    FileData,
    Media,
    Modality,
    OnDamage,
    PixelForm,
    PreparationRequest,
    Sampling,
    SamplingBasis,
)
from preprocessor.v1 import preprocessor_pb2 as pb

MAX_INLINE_BYTES = 4 << 20
MAX_KEY_BYTES = 128
MAX_UUID_BYTES = 128
SHA256_BYTES = 32

_MODALITIES = {
    pb.MODALITY_IMAGE: Modality.IMAGE,
    pb.MODALITY_VIDEO: Modality.VIDEO,
    pb.MODALITY_AUDIO: Modality.AUDIO,
}
_PIXEL_FORMS: dict[int, PixelForm | None] = {
    pb.PIXEL_FORM_UNSPECIFIED: None,
    pb.PIXEL_FORM_UINT8: PixelForm.UINT8,
    pb.PIXEL_FORM_BF16: PixelForm.BF16,
    pb.PIXEL_FORM_FP16: PixelForm.FP16,
    pb.PIXEL_FORM_FP32: PixelForm.FP32,
    pb.PIXEL_FORM_NONE: PixelForm.NONE,
}
_BASES = {
    pb.SAMPLING_BASIS_UNSPECIFIED: SamplingBasis.AUTO,
    pb.SAMPLING_BASIS_INDEX: SamplingBasis.INDEX,
    pb.SAMPLING_BASIS_TIME: SamplingBasis.TIME,
}
_DAMAGE_POLICIES = {
    pb.DAMAGE_POLICY_UNSPECIFIED: OnDamage.FAIL,
    pb.DAMAGE_POLICY_STRICT: OnDamage.FAIL,
    pb.DAMAGE_POLICY_TOLERANT: OnDamage.REPEAT,
}


@dataclass(frozen=True, slots=True)
class Sources:
    """Where files come from that are not in the spec itself.

    Attributes:
        chunked: Keys of the media whose files follow in chunks.
        urls: Key of a medium → the URL that its file is to be fetched from.
        same_file: Key of a medium → key of the medium that has the same file.
        sizes: Key of a medium → size of its file in bytes, if the spec states it.
        cached: Keys of the media whose files are said to be here.
    """

    chunked: frozenset[str]
    urls: Mapping[str, str]
    same_file: Mapping[str, str]
    sizes: Mapping[str, int] = field(default_factory=dict)
    cached: frozenset[str] = frozenset()

    def fill(self, request: PreparationRequest, files: Mapping[str, FileData]) -> PreparationRequest:
        """The request with every file in its medium.

        Args:
            files: Media key → file, of media that are not inline; a missing file is empty.
        """
        files = {medium.key: medium.data for medium in request.media} | dict(files)
        return dataclasses.replace(
            request,
            media=tuple(
                dataclasses.replace(medium, data=files[self.same_file.get(medium.key, medium.key)])
                for medium in request.media
            ),
        )


def check_counts(spec: pb.PrepareSpec, limits: Limits, max_spec_parts: int) -> None:
    """Refuse a spec with so many elements that converting them would block the event loop.

    A message of 16 MiB can hold millions of empty parts, and each would become a Python object.

    Raises:
        LimitExceeded: `LIMIT_EXCEEDED`, `SPEC_TOO_LARGE`, `PROMPT_TOO_LONG`, `TOO_MANY_FRAMES`.
    """
    limits.check_media_count(len(spec.media))
    if len(spec.token_ids.ids) > limits.max_prompt_length:
        raise LimitExceeded(
            f"a prompt of {len(spec.token_ids.ids)} token ids; at most {limits.max_prompt_length} are accepted",
            reason="PROMPT_TOO_LONG",
            field="token_ids.ids",
        )
    listed_count = 0
    for place, medium in enumerate(spec.media):
        listed_count += frame_count(medium)
        if listed_count > limits.max_clip_frames:
            raise too_many_frames(limits, medium.key)
        for name in ("indices", "times_seconds"):
            chosen_count = len(getattr(medium.sampling, name).values)
            if chosen_count > limits.max_clip_frames:
                raise LimitExceeded(
                    f"{chosen_count} frames asked for of one medium; at most {limits.max_clip_frames} are accepted",
                    reason="SPEC_TOO_LARGE",
                    field=f"media[{place}].sampling.{name}.values",
                )
    messages = spec.chat.messages
    count = len(messages)
    structs = [spec.chat.template_arguments]
    for message in messages[: max_spec_parts + 1]:
        count += len(message.parts)
        structs.append(message.extra)
        if count > max_spec_parts:
            break
    count += _value_count(structs, max_spec_parts)
    if count <= max_spec_parts:
        texts = [*json_texts(spec.chat), spec.processor_arguments_json]
        count += sum(value_count(text, max_spec_parts) for text in texts)
    if count > max_spec_parts:
        raise LimitExceeded(
            f"more than {max_spec_parts} messages, parts and values of arguments in one spec; send fewer",
            reason="SPEC_TOO_LARGE",
        )


def _value_count(structs: list[struct_pb2.Struct], enough: int) -> int:
    """Number of values in all Structs, at every depth; counting stops above `enough`."""
    count = 0
    waiting: list[Any] = list(structs)
    while waiting and count <= enough:
        one = waiting.pop()
        values = one.fields.values() if isinstance(one, struct_pb2.Struct) else one.values
        count += len(values)
        for value in values if count <= enough else ():
            match value.WhichOneof("kind"):
                case "struct_value":
                    waiting.append(value.struct_value)
                case "list_value":
                    waiting.append(value.list_value)
    return count


def read_spec(spec: pb.PrepareSpec, background: str = NO_BACKGROUND) -> tuple[PreparationRequest, Sources]:
    """A spec as a request, and the sources of the files that are not inline, which are empty in the request.

    Args:
        background: For images that name none.
    Raises:
        InvalidRequest: A required field is missing or out of range; the message names it.
        LimitExceeded: `INLINE_TOO_LARGE`.
    """
    sources = {medium.key: medium.WhichOneof("source") for medium in spec.media}
    same_file = {medium.key: medium.same_file_as for medium in spec.media if sources[medium.key] == "same_file_as"}
    for key, owner in same_file.items():
        if sources.get(owner) in (None, "same_file_as"):
            raise InvalidRequest(
                f"{key}: same_file_as names {owner!r}, which is not a medium with a file of its own",
                reason="UNKNOWN_MEDIA_KEY",
                field="media[].same_file_as",
                media_key=key,
            )
    chunked = frozenset(key for key, source in sources.items() if source == "chunked")
    cached = frozenset(key for key, source in sources.items() if source == "cached")
    request = PreparationRequest(
        prompt=read_prompt(spec),
        media=tuple(_read_media(medium, place, background) for place, medium in enumerate(spec.media)),
        pixel_form=_lookup(_PIXEL_FORMS, spec.pixel_form, "pixel_form"),
        with_token_types=spec.with_token_types,
        cache_salt=spec.cache_salt,
        processor_arguments=_read_processor_arguments(spec.processor_arguments_json),
    )
    urls = {medium.key: medium.url for medium in spec.media if medium.url and not is_data_url(medium.url)}
    sizes = {medium.key: size for medium in spec.media if (size := file_size(medium)) is not None}
    return request, Sources(chunked, urls, same_file, sizes, cached)


def _read_processor_arguments(text: str) -> dict[str, Any]:
    return read_json(text, dict, "processor_arguments_json") if text else {}


def _read_media(medium: pb.Media, place: int, background: str) -> Media:
    path = f"media[{place}]"
    if not 0 < len(medium.key.encode()) <= MAX_KEY_BYTES:
        raise InvalidRequest(
            f"a media key has 1 to {MAX_KEY_BYTES} bytes", reason="INVALID_MEDIA_KEY", field=f"{path}.key"
        )
    source = medium.WhichOneof("source")
    if source is None or (source == "url" and not medium.url):
        raise InvalidRequest(
            f"{medium.key}: no source; give inline_data, chunked, same_file_as, url, cached or inline_frames",
            reason="MEDIA_SOURCE_MISSING",
            media_key=medium.key,
        )
    data = inline_pictures(medium, path) if source == "inline_frames" else medium.inline_data
    if len(data) > MAX_INLINE_BYTES:
        raise LimitExceeded(
            f"{medium.key}: {len(data)} bytes inline; above {MAX_INLINE_BYTES} send chunks",
            reason="INLINE_TOO_LARGE",
            field=f"{path}.{source}",
            media_key=medium.key,
        )
    if is_data_url(medium.url):
        data = read_data_url(medium.url, medium.key, MAX_INLINE_BYTES)
    content_sha256 = medium.content_sha256 if medium.HasField("content_sha256") else None
    if content_sha256 is not None and len(content_sha256) != SHA256_BYTES:
        raise InvalidRequest(
            f"{medium.key}: a content_sha256 of {len(content_sha256)} bytes; a SHA-256 has {SHA256_BYTES}",
            reason="INVALID_DIGEST",
            field=f"{path}.content_sha256",
            media_key=medium.key,
        )
    uuid = medium.uuid if medium.HasField("uuid") else None
    if uuid is not None and not 0 < len(uuid.encode()) <= MAX_UUID_BYTES:
        raise InvalidRequest(
            f"{medium.key}: a uuid has 1 to {MAX_UUID_BYTES} bytes",
            reason="INVALID_UUID",
            field=f"{path}.uuid",
            media_key=medium.key,
        )
    if source == "cached" and content_sha256 is None and uuid is None:
        raise InvalidRequest(
            f"{medium.key}: cached without a content_sha256 or a uuid that names the file",
            reason="INVALID_DIGEST",
            field=f"{path}.content_sha256",
            media_key=medium.key,
        )
    return Media(
        key=medium.key,
        modality=_lookup(_MODALITIES, medium.modality, f"{path}.modality"),
        data=data,
        content_sha256=content_sha256,
        uuid=uuid,
        sampling=_read_sampling(medium.sampling, f"{path}.sampling"),
        min_pixels=medium.min_pixel_count if medium.HasField("min_pixel_count") else None,
        max_pixels=medium.max_pixel_count if medium.HasField("max_pixel_count") else None,
        cap_pixels_per_frame=medium.cap_pixels_per_frame if medium.HasField("cap_pixels_per_frame") else None,
        on_damage=_lookup(_DAMAGE_POLICIES, medium.damage_policy, f"{path}.damage_policy"),
        background=_read_background(medium, background),
        frames=read_frame_list(medium, _lookup(ENCODINGS, medium.frames.encoding, f"{path}.frames.encoding")),
    )


def _read_background(medium: pb.Media, default: str) -> str | None:
    asked = medium.background or (default if medium.modality == pb.MODALITY_IMAGE else NO_BACKGROUND)
    try:
        colour = parse_background(asked)
    except ValueError as error:
        raise InvalidRequest(
            f"{medium.key}: background: {error}",
            reason="INVALID_BACKGROUND",
            field="media[].background",
            media_key=medium.key,
        ) from error
    return None if colour == NO_BACKGROUND else colour


def _read_sampling(message: pb.Sampling, path: str) -> Sampling:
    choice = message.WhichOneof("choice")
    return Sampling(
        fps=message.fps if choice == "fps" else None,
        frame_count=message.frame_count if choice == "frame_count" else None,
        indices=tuple(message.indices.values) if choice == "indices" else None,
        times_seconds=tuple(message.times_seconds.values) if choice == "times_seconds" else None,
        every_frame=choice == "every_frame",
        start_seconds=message.start_seconds if message.HasField("start_seconds") else None,
        end_seconds=message.end_seconds if message.HasField("end_seconds") else None,
        basis=_lookup(_BASES, message.basis, f"{path}.basis"),
    )


def _lookup(table: Mapping[Any, Any], number: int, path: str) -> Any:
    try:
        return table[number]
    except KeyError:
        raise InvalidRequest(
            f"{path} is {number}; give one of {sorted(table)}", reason="INVALID_ENUM", field=path
        ) from None
