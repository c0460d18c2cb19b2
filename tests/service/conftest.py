"""A real server on free ports, and a caller's view of it."""

from __future__ import annotations

import asyncio
import os
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Unpack

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from engine_client import EngineClient
from preprocessor.client import CallFailed, Client, Credentials, Parameters, PrepareResult, Prompt
from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.config import EngineSettings, Limits, ServeSettings
from preprocessor.models.family import Model
from preprocessor.models.loaded import LoadedModel
from preprocessor.service import refused_uploads
from preprocessor.service.server import Server
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from tests.fork_servers import fork_server_of
from tests.service.node import node  # noqa: F401  # a fixture
from tests.waiting import PATIENCE_SECONDS, eventually

FRONT_COUNT = int(os.environ.get("PREPROCESSOR_FRONTS", "1"))
"""Of every service here: see `tests/conftest.py`."""
PREPARE = "/preprocessor.v1.Preprocessor/Prepare"
ONE_CALL = 0.001
"""A quota of one call, and the next after a quarter of an hour: no test takes so long."""


@dataclass
class Caller:
    """Calls one server as a gateway would, outside the test's event loop."""

    server: Server
    channel: grpc.aio.Channel

    @property
    def stub(self) -> pb_grpc.PreprocessorAsyncStub:
        return pb_grpc.PreprocessorStub(self.channel)

    def client(self) -> Client:
        """One that makes every call once, over a connection of its own."""
        return Client(self.server.address, Credentials(insecure=True), retry_seconds=0)

    async def send(
        self, messages: Iterable[pb.PrepareRequest | bytes], metadata: Sequence[tuple[str, str]] = ()
    ) -> list[pb.PrepareResponse]:
        """What `Prepare` answers to messages, bytes sent as they are.

        By the blocking API: grpc.aio may report INTERNAL if the service ends a call during its upload.
        """
        raw = (one if isinstance(one, bytes) else one.SerializeToString() for one in messages)

        def call() -> list[pb.PrepareResponse]:
            with grpc.insecure_channel(self.server.address, options=CHANNEL_OPTIONS) as channel:
                method: grpc.StreamStreamMultiCallable[bytes, pb.PrepareResponse] = channel.stream_stream(
                    PREPARE, response_deserializer=pb.PrepareResponse.FromString
                )
                return list(method(raw, metadata=tuple(metadata)))

        return await asyncio.to_thread(call)

    async def prepare(self, spec: pb.PrepareSpec, files: Mapping[str, bytes] | None = None) -> PrepareResult:
        def call() -> PrepareResult:
            with self.client() as client:
                return client.prepare(Prompt(spec, files or {}), timeout_seconds=PATIENCE_SECONDS)

        return await asyncio.to_thread(call)

    async def generate(
        self, spec: pb.PrepareSpec, files: Mapping[str, bytes] | None = None, **parameters: Unpack[Parameters]
    ) -> list[pb.GenerateResponse]:
        def call() -> list[pb.GenerateResponse]:
            prompt = Prompt(spec, files or {})
            with (
                self.client() as client,
                client.generate(prompt, timeout_seconds=PATIENCE_SECONDS, **parameters) as answer,
            ):
                deltas = [pb.GenerateResponse(delta=delta) for delta in answer]
                header = pb.GenerateResponse(header=answer.header)
                return [header, *deltas, pb.GenerateResponse(completion=answer.completion)]

        return await asyncio.to_thread(call)

    async def get(self, path: str) -> tuple[int, str]:
        """Status and body of a GET on the port of probes and metrics."""

        def fetch() -> tuple[int, str]:
            try:
                with urllib.request.urlopen(
                    f"http://{self.server.http_address}{path}", timeout=PATIENCE_SECONDS
                ) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()

        return await asyncio.to_thread(fetch)

    async def samples(self, *, under_way: bool = False) -> dict[tuple[str, ...], float]:
        """What `/metrics` says, by name and label values, these in the order of their labels' names.

        A call is counted just after its caller has its status, so this waits until none is open, unless some are `under_way`.
        """
        if not under_way:
            await eventually(lambda: self.server.metrics.open_call_count() == 0)
        status, text = await self.get("/metrics")
        assert status == 200
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def refusal(self, spec: pb.PrepareSpec, files: Mapping[str, bytes] | None = None) -> CallFailed:
        """The error of a request; the next request must succeed."""
        with pytest.raises(CallFailed) as caught:
            await self.prepare(spec, files)
        assert (await self.prepare(chat("still there?"))).header.token_count > 0
        return caught.value


