"""The client of Triton before a server that is slow, does not read, or is another one in the middle of a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
import pytest_asyncio

from engine_client import (
    EndpointHealth,
    EndpointPolicy,
    Endpoints,
    EngineDeadlineExceeded,
    EngineFailed,
    EngineRequest,
    EngineUnavailable,
    Fingerprint,
    TritonEngine,
)
from engine_client.contract.tensors import Array
from engine_client.triton import stream
from tests.engine.late_calls import LateCalls
from tests.engine.scripted_triton import ScriptedTriton
from tests.engine.servers import answer
from tests.engine.several import by_name
from tests.engine.vllm_prompts import once_connected, until_ready
from tests.waiting import eventually

PATIENT = EndpointPolicy(
    probe_period_seconds=60.0, min_silence_seconds=60.0, min_backoff_seconds=0.01, max_failures=1000
)
FAMILY = "fingerprint.family"


@pytest_asyncio.fixture
async def server() -> AsyncIterator[ScriptedTriton]:
    async with ScriptedTriton() as scripted:
        yield scripted


@pytest_asyncio.fixture
async def engine(server: ScriptedTriton) -> AsyncIterator[TritonEngine]:
    server.script.parameters = {FAMILY: "one"}
    async with TritonEngine(server.address, "scripted", fingerprint=Fingerprint({"family": "one"})) as client:
        yield client


def text() -> EngineRequest:
    return EngineRequest("r", {"input_ids": np.array([1, 2, 3], np.int32)})


def large(released: asyncio.Event) -> EngineRequest:
    tensors: dict[str, Array] = {"input_ids": np.ones(5, np.int32), "pixel_patches": np.zeros((20_000, 1536), np.uint8)}
    return EngineRequest("r", tensors, on_released=released.set)


# -- a server that does not read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("takes_pieces", [False, True])
async def test_arrays_are_released_though_the_server_has_stopped_reading(
    server: ScriptedTriton, engine: TritonEngine, takes_pieces: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SHUTDOWN_SECONDS", 0.1)
    server.script.is_reading, server.script.takes_pieces = False, takes_pieces
    released = asyncio.Event()
    asking = asyncio.create_task(answer(engine, large(released)))

    def is_writing_rows() -> bool:
        streams = list(engine._streams)
        return bool(streams) and streams[0].sent_message_count == takes_pieces and streams[0]._operation is not None

    await eventually(is_writing_rows)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await eventually(released.is_set)
    await eventually(lambda: not engine._shutdowns)


@pytest.mark.parametrize("takes_pieces", [False, True])
async def test_a_server_that_stops_reading_is_unavailable(server: ScriptedTriton, takes_pieces: bool) -> None:
    server.script.is_reading, server.script.takes_pieces = False, takes_pieces
    async with TritonEngine(server.address, "scripted", max_silence_seconds=0.3) as engine:
        with pytest.raises(EngineUnavailable, match=r"read nothing for 0\.3 s"):
            await answer(engine, large(asyncio.Event()))


# -- a server that is slow to say what it is ---------------------------------------------------------------------------


async def test_short_deadlines_are_the_callers_own_and_what_was_asked_for_them_is_there_for_the_next(
    server: ScriptedTriton, engine: TritonEngine
) -> None:
    gates = server.script.gates
    gates["ModelReady"] = asyncio.Event()  # so that no probe asks what it is, too
    async with Endpoints({"triton": engine}, PATIENT) as endpoints:

        async def be_too_late(asked: str, count: int) -> None:
            while server.asked[asked] < count:
                with pytest.raises(EngineDeadlineExceeded):
                    await answer(endpoints, text(), timeout_seconds=0.1)
            for _ in range(3):
                with pytest.raises(EngineDeadlineExceeded):
                    await answer(endpoints, text(), timeout_seconds=0.1)

        gates["ServerMetadata"] = asyncio.Event()
        await be_too_late("ServerMetadata", 1)
        gates["ModelMetadata"] = asyncio.Event()
        gates["ServerMetadata"].set()
        await be_too_late("ModelMetadata", 2)  # the first was together with the server's
        (state,) = by_name(endpoints).values()
        assert (state.health, state.failure_count) == (EndpointHealth.HEALTHY, 0)
        gates["ModelMetadata"].set()
        assert await answer(endpoints, text()) == [1, 2, 3]
    assert (server.asked["ServerMetadata"], server.asked["ModelMetadata"]) == (1, 2)


async def test_an_engine_that_takes_longer_than_a_probe_to_say_what_it_is_becomes_ready(
    server: ScriptedTriton, engine: TritonEngine
) -> None:
    gate = server.script.gates["ModelConfig"] = asyncio.Event()
    async with Endpoints({"triton": engine}, PATIENT) as endpoints:
        while not server.asked["ModelConfig"]:
            with pytest.raises(EngineUnavailable):
                await endpoints.check_ready(0.2)
        for _ in range(2):
            with pytest.raises(EngineUnavailable):
                await endpoints.check_ready(0.2)
        gate.set()
        await eventually(lambda: engine._model._compared is not None)
        await once_connected(endpoints.check_ready)
        assert server.asked["ModelConfig"] == 1, "a probe must take what an earlier one has begun"
        await endpoints.check_ready()
        assert server.asked["ModelConfig"] == 2


# -- a server that is another one in the middle of a request -----------------------------------------------------------


@pytest.mark.parametrize("is_asked", [False, True])
async def test_an_answer_by_a_later_connection_than_the_compared_one_is_refused_whatever_others_do(
    server: ScriptedTriton, engine: TritonEngine, is_asked: bool
) -> None:
    """Another request fails on the connection that is lost; or another caller finds that the new server fits, too."""
    server.script.is_silent = True
    other = asyncio.create_task(answer(engine, text()))
    await eventually(lambda: server.asked["ModelStreamInfer"] == 1)
    with LateCalls(engine._connection) as late:
        asking = asyncio.create_task(answer(engine, text()))
        await eventually(lambda: late.count == 1)
    await server.stop()
    with pytest.raises(EngineUnavailable):
        await other
    server.script.is_silent = False
    await server.start()
    if is_asked:
        await until_ready(engine)
    else:
        await once_connected(lambda: engine._connection.ask("ServerReady", b"", 5.0))
    late.go_on()
    with pytest.raises(EngineUnavailable, match="the connection was made anew"):
        await asking
    assert await answer(engine, text()) == [1, 2, 3]


# -- a client that is closed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gated", ["ServerMetadata", "ModelStreamInfer"])
async def test_closing_the_client_ends_what_it_waits_for(
    server: ScriptedTriton, engine: TritonEngine, gated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SHUTDOWN_SECONDS", 0.1)
    server.script.gates[gated] = asyncio.Event()
    asking = asyncio.create_task(answer(engine, text()))
    await eventually(lambda: server.asked[gated] == 1)
    await engine.close()
    with pytest.raises(EngineUnavailable, match="closed"):
        await asking


# -- a server of another protocol --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ServerReady", "ModelReady", "ModelMetadata", "ModelConfig"])
async def test_an_engine_whose_answers_cannot_be_read_is_not_ready(
    server: ScriptedTriton, engine: TritonEngine, method: str
) -> None:
    server.garbled.add(method)
    with pytest.raises(EngineUnavailable, match="another protocol"):
        await engine.check_ready()
    server.garbled.clear()
    await until_ready(engine)


async def test_an_answer_that_cannot_be_read_ends_its_prompt_at_once(
    server: ScriptedTriton, engine: TritonEngine
) -> None:
    await answer(engine, text())
    server.garbled.add("ModelStreamInfer")
    with pytest.raises(EngineFailed, match="another protocol"):
        await answer(engine, text())
    server.garbled.clear()
    assert await answer(engine, text()) == [1, 2, 3]
