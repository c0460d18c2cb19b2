"""Calls that pause where a test needs it: in the middle of an upload, or of a response."""

from __future__ import annotations

import hashlib
from typing import Any

import grpc.aio

from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from tests.service.conftest import chat, image, video

SECONDS = 120.0
"""Deadline of every call here."""


class HeldUpload:
    """A `Prepare` that has sent half of its file: accepted, without a response yet."""

    def __init__(self, channel: grpc.aio.Channel, file: bytes, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self._call: Any = pb_grpc.PreprocessorStub(channel).Prepare(timeout=SECONDS, metadata=metadata)
        self._file = file

    async def begin(self) -> None:
        await self._call.write(pb.PrepareRequest(spec=chat("What is this?", image())))
        await self._write(0, len(self._file) // 2)

    async def finish(self) -> str:
        """Send the rest; the digest of what is answered."""
        await self._write(len(self._file) // 2, len(self._file))
        await self._call.done_writing()
        return digest_of([message async for message in self._call])

    async def _write(self, start: int, end: int) -> None:
        chunk = pb.MediaChunk(key="photo", offset_bytes=start, data=self._file[start:end], last=end == len(self._file))
        await self._call.write(pb.PrepareRequest(chunk=chunk))


class BegunAnswer:
    """A `Prepare` whose header has come, and whose pixels, more than any buffer on the way holds, wait to be read."""

    def __init__(self, channel: grpc.aio.Channel, clip: bytes) -> None:
        spec = chat("What happens?", video(data=clip, sampling=pb.Sampling(every_frame=pb.EveryFrame())))
        call: Any = pb_grpc.PreprocessorStub(channel).Prepare(iter([pb.PrepareRequest(spec=spec)]), timeout=SECONDS)
        self._answer = aiter(call)
        self._messages: list[pb.PrepareResponse] = []

    async def begin(self) -> None:
        self._messages.append(await anext(self._answer))
        assert self._messages[0].WhichOneof("message") == "header"

    async def finish(self) -> str:
        """Read the rest; the digest of all of it.

        Raises:
            grpc.aio.AioRpcError: The answer broke off.
        """
        self._messages += [message async for message in self._answer]
        return digest_of(self._messages)


async def prepare(channel: grpc.aio.Channel, file: bytes, metadata: tuple[tuple[str, str], ...] = ()) -> str:
    """A small call from beginning to end."""
    request = pb.PrepareRequest(spec=chat("What is this?", image(data=file)))
    call: Any = pb_grpc.PreprocessorStub(channel).Prepare(iter([request]), timeout=SECONDS, metadata=metadata)
    return digest_of([message async for message in call])


def digest_of(messages: list[pb.PrepareResponse]) -> str:
    """Of a whole answer: its tensors, however they were cut into messages."""
    assert messages[-1].WhichOneof("message") == "report", "the answer ended early"
    digest = hashlib.sha256()
    for tensor in messages[0].header.tensors:
        digest.update(f"{tensor.name} {tensor.shape}".encode() + tensor.data)
    for message in messages[1:-1]:
        digest.update(message.rows.data)
    return digest.hexdigest()
