"""Tensors by reference, through a real Triton: who can read them, what happens when it cannot, and what is left behind."""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import signal
import subprocess
import sys
import textwrap
import zlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from deploy.triton.local_server import TritonServer
from engine_client import (
    EngineFailed,
    EngineRequest,
    EngineUnavailable,
    OwnedRegion,
    RowProgress,
    SamplingParameters,
    Transport,
    TritonEngine,
)
from engine_client.triton import kserve, kserve_regions
from engine_client.triton.kserve_regions import RegisteredRegion
from engine_client.triton.registration import RegionRegistration
from tests.engine.prompts import video_prompt
from tests.engine.servers import LONG_ANSWER, SCRIPTED_REPOSITORY, answer, serving
from tests.waiting import PATIENCE_SECONDS, eventually

ROW_COUNT = 12_000  # 18 MB: two pieces by reference
CHECKSUM = 4  # tests/engine/models/scripted


@pytest.fixture
def region() -> Iterator[OwnedRegion]:
    with OwnedRegion.create(64 << 20) as made:
        yield made


@pytest_asyncio.fixture
async def engine(pieces_triton: TritonServer, region: OwnedRegion) -> AsyncIterator[TritonEngine]:
    """A client that uses `region`, or fails."""
    async with by_reference(pieces_triton, region) as client:
        yield client


def by_reference(server: TritonServer, region: OwnedRegion, model: str = "pieces") -> TritonEngine:
    return TritonEngine(server.grpc_address, model, shared_region=region, transport=Transport.SHARED_MEMORY)


def rows_in(region: OwnedRegion, seed: int = 0, offset: int = 8192, row_count: int = ROW_COUNT) -> np.ndarray:
    rows = np.frombuffer(region.buffer, np.uint8, row_count * 1536, offset).reshape(row_count, 1536)
    rows[:] = np.random.default_rng(seed).integers(0, 256, rows.shape, np.uint8)
    return rows


def request(rows: np.ndarray, pending: RowProgress | None = None) -> EngineRequest:
    return EngineRequest("r", {"input_ids": np.ones(1, np.int32), "pixel_patches": rows}, pending=pending)


def expected(rows: np.ndarray, message_count: int) -> list[int]:
    return [message_count, len(rows), zlib.crc32(rows.data) & 0x7FFFFFFF]


async def ask(server: TritonServer, method: str, wire: bytes) -> bytes:
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        call: Any = channel.unary_unary(kserve.SERVICE + method)
        answered = await call(wire)
        assert isinstance(answered, bytes)
        return answered


async def registered(server: TritonServer, region: OwnedRegion) -> list[RegisteredRegion]:
    """What the server has of that region."""
    wire = await ask(server, "SystemSharedMemoryStatus", kserve_regions.encode_region_status())
    return [each for each in kserve_regions.decode_region_status(wire) if each.key == region.key]


