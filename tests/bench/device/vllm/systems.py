"""The ways from a clip to tokens, each asked in the same way."""

from __future__ import annotations

import base64
import itertools
import json
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import aiohttp
import grpc.aio

from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.traffic.seed import TEXT
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from tests.bench.device.asking import TIMEOUT_SECONDS, ask, later_messages, question
from tests.bench.device.clips import SEED, clip
from tests.bench.device.vllm.servers import SERVED_NAME, Engine, VllmServer
from tests.bench.service.watched import WatchedServer


@dataclass(frozen=True, slots=True)
class Workload:
    """One question: the seed clip at `fps` frames a second, 50 tokens of text, a greedy answer of `max_tokens`."""

    fps: float
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one question. Times count from before the question was sent.

    Attributes:
        prompt_token_count: 0 where the way does not tell.
    """

    first_token_seconds: float
    whole_seconds: float
    token_count: int
    prompt_token_count: int = 0


Ask = Callable[[bytes, int], Awaitable[Reply]]
"""Asks about a clip in the turn of that number of a chat about it; many may be under way at a time."""


class System(Protocol):
    """A way to get an answer."""

    @property
    def name(self) -> str: ...

    def cpu_seconds(self) -> float:
        """Of all processes that serve it, so far; not of the callers."""

    def connected(self, workload: Workload) -> AbstractAsyncContextManager[Ask]:
        """Ready to be asked, in the running event loop."""


class HttpSystem:
    """`vllm serve` over HTTP, which reads and processes the clip itself."""

    def __init__(self, name: str, server: VllmServer) -> None:
        self.name = name
        self._server = server

    def cpu_seconds(self) -> float:
        return self._server.cpu_seconds()

    @asynccontextmanager
    async def connected(self, workload: Workload) -> AsyncGenerator[Ask, None]:
        url = f"http://{self._server.address}/v1/chat/completions"
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

            async def ask_once(file: bytes, turn: int) -> Reply:
                body = _chat_request(workload, file, turn)
                began, first_token_seconds = time.perf_counter(), 0.0
                usage: dict[str, int] = {}
                async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
                    if answer.status != 200:
                        raise aiohttp.ClientError(f"{answer.status}: {(await answer.text())[:500]}")
                    # vLLM sends its first event when it has the first token.
                    async for line in answer.content:
                        if line.startswith(b"data: {"):
                            first_token_seconds = first_token_seconds or time.perf_counter() - began
                            event = json.loads(line[6:])
                            if "error" in event:
                                raise aiohttp.ClientError(str(event["error"])[:500])
                            usage = event.get("usage") or usage
                return Reply(
                    first_token_seconds,
                    time.perf_counter() - began,
                    usage.get("completion_tokens", 0),
                    usage.get("prompt_tokens", 0),
                )

            yield ask_once


class ServiceSystem:
    """This service in front of vLLM, by its gRPC or in Triton."""

    def __init__(self, name: str, service: WatchedServer, server: Engine) -> None:
        self.name = name
        self._service = service
        self._server = server

    def cpu_seconds(self) -> float:
        return self._service.cpu_seconds() + self._server.cpu_seconds()

    @asynccontextmanager
    async def connected(self, workload: Workload) -> AsyncGenerator[Ask, None]:
        async with grpc.aio.insecure_channel(self._service.address, options=CHANNEL_OPTIONS) as channel:
            stub = pb_grpc.PreprocessorStub(channel)

            async def ask_once(file: bytes, turn: int) -> Reply:
                answer = await ask(stub, question(workload.fps, workload.max_tokens, file=file, turn=turn))
                return Reply(
                    answer.first_token_seconds, answer.whole_seconds, len(answer.token_ids), answer.prompt_token_count
                )

            yield ask_once


_numbers = itertools.count()


def unique_clip() -> bytes:
    """The seed clip with a last box that no reader looks at: other bytes, so that no cache knows it, and the same pictures."""
    box = b"free" + os.getpid().to_bytes(8, "big") + next(_numbers).to_bytes(8, "big") + os.urandom(8)
    return clip(SEED) + (4 + len(box)).to_bytes(4, "big") + box


def _chat_request(workload: Workload, file: bytes, turn: int) -> bytes:
    url = "data:video/mp4;base64," + base64.b64encode(file).decode()
    return json.dumps(
        {
            "model": SERVED_NAME,
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": TEXT}],
                },
                *({"role": role, "content": text} for role, text in later_messages(turn)),
            ],
            "media_io_kwargs": {"video": {"num_frames": -1, "fps": workload.fps}},
            "max_tokens": workload.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
