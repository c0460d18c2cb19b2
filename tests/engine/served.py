"""The service in front of real Tritons, as its settings connect it, and what it must not leave behind."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from deploy.triton.local_server import TritonServer
from engine_client import Endpoints, TritonEngine
from engine_client.triton import kserve, kserve_regions, stream
from engine_client.triton.kserve_regions import RegisteredRegion
from preprocessor import pipeline
from preprocessor.config import EngineSettings
from preprocessor.models.family import Model
from preprocessor.service.reading import read_spec
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import moving_shapes_clip
from tests.service.conftest import Caller, chat, serving, video
from tests.waiting import PATIENCE_SECONDS, eventually

CLIP = moving_shapes_clip(seconds=2, width=160, height=120)
SPEC = chat(video("clip", CLIP, sampling=pb.Sampling(fps=4)), "What moves?")
"""Half a megabyte of pixels: by reference, where the engine can."""
BUDGET_BYTES = 512 << 20

# What tests/engine/models take of a prompt. `pieces` knows no stop tokens; to `scripted`, `input_ids` says how to end.
PIECES_PROFILE = """
other_inputs = "drop"
[inputs.input_ids]
[inputs.pixel_patches]
[inputs.max_tokens]
[inputs.seed]
"""
SCRIPTED_PROFILE = """
other_inputs = "drop"
[inputs.pixel_patches]
[inputs.max_tokens]
[inputs.temperature]
[inputs.top_p]
[inputs.top_k]
[inputs.seed]
[constants.input_ids]
datatype = "INT32"
value = [{ending}]
"""
FINISH, FAIL, CHECKSUM, HELD = 0, 3, 4, 5


@dataclass
class Answer:
    """What came of one `Generate`, to its end or until it broke."""

    kinds: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    code: grpc.StatusCode = grpc.StatusCode.OK
    first_token: asyncio.Event = field(default_factory=asyncio.Event)


async def ask(
    caller: Caller,
    answer: Answer,
    spec: pb.PrepareSpec = SPEC,
    timeout_seconds: float = PATIENCE_SECONDS,
    max_tokens: int = 3,
    **parameters: Any,
) -> Answer:
    """Call `Generate` and take down what comes, in `answer` at once."""
    given = pb.GenerateSpec(prompt=spec, parameters=pb.GenerationParameters(max_tokens=max_tokens, **parameters))
    call = caller.stub.Generate(iter([pb.GenerateRequest(spec=given)]), timeout=timeout_seconds)
    try:
        async for response in call:
            answer.kinds.append(response.WhichOneof("message") or "")
            answer.token_ids += response.delta.token_ids
            if response.delta.token_ids:
                answer.first_token.set()
    except grpc.aio.AioRpcError as error:
        answer.code = error.code()
    return answer


@asynccontextmanager
async def soon_certain() -> AsyncIterator[None]:
    """Memory that an engine may read after its stream broke is free half a second later, and not ten."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stream, "UNCERTAIN_SECONDS", 0.5)
        yield


@asynccontextmanager
async def service_before(
    model: Model, folder: Path, *servers: TritonServer, asks: str, profile: str = "", **engine: object
) -> AsyncIterator[Caller]:
    """A service whose engines are those servers; when it has stopped, nothing of it may be left anywhere.

    Args:
        folder: For the profile's file.
        asks: The engine's model.
        profile: Its text; empty gives the service none.
        engine: More of `EngineSettings`.
    """
    path = folder / "engine.toml"
    path.write_text(profile)
    settings = EngineSettings(
        address=",".join(server.grpc_address for server in servers),
        model=asks,
        profile=str(path) if profile else "",
        **engine,  # type: ignore[arg-type]
    )
    tasks_before = asyncio.all_tasks()
    async with (
        soon_certain(),
        serving(model, engine_settings=settings, memory_budget_bytes=BUDGET_BYTES) as caller,
    ):
        region = caller.server._region
        yield caller
        await assert_at_rest(caller)
    await eventually(lambda: asyncio.all_tasks() <= tasks_before)
    if region is not None:
        assert not is_in_shared_memory(region.key)
        for server in servers:
            if server.is_running:
                assert region.key not in [each.key for each in await registered(server)]


async def assert_at_rest(caller: Caller) -> None:
    """No memory of the budget, no place at a worker, no request at an engine, no stream to it."""
    pool, engine = caller.server.pool, caller.server.engine
    assert isinstance(engine, Endpoints)
    await eventually(lambda: (pool.used_bytes, pool.pending_count, pool.running_count) == (0, 0, 0))
    assert pool.files.leased_bytes == pool.file_cache.size_bytes  # what stays for later requests, and nothing else
    assert pool.rows.leased_bytes == pool.cache.size_bytes
    assert [state.in_flight_count for state in engine.states()] == [0] * len(engine.states())
    # Streams that were left end by themselves, within seconds.
    await eventually(lambda: not any(each._streams or each._shutdowns for each in engines_of(caller)))


def is_in_shared_memory(key: str) -> bool:
    """Whether the region of that key has a file."""
    return Path(f"/dev/shm{key}").exists()


def engines_of(caller: Caller) -> list[TritonEngine]:
    """The clients that the service has of its engines."""
    assert isinstance(caller.server.engine, Endpoints)
    return [endpoint.engine for endpoint in caller.server.engine._endpoints]  # type: ignore[misc]


def sent_whole_count(caller: Caller) -> int:
    """Requests that engines were sent all of, and have not answered to their end."""
    return sum(stream._is_all_sent for engine in engines_of(caller) for stream in engine._streams)


async def until_ready(caller: Caller, *, is_ready: bool = True) -> str:
    """Wait until `/readyz` says so of `Generate`; what it says then."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            status, text = await caller.get("/readyz?method=Generate")
            if (status == 200) is is_ready:
                return text
            await asyncio.sleep(0.05)


async def registered(server: TritonServer) -> list[RegisteredRegion]:
    """The shared memory that the server has."""
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            kserve.SERVICE + "SystemSharedMemoryStatus"
        )
        wire = await call(kserve_regions.encode_region_status())
        assert isinstance(wire, bytes)
        return list(kserve_regions.decode_region_status(wire))


def checksum(model: Model, spec: pb.PrepareSpec = SPEC) -> tuple[int, int]:
    """How many rows of pixels the prompt has, and the CRC-32 of them, as the test models tell it."""
    pixels = pipeline.prepare(model, read_spec(spec)[0]).tensors["pixel_patches"]
    return len(pixels), zlib.crc32(np.ascontiguousarray(pixels).data) & 0x7FFFFFFF
