"""One chat completion: its request, and its answer as JSON or as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from aiohttp import web
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.config import Limits, WireSettings
from preprocessor.errors import Cancelled
from preprocessor.service.calls import Call
from preprocessor.service.concurrency import Turns
from preprocessor.service.openai.answers import ChunkWriter, Completion
from preprocessor.service.openai.body import receive_body
from preprocessor.service.openai.chat import AnswerForm, read_chat
from preprocessor.service.openai.errors import HttpError
from preprocessor.service.upload_stream import Upload
from preprocessor.v1 import preprocessor_pb2 as pb

_EVENTS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold events back
}


class Exchange:
    """What the handler of `Generate` reads from and writes to.

    Args:
        heading: What every object of the answer begins with: `id`, `created`, `model`.
        headers: Of the response.
    """

    def __init__(
        self,
        request: web.BaseRequest,
        heading: Mapping[str, Any],
        headers: Mapping[str, str],
        tokenizer: TokenizersBackend,
        limits: Limits,
        wire: WireSettings,
        turns: Turns,
    ) -> None:
        self._request = request
        self._heading = heading
        self._headers = headers
        self._tokenizer = tokenizer
        self._limits = limits
        self._wire = wire
        self._turns = turns
        self._form = AnswerForm()
        self._chunks: ChunkWriter | None = None
        self._completion = Completion()
        self._stream: web.StreamResponse | None = None
        self._is_sending = False

    async def receive_spec(
        self, upload: Upload[pb.GenerateRequest], call: Call
    ) -> tuple[pb.GenerateSpec, Mapping[str, memoryview]]:
        """See `servicer.ReceiveSpec`."""
        with call.timings.stage("receive"):
            body = await receive_body(upload, call.resources, self._limits, self._wire, self._turns)
            spec, received, self._form = read_chat(body)
        self._chunks = ChunkWriter(self._form, self._heading, self._tokenizer)
        return spec, received

    async def write(self, response: pb.GenerateResponse) -> None:
        """Send a response, or keep it until all have come. The first chunk begins a stream, so that what fails before it has a
        status of its own."""
        assert self._chunks is not None
        for chunk in self._chunks.chunks_of(response):
            if not self._form.is_stream:
                self._completion.add(chunk)
                continue
            self._is_sending = True
            try:
                await self._send_event(json.dumps(chunk, ensure_ascii=False))
            except ConnectionError:
                raise Cancelled("the caller has left") from None
            self._is_sending = False

    async def end(self, error: HttpError | None) -> web.StreamResponse:
        """The response, sent to its end."""
        if self._stream is None:
            if error is not None:
                body, status, headers = error.body, error.status, {**self._headers, **error.headers}
            else:
                assert self._chunks is not None
                body, status, headers = self._completion.whole(self._chunks.usage), 200, dict(self._headers)
            return await send(self._request, json_response(body, status, headers), self._wire.answer_idle_seconds)
        if self._is_sending:  # for too long: nothing can be added to what the client does not read
            _disconnect(self._request)
            return self._stream
        async with _read_within(self._request, self._wire.answer_idle_seconds):
            if error is not None:
                await self._send_event(json.dumps(error.body, ensure_ascii=False))
            await self._send_event("[DONE]")
            await self._stream.write_eof()
        return self._stream

    async def _send_event(self, data: str) -> None:
        if self._stream is None:
            self._stream = web.StreamResponse(headers={**self._headers, **_EVENTS})
            await self._stream.prepare(self._request)
        await self._stream.write(f"data: {data}\n\n".encode())


def json_response(body: Any, status: int, headers: Mapping[str, str]) -> web.Response:
    text = json.dumps(body, ensure_ascii=False)
    return web.Response(text=text, status=status, headers=headers, content_type="application/json")


async def send(request: web.BaseRequest, response: web.StreamResponse, idle_seconds: float) -> web.StreamResponse:
    """Send a whole response; a client that does not read it for that long is disconnected."""
    async with _read_within(request, idle_seconds):
        await response.prepare(request)
        await response.write_eof()
    return response


@contextlib.asynccontextmanager
async def _read_within(request: web.BaseRequest, seconds: float) -> AsyncIterator[None]:
    """Disconnects the client if what is sent inside is not read in that time."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        _disconnect(request)
    except ConnectionError:
        pass  # it has left


def _disconnect(request: web.BaseRequest) -> None:
    if request.transport is not None:
        request.transport.abort()
