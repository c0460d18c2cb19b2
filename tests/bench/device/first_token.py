"""Time to the first token, by the form of the pixels and by how they travel."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc.aio

from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from tests.bench.device.asking import Answer, ask, question
from tests.bench.device.engines import WAYS, Way, services, triton, worker_count


def first_token(checkpoint: Path, *, rounds: int, fps: tuple[float, ...]) -> dict[str, Any]:
    """Ask by every way in turn, one request at a time."""
    models = dict.fromkeys((way.form, way.takes_pieces) for way in WAYS)
    options = ("--workers", str(worker_count()), "--memory-budget", "4GiB")
    with (
        tempfile.TemporaryDirectory() as folder,
        triton(models, checkpoint, Path(folder)) as engine,
        services(WAYS, engine.grpc_address, Path(folder), *options) as servers,
    ):
        addresses = {way: server.address for way, server in servers.items()}
        samples = asyncio.run(_measure(addresses, rounds, fps))
    return {"samples": samples, "workers": worker_count(), "rounds": rounds}


async def _measure(addresses: dict[Way, str], rounds: int, fps: tuple[float, ...]) -> list[dict[str, Any]]:
    samples: dict[tuple[Way, float], list[Answer]] = {(way, each): [] for each in fps for way in addresses}
    async with AsyncExitStack() as stack:
        stubs = {way: await stub_of(stack, address) for way, address in addresses.items()}
        for each in fps:
            messages = question(each, max_tokens=1)
            for number in range(-2, rounds):  # the first two warm up: kernels are chosen, memory is filled
                for way, stub in stubs.items():
                    answer = await ask(stub, messages)
                    if number >= 0:
                        samples[way, each].append(answer)
    return [
        {
            "way": way.name,
            "form": way.form,
            "fps": each,
            "first_token_ms": [one.first_token_seconds * 1e3 for one in answers],
            "median_ms": statistics.median(one.first_token_seconds * 1e3 for one in answers),
            "stages_ms": {
                stage: statistics.median(one.stages_ms.get(stage, 0.0) for one in answers)
                for stage in answers[0].stages_ms
            },
        }
        for (way, each), answers in samples.items()
    ]


async def stub_of(stack: AsyncExitStack, address: str) -> Any:
    channel = await stack.enter_async_context(grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS))
    return pb_grpc.PreprocessorStub(channel)
