"""A real Triton is replaced behind three real replicas and the real Envoy, under load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from deploy.triton.local_server import TritonServer
from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from tests.deploy.calls import SECONDS, prepare
from tests.deploy.envoy import Envoy, running_envoy
from tests.deploy.replicas import Replica, running_replicas
from tests.engine.served import FINISH, SCRIPTED_PROFILE
from tests.engine.servers import SCRIPTED_REPOSITORY, serving
from tests.media import photo
from tests.service.conftest import chat, image

pytestmark = pytest.mark.timeout(300)  # replicas take seconds to start, more on a busy machine

PHOTO = photo(160, 120)
GENERATE = pb.GenerateRequest(
    spec=pb.GenerateSpec(
        prompt=chat("What is this?", image(data=PHOTO)), parameters=pb.GenerationParameters(max_tokens=3)
    )
)


@dataclass(frozen=True, slots=True)
class Fleet:
    triton: TritonServer
    replicas: list[Replica]
    envoy: Envoy
    channel: grpc.aio.Channel

    @property
    def ports(self) -> set[int]:
        return {replica.port for replica in self.replicas}

    async def generate(self) -> tuple[grpc.StatusCode, str]:
        """How one `Generate` ends: OK with its tokens, or an error and what it says.

        By the blocking API: where a call is refused while it is still sent, grpc.aio may say INTERNAL for whatever it was.
        """

        def call() -> tuple[grpc.StatusCode, str]:
            with grpc.insecure_channel(self.envoy.address, options=CHANNEL_OPTIONS) as channel:
                answer = pb_grpc.PreprocessorStub(channel).Generate(iter([GENERATE]), timeout=SECONDS)
                try:
                    tokens = [token for message in answer for token in message.delta.token_ids]
                except grpc.RpcError:
                    return answer.code(), answer.details()
                return grpc.StatusCode.OK, str(tokens)

        return await asyncio.to_thread(call)


@pytest_asyncio.fixture
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    directory = tmp_path_factory.mktemp("fleet")
    profile = directory / "engine.toml"
    profile.write_text(SCRIPTED_PROFILE.format(ending=FINISH))
    async with AsyncExitStack() as stack:
        triton = stack.enter_context(serving("scripted", SCRIPTED_REPOSITORY))
        engine = ("--engine", triton.grpc_address, "--engine-model", "scripted", "--engine-profile", str(profile))
        options = (*engine, "--engine-transport", "grpc", "--memory-budget", "256MiB")
        replicas = await stack.enter_async_context(running_replicas(directory, 3, *options))
        envoy = await stack.enter_async_context(running_envoy(directory, [replica.port for replica in replicas]))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(envoy.address, options=CHANNEL_OPTIONS))
        yield Fleet(triton, replicas, envoy, channel)


async def test_during_a_triton_rollout_prepare_is_served_and_generate_is_unavailable(
    fleet: Fleet,
) -> None:
    await fleet.envoy.until_healthy(fleet.ports, "generate")
    is_over = asyncio.Event()

    async def keep_preparing() -> list[str]:
        digests = []
        while not is_over.is_set():
            digests.append(await prepare(fleet.channel, PHOTO))
        return digests

    async def keep_generating() -> list[tuple[grpc.StatusCode, str]]:
        ends = []
        while not is_over.is_set():
            ends.append(await fleet.generate())
        return ends

    preparing = [asyncio.create_task(keep_preparing()) for _ in range(2)]
    generating = asyncio.create_task(keep_generating())
    assert await fleet.generate() == (grpc.StatusCode.OK, "[0, 1, 2]")

    await asyncio.to_thread(fleet.triton.stop)
    await fleet.envoy.until_healthy(set(), "generate")
    assert await fleet.envoy.healthy_ports() == fleet.ports, "an engine's outage took replicas out"
    code, text = await fleet.generate()
    assert code is grpc.StatusCode.UNAVAILABLE
    assert text.startswith("no replica can take this call now")

    await asyncio.to_thread(fleet.triton.restart)
    async with asyncio.timeout(SECONDS):
        while (await fleet.generate())[0] is not grpc.StatusCode.OK:
            pass
    is_over.set()
    assert len({digest for digests in await asyncio.gather(*preparing) for digest in digests}) == 1
    ends = await generating
    assert {text for code, text in ends if code is grpc.StatusCode.OK} == {"[0, 1, 2]"}
    assert {end for end in ends if end[0] not in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)} == set()