@asynccontextmanager
async def serving(
    model: LoadedModel,
    engine: EngineClient | None = None,
    limits: Limits | None = None,
    engine_settings: EngineSettings | None = None,
    **settings: Any,
) -> AsyncIterator[Caller]:
    """A server for one test, with its own settings."""
    free: dict[str, Any] = {
        "address": "127.0.0.1:0",
        "http_address": "127.0.0.1:0",
        "worker_count": 2,
        "drain_seconds": 5.0,
        "front_count": FRONT_COUNT,
    }
    options = ServeSettings(
        **{**free, **settings}, limits=limits or Limits(), engine=engine_settings or EngineSettings()
    )
    fork_server = None if options.is_in_process else await fork_server_of(model)
    async with (
        Server(options, model, engine, fork_server) as server,
        grpc.aio.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel,
    ):
        yield Caller(server, channel)


@pytest_asyncio.fixture(scope="session")
async def caller(model: Model) -> AsyncIterator[Caller]:
    """A server shared by most tests; they must not change its state."""
    async with serving(model) as one:
        yield one


@pytest.fixture
def refusals_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused client on `grpc.aio` that neither sends nor ends its stream gets its status at once, not after five seconds."""
    monkeypatch.setattr(refused_uploads, "TIMEOUT_SECONDS", 0.0)


def chat(*parts: str | pb.Media, **spec: object) -> pb.PrepareSpec:
    """One user message of texts and media, in the order given."""
    message = pb.Message(role="user")
    media = []
    for part in parts:
        if isinstance(part, str):
            message.parts.add(text=part)
        else:
            message.parts.add(media_key=part.key)
            media.append(part)
    return pb.PrepareSpec(chat=pb.ChatPrompt(messages=[message]), media=media, **spec)  # type: ignore[arg-type]


def salted(spec: pb.PrepareSpec, number: int) -> pb.PrepareSpec:
    """The same request, whose media are new to the service."""
    own = pb.PrepareSpec(cache_salt=str(number))
    own.MergeFrom(spec)
    return own


def video(key: str = "clip", data: bytes | None = None, **fields: object) -> pb.Media:
    """A video: inline if its bytes are given, else uploaded in chunks."""
    return _media(pb.MODALITY_VIDEO, key, data, fields)


def image(key: str = "photo", data: bytes | None = None, **fields: object) -> pb.Media:
    return _media(pb.MODALITY_IMAGE, key, data, fields)


def _media(modality: pb.Modality.ValueType, key: str, data: bytes | None, fields: Mapping[str, object]) -> pb.Media:
    source: dict[str, object] = {"chunked": {}} if data is None else {"inline_data": data}
    return pb.Media(key=key, modality=modality, **source, **fields)  # type: ignore[arg-type]


async def eventually_answered(ask: Callable[[], Awaitable[object]], *passing: grpc.StatusCode) -> None:
    """Repeat a call until it succeeds; only the given status codes are tolerated meanwhile."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            await ask()
            return
        except CallFailed as error:
            assert error.code in passing, error
            assert time.monotonic() < deadline


def in_flight(caller: Caller) -> float:
    """Calls of `Prepare` that the service works on."""
    return (
        caller.server.metrics.registry.get_sample_value("preprocessor_requests_in_flight", {"method": "Prepare"}) or 0
    )
