"""A prompt with its files → the messages that carry them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from preprocessor.errors import InvalidRequest
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.tensors import MAX_CHUNK_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What is to be prepared; `chat`, `text` and `token_ids` make it.

    Attributes:
        spec: The message to send.
        files: Key of each medium whose file follows in chunks → the file.
    """

    spec: pb.PrepareSpec
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)


class Parameters(TypedDict, total=False):
    """How an engine generates; the service's own defaults for what is not given: `GenerationParameters` in the proto."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop_token_ids: Sequence[int]
    stop_strings: Sequence[str]
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logprobs: int
    answer_count: int
    json_schema: Mapping[str, Any] | str
    regex: str
    grammar: str


Progress = Callable[[int, int], None]
"""Bytes sent or received so far, and in all."""


def prepare_requests(
    prompt: Prompt, progress: Progress | None = None, rows_region: pb.RowsRegion | None = None
) -> Iterator[pb.PrepareRequest]:
    """The messages of a call of Prepare: the spec, then the files.

    Args:
        progress: See `media_chunks`.
        rows_region: Where rows are to go; in messages where None.
    """
    request = pb.PrepareRequest(spec=with_sizes(prompt))
    if rows_region is not None:
        request.spec.rows_region.CopyFrom(rows_region)
    yield request
    for chunk in media_chunks(prompt.files, progress):
        yield pb.PrepareRequest(chunk=chunk)


def count_requests(prompt: Prompt) -> Iterator[pb.CountTokensRequest]:
    """The messages of a call of CountTokens."""
    yield pb.CountTokensRequest(spec=with_sizes(prompt))
    for chunk in media_chunks(prompt.files):
        yield pb.CountTokensRequest(chunk=chunk)


def generate_requests(
    prompt: Prompt, parameters: Parameters, progress: Progress | None = None
) -> Iterator[pb.GenerateRequest]:
    """The messages of a call of Generate.

    Args:
        progress: See `media_chunks`.
    Raises:
        InvalidRequest: More than one of json_schema, regex and grammar is given, or a JSON schema has a number that is not
            finite.
    """
    spec = pb.GenerateSpec(prompt=with_sizes(prompt), parameters=generation_parameters(parameters))
    yield pb.GenerateRequest(spec=spec)
    for chunk in media_chunks(prompt.files, progress):
        yield pb.GenerateRequest(chunk=chunk)


def generation_parameters(parameters: Parameters) -> pb.GenerationParameters:
    """Parameters as their message.

    Raises:
        InvalidRequest: As `generate_requests`.
    """
    constraints = sorted(parameters.keys() & {"json_schema", "regex", "grammar"})
    if len(constraints) > 1:  # a message would keep the last one alone
        raise InvalidRequest(
            f"{' and '.join(constraints)} exclude each other; give one",
            reason="INVALID_GENERATION_PARAMETERS",
            field=f"parameters.{constraints[0]}",
        )
    given: dict[str, Any] = dict(parameters)
    if not isinstance(given.get("json_schema", ""), str):
        given["json_schema"] = json_text(given["json_schema"])
    return pb.GenerationParameters(**given)


def json_text(value: Any) -> str:
    """A value as JSON text, which keeps the order of keys and every digit.

    Raises:
        InvalidRequest: `NOT_FINITE_NUMBER`.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"{error}; numbers are finite", reason="NOT_FINITE_NUMBER") from error


def with_sizes(prompt: Prompt) -> pb.PrepareSpec:
    """The spec with the size of every file that is to follow: what is too large is then refused before it is sent."""
    sized = pb.PrepareSpec()
    sized.CopyFrom(prompt.spec)
    for medium in sized.media:
        if medium.HasField("chunked") and medium.key in prompt.files and not medium.HasField("size_bytes"):
            medium.size_bytes = len(prompt.files[medium.key])
    return sized


def media_chunks(files: Mapping[str, bytes], progress: Progress | None = None) -> Iterator[pb.MediaChunk]:
    """Files as the messages that carry them, each of at most 1 MiB; media key → file.

    Args:
        progress: Called with each chunk that gRPC takes: before the answer can have come, even for the last one.
    """
    sent_bytes, total_bytes = 0, sum(map(len, files.values()))
    for key, data in files.items():
        for offset in range(0, max(1, len(data)), MAX_CHUNK_BYTES):
            piece = data[offset : offset + MAX_CHUNK_BYTES]
            sent_bytes += len(piece)
            if progress is not None:
                progress(sent_bytes, total_bytes)
            yield pb.MediaChunk(key=key, offset_bytes=offset, data=piece, last=offset + len(piece) == len(data))
