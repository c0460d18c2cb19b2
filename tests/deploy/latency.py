"""The latency that Envoy adds: the same calls with and without it, in turn.

    python -m tests.deploy.latency

Prints the median of each kind of call and the ratio. Only ratios mean something on a machine that does other things too.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc.aio

from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from tests.deploy.calls import BegunAnswer, prepare
from tests.deploy.envoy import running_envoy
from tests.deploy.replicas import running_replicas
from tests.media import moving_shapes_clip, photo

Call = Callable[[grpc.aio.Channel], Awaitable[object]]
PHOTO = photo(640, 480)
CLIP = moving_shapes_clip(seconds=2, width=640, height=480)


async def get_model(channel: grpc.aio.Channel) -> None:
    await pb_grpc.PreprocessorStub(channel).GetModel(pb.GetModelRequest())


async def prepare_photo(channel: grpc.aio.Channel) -> None:
    await prepare(channel, PHOTO)


async def prepare_clip(channel: grpc.aio.Channel) -> None:
    answer = BegunAnswer(channel, CLIP)
    await answer.begin()
    await answer.finish()


KINDS: tuple[tuple[str, Call, int], ...] = (
    ("GetModel, no work", get_model, 400),
    ("Prepare, a photo of 640x480", prepare_photo, 150),
    ("Prepare, 50 MB of pixels", prepare_clip, 12),
)


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        async with (
            running_replicas(directory, 1, "--memory-budget", "1GiB") as (replica,),
            running_envoy(directory, [replica.port]) as envoy,
            grpc.aio.insecure_channel(replica.address, options=CHANNEL_OPTIONS) as direct,
            grpc.aio.insecure_channel(envoy.address, options=CHANNEL_OPTIONS) as balanced,
        ):
            print(f"{'call':<30} {'direct':>10} {'by Envoy':>10} {'ratio':>7}")
            for name, call, count in KINDS:
                without, with_envoy = await _compare(call, direct, balanced, count)
                print(f"{name:<30} {without * 1e3:>7.2f} ms {with_envoy * 1e3:>7.2f} ms {with_envoy / without:>7.2f}")


async def _compare(call: Call, direct: grpc.aio.Channel, balanced: grpc.aio.Channel, count: int) -> tuple[float, float]:
    """Median seconds over each of the two channels, one call on the one, one on the other."""
    spent: list[list[float]] = [[], []]
    for round_number in range(count + 2):
        for channel, seconds in zip((direct, balanced), spent, strict=True):
            begun = time.perf_counter()
            await call(channel)
            if round_number >= 2:  # connections are made
                seconds.append(time.perf_counter() - begun)
    return statistics.median(spent[0]), statistics.median(spent[1])


if __name__ == "__main__":
    asyncio.run(main())
