"""The caller's metadata that is forwarded to the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator

from engine_client.testing import FakeEngine
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.service.conftest import chat, serving
from tests.waiting import PATIENCE_SECONDS

TRACE = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
STATE = ("tracestate", "vendor=1")


async def test_the_engine_gets_trace_context_and_no_other_metadata(model: Model) -> None:
    engine = FakeEngine(token_ids=(11,))

    async def messages() -> AsyncIterator[pb.GenerateRequest]:
        parameters = pb.GenerationParameters(max_tokens=1)
        yield pb.GenerateRequest(spec=pb.GenerateSpec(prompt=chat("hello"), parameters=parameters))

    async with serving(model, engine) as caller:
        own = (("authorization", "Bearer of-the-caller"), ("x-request-id", "one"), ("traceparent-bin", b"\x00"))
        call = caller.stub.Generate(messages(), metadata=(TRACE, STATE, *own), timeout=PATIENCE_SECONDS)
        async for _ in call:
            pass
    [along] = engine.metadata
    assert sorted(along) == [TRACE, STATE]
