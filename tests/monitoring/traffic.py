"""A service after calls of all kinds: each kind of media, a response, an error, a trace."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio

from engine_client import Endpoints
from engine_client.testing import FakeEngine
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import Caller, chat, image, serving, video
from tests.waiting import PATIENCE_SECONDS

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
_METADATA = (("traceparent", f"00-{TRACE_ID}-00f067aa0ba902b7-01"),)


@asynccontextmanager
async def observed_service(model: Model) -> AsyncIterator[Caller]:
    """A service with an engine; nothing has happened to it yet."""
    engine = Endpoints({"engine-a:8001": FakeEngine([11, 12, 13])})
    async with serving(model, engine) as caller:
        yield caller


async def call_everything(caller: Caller) -> None:
    """One call of each method, and one that is refused."""
    clip = moving_shapes_clip(seconds=2, width=96, height=64)
    prompt = chat(video("clip", clip), image("photo", photo(90, 60)), "what is it?")
    await _exchange(caller.stub.Prepare, pb.PrepareRequest(spec=prompt))
    parameters = pb.GenerationParameters(max_tokens=3)
    await _exchange(
        caller.stub.Generate, pb.GenerateRequest(spec=pb.GenerateSpec(prompt=prompt, parameters=parameters))
    )
    with contextlib.suppress(grpc.aio.AioRpcError):
        await _exchange(caller.stub.Prepare, pb.PrepareRequest(spec=chat(image("photo", b"x"))))
    await caller.stub.GetModel(pb.GetModelRequest(), timeout=PATIENCE_SECONDS)
    metrics = caller.server.metrics
    with metrics.time_fetch("https"):
        metrics.fetched_bytes.labels("https").inc(1)


async def _exchange(method: object, message: object) -> None:
    async def messages() -> AsyncIterator[object]:
        yield message

    async for _ in method(messages(), metadata=_METADATA, timeout=PATIENCE_SECONDS):  # type: ignore[operator]
        pass
