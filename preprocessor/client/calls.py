"""A caller of the service: uploads files, gathers tensors, passes tokens on. For programs and for the command line.

with open_channel("127.0.0.1:50051") as channel:
    result = prepare(channel, spec, {"clip": Path("clip.mp4").read_bytes()})
    result.tensors["pixel_patches"]
"""

from __future__ import annotations

import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import grpc
import numpy.typing as npt
from google.rpc import error_details_pb2, status_pb2

from preprocessor.client.channel import CHANNEL_OPTIONS, Credentials, open_channel
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from preprocessor.wire.tensors import MAX_CHUNK_BYTES, allocate_tensor, read_tensor, store_rows

__all__ = [
    "CHANNEL_OPTIONS",
    "CallFailed",
    "Credentials",
    "PrepareResult",
    "chat_prompt",
    "generate",
    "open_channel",
    "prepare",
    "with_sizes",
]

Request = TypeVar("Request")

PATIENCE_SECONDS = 30.0
"""How long calls that are refused for lack of room are made again, where nothing else is said."""

Progress = Callable[[int, int], None]
"""Called with bytes of a large tensor, such as the pixels, received so far and in all."""


class CallFailed(Exception):
    """The service refused a call, or broke.

    Attributes:
        code: gRPC status code.
        reason: `ErrorInfo.reason`; empty where the answer did not come from the service, as when nobody listens.
        fields: Paths of the request's fields at fault, such as "media[0].sampling.fps".
        retry_after_seconds: The service's hint, where it gave one.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        retry_after_seconds: float | None,
        fields: tuple[str, ...] = (),
    ) -> None:
        super().__init__(f"{reason or code.name}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.fields = fields
        self.retry_after_seconds = retry_after_seconds


@dataclass(slots=True, eq=False)
class PrepareResult:
    """What `Prepare` answered: `tensors` by name, and the messages around them."""

    header: pb.Header
    report: pb.Report
    tensors: dict[str, npt.NDArray[Any]] = field(repr=False)


def chat_prompt(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    template_arguments: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
) -> pb.ChatPrompt:
    """Messages in the form of OpenAI's chat API as a prompt. Tools, calls and arguments go as JSON text, which loses nothing.

    Args:
        messages: `role`, `content` and further fields, such as `tool_calls`. The content is a text, None, or a list of parts:
            {"type": "text", "text": …}, {"type": "literal_text", "text": …} or {"type": "media", "key": …}.
        template_arguments: Such as {"add_vision_id": True}.
    Raises:
        ValueError: A part of another form, or a number that is not finite.
    """
    chat = pb.ChatPrompt(omit_generation_prompt=not add_generation_prompt)
    if tools:
        chat.tools_json = _json(list(tools))
    if template_arguments:
        chat.template_arguments_json = _json(dict(template_arguments))
    for message in messages:
        sent = chat.messages.add(role=message["role"])
        content = message.get("content")
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or ():
            match part:
                case {"type": "text", "text": str(text)}:
                    sent.parts.add(text=text)
                case {"type": "literal_text", "text": str(text)}:
                    sent.parts.add(literal_text=text)
                case {"type": "media", "key": str(key)}:
                    sent.parts.add(media_key=key)
                case _:
                    raise ValueError("a part is of the type text or literal_text with a text, or media with a key")
        further = {name: value for name, value in message.items() if name not in ("role", "content")}
        if further:
            sent.extra_json = _json(further)
    return chat


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def prepare(
    channel: grpc.Channel,
    spec: pb.PrepareSpec,
    files: Mapping[str, bytes],
    *,
    timeout_seconds: float | None = None,
    progress: Progress | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
) -> PrepareResult:
    """Send a prompt and the files of its chunked media, and gather the answer.

    Args:
        files: Media key → file.
        timeout_seconds: Of the whole, waits and repeated calls included.
        patience_seconds: How long a call that was refused for lack of room is made again, after the waits that the service
            asks for; 0 never makes it again.
    Raises:
        CallFailed: The service answered with an error, or not at all.
    """
    waits = _Waits(patience_seconds, timeout_seconds)
    while True:
        try:
            return _prepare(channel, spec, files, waits.remaining_seconds, progress)
        except CallFailed as error:
            waits.wait(error)


def _prepare(
    channel: grpc.Channel,
    spec: pb.PrepareSpec,
    files: Mapping[str, bytes],
    timeout_seconds: float | None,
    progress: Progress | None,
) -> PrepareResult:
    first = pb.PrepareRequest(spec=with_sizes(spec, files))
    chunks = (pb.PrepareRequest(chunk=chunk) for chunk in media_chunks(files))
    header, tensors, received = pb.Header(), list[npt.NDArray[Any]](), Counter[int]()
    with _failures():
        for response in pb_grpc.PreprocessorStub(channel).Prepare(_sequence(first, chunks), timeout=timeout_seconds):
            match response.WhichOneof("message"):
                case "header":
                    header = response.header
                    for tensor in header.tensors:
                        is_whole = len(tensor.data) == tensor.total_bytes
                        tensors.append(read_tensor(tensor) if is_whole else allocate_tensor(tensor))
                case "rows":
                    index = response.rows.tensor_index
                    store_rows(response.rows, tensors[index])
                    received[index] += len(response.rows.data)
                    if progress is not None:
                        progress(received[index], tensors[index].nbytes)
                case "report":
                    names = (tensor.name for tensor in header.tensors)
                    return PrepareResult(header, response.report, dict(zip(names, tensors, strict=True)))
    raise CallFailed(grpc.StatusCode.DATA_LOSS, "", "the answer ended without a report", None)


def generate(
    channel: grpc.Channel,
    spec: pb.PrepareSpec,
    parameters: pb.GenerationParameters,
    files: Mapping[str, bytes],
    *,
    timeout_seconds: float | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Iterator[pb.GenerateResponse]:
    """Send a prompt and yield the answer's messages: header, deltas, completion. Closing the iterator cancels.

    Args:
        timeout_seconds, patience_seconds: As `prepare`'s; what has begun to answer is not asked again.
    Raises:
        CallFailed: As `prepare`.
    """
    waits, has_begun = _Waits(patience_seconds, timeout_seconds), False
    while True:
        try:
            for response in _generate(channel, spec, parameters, files, waits.remaining_seconds):
                has_begun = True
                yield response
            return
        except CallFailed as error:
            if has_begun:
                raise
            waits.wait(error)


def _generate(
    channel: grpc.Channel,
    spec: pb.PrepareSpec,
    parameters: pb.GenerationParameters,
    files: Mapping[str, bytes],
    timeout_seconds: float | None,
) -> Iterator[pb.GenerateResponse]:
    first = pb.GenerateRequest(spec=pb.GenerateSpec(prompt=with_sizes(spec, files), parameters=parameters))
    chunks = (pb.GenerateRequest(chunk=chunk) for chunk in media_chunks(files))
    with _failures():
        call = pb_grpc.PreprocessorStub(channel).Generate(_sequence(first, chunks), timeout=timeout_seconds)
        try:
            yield from call
        finally:
            call.cancel()


class _Waits:
    """The waits of one caller between his calls."""

    def __init__(self, patience_seconds: float, timeout_seconds: float | None) -> None:
        now = time.monotonic()
        self._until_seconds = now + patience_seconds
        self._deadline_seconds = math.inf if timeout_seconds is None else now + timeout_seconds

    @property
    def remaining_seconds(self) -> float | None:
        """Until the deadline, where there is one."""
        if self._deadline_seconds == math.inf:
            return None
        return max(0.0, self._deadline_seconds - time.monotonic())

    def wait(self, error: CallFailed) -> None:
        """Wait as the service asks; or raise the error, where it does not, or the wait would be too long."""
        if error.retry_after_seconds is None:
            raise error
        seconds = with_jitter(error.retry_after_seconds)
        if time.monotonic() + seconds > min(self._until_seconds, self._deadline_seconds):
            raise error
        time.sleep(seconds)


def with_jitter(seconds: float) -> float:
    """A wait between that long and twice as long, so that callers who were refused together do not come back together."""
    return random.uniform(seconds, 2 * seconds)


def with_sizes(spec: pb.PrepareSpec, files: Mapping[str, bytes]) -> pb.PrepareSpec:
    """The spec with the size of every file that is to follow, so that what has no room is refused before it is sent."""
    told = pb.PrepareSpec()
    told.CopyFrom(spec)
    for medium in told.media:
        if medium.HasField("chunked") and medium.key in files and not medium.HasField("size_bytes"):
            medium.size_bytes = len(files[medium.key])
    return told


def _sequence(first: Request, rest: Iterator[Request]) -> Iterator[Request]:
    yield first
    yield from rest


def media_chunks(files: Mapping[str, bytes]) -> Iterator[pb.MediaChunk]:
    """Files as the messages that carry them; media key → file."""
    for key, data in files.items():
        for offset in range(0, max(1, len(data)), MAX_CHUNK_BYTES):
            piece = data[offset : offset + MAX_CHUNK_BYTES]
            yield pb.MediaChunk(key=key, offset_bytes=offset, data=piece, last=offset + len(piece) == len(data))


@contextmanager
def _failures() -> Iterator[None]:
    """gRPC's errors, read into `CallFailed`."""
    try:
        yield
    except grpc.RpcError as error:
        raise failure_of(error) from error


def failure_of(error: grpc.RpcError) -> CallFailed:
    """What gRPC's error says, those of `grpc.aio` too."""
    status = status_pb2.Status()
    trailing: dict[str, Any] = dict(cast("Iterable[tuple[str, Any]]", error.trailing_metadata() or ()))
    status.ParseFromString(trailing.get("grpc-status-details-bin", b""))
    info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(retry)
        detail.Unpack(bad)
    delay = retry.retry_delay.ToTimedelta().total_seconds() or None
    fields = tuple(violation.field for violation in bad.field_violations)
    return CallFailed(error.code(), info.reason, error.details() or "", delay, fields)