async def forget(server: TritonServer, region: OwnedRegion) -> None:
    """Make the server forget the region, as a restart that nobody noticed would."""
    [known] = await registered(server, region)
    await ask(server, "SystemSharedMemoryUnregister", kserve_regions.encode_region_unregister(known.name))


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Levels and texts that say how tensors go."""
    said = (each for each in caplog.records if each.name.startswith("engine_client"))
    return [(each.levelname, each.getMessage()) for each in said if "tensors go to" in each.getMessage()]


async def test_rows_in_the_region_arrive_whole(engine: TritonEngine, region: OwnedRegion) -> None:
    rows = rows_in(region)
    assert await answer(engine, request(rows)) == expected(rows, message_count=3)


async def test_rows_beside_the_region_arrive_too(engine: TritonEngine, region: OwnedRegion) -> None:
    rows = rows_in(region).copy()
    assert (await answer(engine, request(rows)))[1:] == expected(rows, 0)[1:]


async def test_rows_arrive_while_they_are_written(engine: TritonEngine, region: OwnedRegion) -> None:
    rows, pending = rows_in(region), RowProgress("pixel_patches")
    final = rows.copy()
    rows[:] = 0
    asking = asyncio.create_task(answer(engine, request(rows, pending)))
    for start in range(0, ROW_COUNT, 1000):
        rows[start : start + 1000] = final[start : start + 1000]
        pending.finish(start + 1000)
        await asyncio.sleep(0)
    assert (await asking)[1:] == expected(final, 0)[1:]


async def test_a_model_that_takes_no_pieces_reads_the_region_too(
    scripted_triton: TritonServer, region: OwnedRegion
) -> None:
    rows = rows_in(region)
    tensors: dict[str, np.ndarray] = {"input_ids": np.array([CHECKSUM], np.int32), "pixel_patches": rows}
    async with by_reference(scripted_triton, region, "scripted") as engine:
        got = await answer(engine, EngineRequest("r", tensors, SamplingParameters(max_tokens=1)))
    assert got[-1] == zlib.crc32(rows.data) & 0x7FFFFFFF


async def test_tokens_are_those_of_the_same_prompt_by_grpc(
    triton: TritonServer, region: OwnedRegion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine_client.triton.messages.MIN_REFERRED_BYTES", 1)
    prompt = video_prompt()
    count = len(prompt["pixel_patches"])
    shared = rows_in(region, row_count=count)
    shared[:] = prompt["pixel_patches"]
    async with TritonEngine(triton.grpc_address) as plain:
        usual = await answer(plain, EngineRequest("grpc", prompt))
    async with by_reference(triton, region, "vlm_transformers") as engine:
        assert await answer(engine, EngineRequest("shm", prompt | {"pixel_patches": shared})) == usual


async def test_it_is_registered_once_by_any_number_of_requests_and_taken_back_at_the_end(
    pieces_triton: TritonServer, region: OwnedRegion, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rows = rows_in(region)
    async with TritonEngine(pieces_triton.grpc_address, "pieces", shared_region=region) as engine:
        answers = await asyncio.gather(*(answer(engine, request(rows)) for _ in range(8)))
        assert answers == [expected(rows, 3)] * 8
        assert len(await registered(pieces_triton, region)) == 1
    assert await registered(pieces_triton, region) == []
    [(level, text)] = lines(caplog)
    assert level == "INFO" and "by shared memory" in text and region.key in text


async def test_two_clients_may_share_an_engine_and_a_region(pieces_triton: TritonServer, region: OwnedRegion) -> None:
    rows = rows_in(region)
    async with by_reference(pieces_triton, region) as one:
        async with by_reference(pieces_triton, region) as other:
            assert await answer(one, request(rows)) == await answer(other, request(rows)) == expected(rows, 3)
            assert len(await registered(pieces_triton, region)) == 1
        assert await answer(one, request(rows)) == expected(rows, 3)
    assert await registered(pieces_triton, region) == []


async def test_a_client_goes_on_when_the_one_that_registered_its_region_ends(
    pieces_triton: TritonServer, region: OwnedRegion
) -> None:
    rows = rows_in(region)
    async with by_reference(pieces_triton, region) as later:
        async with by_reference(pieces_triton, region) as first:
            assert await answer(first, request(rows)) == await answer(later, request(rows))
        assert await answer(later, request(rows)) == expected(rows, 3)
    assert await registered(pieces_triton, region) == []


async def test_an_engine_that_forgot_the_region_is_told_again_and_answers_all_the_same(
    pieces_triton: TritonServer, engine: TritonEngine, region: OwnedRegion, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rows = rows_in(region)
    await answer(engine, request(rows))
    await forget(pieces_triton, region)
    caplog.clear()
    answers = await asyncio.gather(*(answer(engine, request(rows)) for _ in range(8)))
    assert answers == [expected(rows, 3)] * 8
    assert len(lines(caplog)) == 1, "eight requests met it; one registered"


async def test_rows_that_were_sent_before_the_engine_forgot_are_sent_again(
    pieces_triton: TritonServer, engine: TritonEngine, region: OwnedRegion
) -> None:
    rows, pending = rows_in(region), RowProgress("pixel_patches")
    asking = asyncio.create_task(answer(engine, request(rows, pending)))
    pending.finish(5000)
    await eventually(lambda: [stream.sent_message_count for stream in engine._streams] == [2])
    await eventually(lambda: [stream.unanswered_message_count for stream in engine._streams] == [1])
    await forget(pieces_triton, region)
    pending.finish(ROW_COUNT)
    assert (await asking)[1:] == expected(rows, 0)[1:]


async def test_after_a_restart_the_next_requests_go_by_reference_again(
    doomed_pieces_triton: TritonServer, region: OwnedRegion, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rows = rows_in(region)
    async with by_reference(doomed_pieces_triton, region) as engine:
        await answer(engine, request(rows))
        await asyncio.to_thread(doomed_pieces_triton.restart)
        await eventually_answers(engine, request(rows))
        caplog.clear()
        answers = await asyncio.gather(*(answer(engine, request(rows)) for _ in range(8)))
        assert answers == [expected(rows, 3)] * 8
        assert len(await registered(doomed_pieces_triton, region)) == 1


async def eventually_answers(engine: TritonEngine, asked: EngineRequest) -> None:
    """A connection that broke fails what was sent on it; nothing else may."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                await answer(engine, asked)
                return
            except EngineUnavailable:
                await asyncio.sleep(0.05)


