"""Envoy's retries, with the deployed configuration and a service that fails on request."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as grpc_health

from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from tests.deploy.envoy import running_envoy

SECONDS = 240.0
KEPT_BYTES = 4 << 20
"""request_body_buffer_limit of the configuration."""


@dataclass
class Script(pb_grpc.PreprocessorServicer):
    """A service that ends calls with `code`, `failure_count` times, and then serves them.

    Attributes:
        begins: Whether a message goes out before the failure.
        seen_seconds: Of each call, how long its caller would wait.
    """

    code: grpc.StatusCode = grpc.StatusCode.OK
    failure_count: int = 0
    begins: bool = False
    seen_seconds: list[float] = dataclasses.field(default_factory=list)

    async def Prepare(
        self, requests: AsyncIterator[pb.PrepareRequest], context: Any
    ) -> AsyncIterator[pb.PrepareResponse]:
        self.seen_seconds.append(context.time_remaining())
        async for _ in requests:
            pass
        if self.begins:
            yield pb.PrepareResponse(header=pb.Header(token_count=1))
        if self.failure_count:
            self.failure_count -= 1
            await context.abort(self.code, "as told")
        yield pb.PrepareResponse(report=pb.Report())


@dataclass(frozen=True, slots=True)
class Scripted:
    script: Script
    channel: grpc.aio.Channel

    async def call(self, upload_bytes: int = 0, metadata: tuple[tuple[str, str], ...] = ()) -> grpc.StatusCode:
        """The status of a call that uploads so much."""
        pieces = [pb.MediaChunk(data=bytes(1 << 20)) for _ in range(upload_bytes >> 20)]
        requests = [pb.PrepareRequest(spec=pb.PrepareSpec()), *(pb.PrepareRequest(chunk=piece) for piece in pieces)]
        call: Any = pb_grpc.PreprocessorStub(self.channel).Prepare(iter(requests), timeout=SECONDS, metadata=metadata)
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in call:
                pass
        return await call.code()


@pytest_asyncio.fixture(scope="module")
async def scripted_service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scripted]:
    """Two servers with one script behind Envoy."""
    script, ports = Script(), []  # type: ignore[abstract]  # the other methods are not called
    async with AsyncExitStack() as stack:
        for _ in range(2):
            server = grpc.aio.server(options=(("grpc.max_receive_message_length", -1),))
            pb_grpc.add_PreprocessorServicer_to_server(script, server)
            health = grpc_health.HealthServicer()
            health_pb2_grpc.add_HealthServicer_to_server(health, server)
            await health.set("preprocessor.v1.Preprocessor", health_pb2.HealthCheckResponse.SERVING)
            ports.append(server.add_insecure_port("127.0.0.1:0"))
            await server.start()
            stack.push_async_callback(server.stop, None)
        envoy = await stack.enter_async_context(running_envoy(tmp_path_factory.mktemp("scripted"), ports))
        yield Scripted(script, await stack.enter_async_context(grpc.aio.insecure_channel(envoy.address)))


@pytest.fixture
def scripted(scripted_service: Scripted) -> Scripted:
    scripted_service.script.__init__()  # type: ignore[misc]
    return scripted_service


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"])
async def test_a_refusal_before_any_message_is_retried_on_another_replica(scripted: Scripted, code: str) -> None:
    scripted.script.code, scripted.script.failure_count = grpc.StatusCode[code], 1
    assert await scripted.call() is grpc.StatusCode.OK
    assert len(scripted.script.seen_seconds) == 2


@pytest.mark.parametrize("code", ["INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL", "DEADLINE_EXCEEDED"])
async def test_errors_that_would_recur_are_not_retried(scripted: Scripted, code: str) -> None:
    scripted.script.code, scripted.script.failure_count = grpc.StatusCode[code], 1
    assert await scripted.call() is scripted.script.code
    assert len(scripted.script.seen_seconds) == 1


async def test_a_started_response_is_never_retried(scripted: Scripted) -> None:
    scripted.script.code, scripted.script.failure_count, scripted.script.begins = grpc.StatusCode.UNAVAILABLE, 1, True
    assert await scripted.call() is grpc.StatusCode.UNAVAILABLE
    assert len(scripted.script.seen_seconds) == 1


async def test_retries_are_limited(scripted: Scripted) -> None:
    scripted.script.code, scripted.script.failure_count = grpc.StatusCode.RESOURCE_EXHAUSTED, 100
    assert await scripted.call() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(scripted.script.seen_seconds) == 4


@pytest.mark.parametrize(
    ("size_bytes", "is_tried_again"), [(KEPT_BYTES - (1 << 20), True), (KEPT_BYTES + (1 << 20), False)]
)
async def test_an_upload_is_buffered_for_a_retry_up_to_a_limit(
    scripted: Scripted, size_bytes: int, is_tried_again: bool
) -> None:
    scripted.script.code, scripted.script.failure_count = grpc.StatusCode.UNAVAILABLE, 1
    code = await scripted.call(size_bytes)
    assert code is (grpc.StatusCode.OK if is_tried_again else grpc.StatusCode.UNAVAILABLE)


async def test_a_long_upload_passes(scripted: Scripted) -> None:
    assert await scripted.call(64 << 20) is grpc.StatusCode.OK


async def test_the_caller_s_deadline_reaches_the_service(scripted: Scripted) -> None:
    await scripted.call()
    assert SECONDS / 2 < scripted.script.seen_seconds[0] < SECONDS + 1  # gRPC rounds up


async def test_a_caller_cannot_change_the_retry_policy(scripted: Scripted) -> None:
    scripted.script.code, scripted.script.failure_count = grpc.StatusCode.INTERNAL, 1
    metadata = (("x-envoy-retry-grpc-on", "internal"), ("x-envoy-max-retries", "9"))
    assert await scripted.call(metadata=metadata) is grpc.StatusCode.INTERNAL