async def test_an_engine_with_another_dev_shm_gets_bytes_or_a_clear_refusal(
    region: OwnedRegion, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rows = rows_in(region)
    with serving("pieces", SCRIPTED_REPOSITORY, shared_memory_bytes=64 << 20) as server:
        async with TritonEngine(server.grpc_address, "pieces", shared_region=region) as automatic:
            for _ in range(2):
                assert (await answer(automatic, request(rows)))[1:] == expected(rows, 0)[1:]
        [(level, text)] = lines(caplog)
        assert level == "INFO" and "by gRPC" in text and "Unable to open shared memory region" in text
        async with by_reference(server, region) as forced:
            with pytest.raises(EngineUnavailable, match=rf"cannot read OwnedRegion\('{region.key}.*Unable to open"):
                await answer(forced, request(rows))


async def test_a_region_that_is_no_longer_whole_is_not_used(
    pieces_triton: TritonServer, region: OwnedRegion, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_in(region, offset=0, row_count=2)
    os.truncate(Path("/dev/shm") / region.key[1:], mmap.PAGESIZE)
    async with TritonEngine(pieces_triton.grpc_address, "pieces", shared_region=region) as automatic:
        assert await answer(automatic, request(rows)) == expected(rows, 1)
    async with by_reference(pieces_triton, region) as forced:
        with pytest.raises(EngineUnavailable, match="failed to register shared memory region"):
            await answer(forced, request(rows))


async def test_losing_the_region_for_good_warns_and_goes_on_with_bytes(
    doomed_pieces_triton: TritonServer, region: OwnedRegion, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_in(region)
    async with TritonEngine(doomed_pieces_triton.grpc_address, "pieces", shared_region=region) as engine:
        await answer(engine, request(rows))
        await forget(doomed_pieces_triton, region)
        (Path("/dev/shm") / region.key[1:]).unlink()
        assert (await answer(engine, request(rows)))[1:] == expected(rows, 0)[1:]
    assert [level for level, _ in lines(caplog)] == ["WARNING"]


async def test_grpc_can_be_forced(pieces_triton: TritonServer, region: OwnedRegion) -> None:
    rows = rows_in(region)
    async with TritonEngine(
        pieces_triton.grpc_address, "pieces", shared_region=region, transport=Transport.GRPC
    ) as engine:
        assert (await answer(engine, request(rows)))[1:] == expected(rows, 0)[1:]
        assert await registered(pieces_triton, region) == []


def test_shared_memory_cannot_be_forced_without_a_region() -> None:
    with pytest.raises(ValueError, match="shared-memory without a shared_region"):
        TritonEngine("nowhere:1", transport=Transport.SHARED_MEMORY)


async def test_a_name_that_another_region_has_is_taken_over(pieces_triton: TritonServer, region: OwnedRegion) -> None:
    async with TritonEngine(pieces_triton.grpc_address, "pieces") as engine:
        registration = RegionRegistration(region, engine._connection.ask, "it", is_required=True)
        wanted = registration._wanted
        with OwnedRegion.create(mmap.PAGESIZE) as other:
            stale = RegisteredRegion(wanted.name, other.key, 0, other.byte_size)
            await ask(pieces_triton, "SystemSharedMemoryRegister", kserve_regions.encode_region_register(stale))
            assert await registration.acquire() is not None
            assert await registered(pieces_triton, region) == [wanted]
            registration.forget()
            assert await registration.acquire() is not None, "its own is found again"
            await registration.close()
    assert await registered(pieces_triton, region) == []


KILLED_CLIENT = """
    import asyncio, sys
    import numpy as np
    from engine_client import EngineRequest, OwnedRegion, Transport, TritonEngine

    async def main():
        region = OwnedRegion.create(1 << 20)
        engine = TritonEngine(sys.argv[1], "pieces", shared_region=region, transport=Transport.SHARED_MEMORY)
        rows = np.frombuffer(region.buffer, np.uint8, 153_600).reshape(100, 1536)
        async for _ in engine.generate(EngineRequest("r", {"input_ids": np.ones(1, np.int32), "pixel_patches": rows})):
            pass
        print(region.key, flush=True)
        sys.stdin.read()

    asyncio.run(main())
"""


async def test_what_a_killed_client_left_in_the_engine_is_taken_back(
    pieces_triton: TritonServer, region: OwnedRegion
) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED_CLIENT), pieces_triton.grpc_address]
    client = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert client.stdout is not None
    key = (await client.stdout.readline()).decode().strip()
    client.send_signal(signal.SIGKILL)
    await client.wait()

    async def keys() -> list[str]:
        wire = await ask(pieces_triton, "SystemSharedMemoryStatus", kserve_regions.encode_region_status())
        return [each.key for each in kserve_regions.decode_region_status(wire)]

    assert key in await keys()
    async with by_reference(pieces_triton, region) as engine:
        await answer(engine, request(rows_in(region, row_count=100)))
        assert await keys() == [region.key]
    (Path("/dev/shm") / key[1:]).unlink(missing_ok=True)  # any service that starts on this machine removes it


async def test_the_region_is_released_when_the_engine_has_read_it_and_not_before(
    engine: TritonEngine, region: OwnedRegion
) -> None:
    rows, pending, released = rows_in(region), RowProgress("pixel_patches"), asyncio.Event()
    asked = EngineRequest(
        "r",
        {"input_ids": np.ones(1, np.int32), "pixel_patches": rows},
        LONG_ANSWER,
        pending=pending,
        on_released=released.set,
    )
    asking = asyncio.create_task(answer(engine, asked))
    pending.finish(5000)
    await eventually(lambda: [stream.unanswered_message_count for stream in engine._streams] == [1])
    assert not released.is_set(), "rows are still to be sent"
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await released.wait()


async def test_a_request_that_is_never_sent_releases_its_arrays(region: OwnedRegion) -> None:
    released = asyncio.Event()
    asked = EngineRequest("r", {"input_ids": np.ones(1, np.int32)}, on_released=released.set)
    async with TritonEngine("127.0.0.1:1", "pieces", shared_region=region) as engine:
        with pytest.raises(EngineUnavailable):
            await answer(engine, asked)
    assert released.is_set()


async def test_a_server_whose_shared_memory_is_full_says_so_and_goes_on() -> None:
    rows = np.zeros((65_000, 1536), np.uint8)  # 100 MB in one message: it must pass through its 64 MB to the model
    tensors: dict[str, np.ndarray] = {"input_ids": np.array([CHECKSUM], np.int32), "pixel_patches": rows}
    with serving("scripted", SCRIPTED_REPOSITORY, shared_memory_bytes=64 << 20) as server:
        async with TritonEngine(server.grpc_address, "scripted") as engine:
            with pytest.raises(EngineFailed, match="shared memory pool"):
                await answer(engine, EngineRequest("r", tensors))
            assert await answer(engine, EngineRequest("r", tensors | {"pixel_patches": rows[:10]}))
