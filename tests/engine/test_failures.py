"""What the caller of a real Triton sees when something goes wrong, and what the engine does about it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import zlib
from contextlib import aclosing

import ml_dtypes
import numpy as np
import pytest

from deploy.triton.local_server import TritonServer
from engine_client import (
    EngineDeadlineExceeded,
    EngineFailed,
    EngineRejected,
    EngineRequest,
    EngineUnavailable,
    SamplingParameters,
    TritonEngine,
)
from tests.engine.prompts import image_prompt, text_prompt, video_prompt
from tests.engine.servers import LONG_ANSWER, answer, be_impatient, outcome_count
from tests.waiting import GROWING_SECONDS, PATIENCE_SECONDS, eventually

FINISH, NO_REASON, UNKNOWN_REASON, FAIL, CHECKSUM = range(5)  # tests/engine/models/scripted
THREE_TOKENS = SamplingParameters(max_tokens=3)


def scripted(ending: int, sampling: SamplingParameters = THREE_TOKENS, **more: np.ndarray) -> EngineRequest:
    return EngineRequest("scripted", {"input_ids": np.array([ending], np.int32), **more}, sampling)


async def test_closing_the_generator_stops_the_engine(triton: TritonServer, engine: TritonEngine) -> None:
    before = outcome_count(triton, "cancelled")
    async with aclosing(engine.generate(EngineRequest("closed", video_prompt(), LONG_ANSWER))) as steps:
        await anext(steps)
    await eventually(lambda: outcome_count(triton, "cancelled") == before + 1)


async def test_cancelling_the_task_stops_the_engine(triton: TritonServer, engine: TritonEngine) -> None:
    before = outcome_count(triton, "cancelled")
    started = asyncio.Event()

    async def read() -> None:
        async for _ in engine.generate(EngineRequest("cancelled", text_prompt(), LONG_ANSWER)):
            started.set()

    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: outcome_count(triton, "cancelled") == before + 1)


async def test_prompts_that_wait_their_turn_can_be_cancelled(triton: TritonServer, engine: TritonEngine) -> None:
    before = outcome_count(triton, "cancelled")
    count = 4 + 3  # max_running of config.pbtxt, and some that wait
    started = [asyncio.Event() for _ in range(count)]

    async def read(index: int) -> None:
        async for _ in engine.generate(EngineRequest(f"queued-{index}", text_prompt(), LONG_ANSWER)):
            started[index].set()

    tasks = [asyncio.create_task(read(index)) for index in range(count)]
    await eventually(lambda: sum(event.is_set() for event in started) == 4)
    # What was not sent yet would never have been there.
    await eventually(lambda: [stream.sent_message_count for stream in engine._streams] == [1] * count)
    waiting = [task for task, event in zip(tasks, started, strict=True) if not event.is_set()]
    for task in waiting:
        task.cancel()
    await eventually(lambda: outcome_count(triton, "cancelled") == before + len(waiting))
    assert not any(task.done() for task in tasks if task not in waiting)  # they gave up their places while these go on
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await eventually(lambda: outcome_count(triton, "cancelled") == before + count)


async def test_a_prompt_too_many_is_refused_as_unavailable(triton: TritonServer, engine: TritonEngine) -> None:
    before = outcome_count(triton, "cancelled")
    count = 4 + 64  # max_running and max_waiting of config.pbtxt
    asked = [EngineRequest(f"crowd-{index}", text_prompt(), LONG_ANSWER) for index in range(count + 1)]
    tasks = [asyncio.create_task(answer(engine, request)) for request in asked]
    done, pending = await asyncio.wait(tasks, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    with pytest.raises(EngineUnavailable, match="too many prompts are here already; 68 may be"):
        done.pop().result()
    await eventually(lambda: outcome_count(triton, "cancelled") == before + count)


async def test_a_deadline_ends_the_answer_and_stops_the_engine(triton: TritonServer, engine: TritonEngine) -> None:
    for seconds in GROWING_SECONDS:
        before = outcome_count(triton, "cancelled")
        received = 0
        with pytest.raises(EngineDeadlineExceeded) as raised:
            async for step in engine.generate(
                EngineRequest("late", text_prompt(), LONG_ANSWER), timeout_seconds=seconds
            ):
                received += len(step.token_ids)
        assert raised.value.tokens_received == received
        if received:
            break
    assert received
    await eventually(lambda: outcome_count(triton, "cancelled") > before)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        pytest.param({"pixel_patches": np.zeros((23, 1536), np.uint8)}, "pixel_patches is", id="too few rows"),
        pytest.param({"grid_thw": np.array([[1, 6, 6]], np.int64)}, "pixel_patches is", id="grid of other rows"),
        pytest.param({"item_spans": np.array([[0, 3, 6]], np.int32)}, "only the placeholder", id="span beside them"),
        pytest.param({"input_ids": np.array([1, 151655], np.int32)}, "input ids", id="placeholder mismatch"),
        pytest.param({"input_ids": image_prompt()["input_ids"].astype(np.int64)}, "INT64", id="wrong dtype"),
        pytest.param({"pixel_mean": np.zeros(4, np.float32)}, "unexpected shape", id="wrong shape"),
        pytest.param({"pixel_values": np.zeros((24, 1536), np.float32)}, "unexpected inference input", id="no input"),
    ],
)
async def test_a_wrong_prompt_is_rejected_and_the_next_one_answered(
    engine: TritonEngine, change: dict[str, np.ndarray], complaint: str
) -> None:
    with pytest.raises(EngineRejected, match=complaint):
        await answer(engine, EngineRequest("wrong", image_prompt() | change, THREE_TOKENS))
    assert len(await answer(engine, EngineRequest("right", image_prompt(), THREE_TOKENS))) == 3


async def test_an_answer_beyond_the_models_positions_is_rejected(engine: TritonEngine) -> None:
    with pytest.raises(EngineRejected, match="positions"):
        await answer(engine, EngineRequest("long", text_prompt(), SamplingParameters(max_tokens=2**31 - 1)))


async def test_a_dtype_that_no_engine_takes_is_rejected_unsent(engine: TritonEngine) -> None:
    with pytest.raises(EngineRejected, match="complex128"):
        await answer(engine, EngineRequest("complex", {"input_ids": np.zeros(1, np.complex128)}))


async def test_an_unknown_model_is_unavailable(triton: TritonServer) -> None:
    async with TritonEngine(triton.grpc_address, "vlm_elsewhere") as engine:
        with pytest.raises(EngineUnavailable, match="unknown model: 'vlm_elsewhere'"):
            await answer(engine, EngineRequest("lost", text_prompt()))
        with pytest.raises(EngineUnavailable, match="not loaded"):
            await engine.check_ready()


async def test_a_server_that_is_down_is_unavailable() -> None:
    with socket.socket() as reserved:  # bound and not listening: connections are refused
        reserved.bind(("127.0.0.1", 0))
        async with TritonEngine(f"127.0.0.1:{reserved.getsockname()[1]}") as engine:
            with pytest.raises(EngineUnavailable):
                await answer(engine, EngineRequest("nobody", text_prompt()))
            with pytest.raises(EngineUnavailable):
                await engine.check_ready()


async def test_a_server_that_accepts_and_says_nothing_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        async with TritonEngine(f"127.0.0.1:{mute.getsockname()[1]}") as engine:
            with pytest.raises(EngineUnavailable):
                await engine.check_ready(timeout_seconds=0.2)


async def test_a_server_killed_in_mid_answer_is_unavailable(doomed_triton: TritonServer) -> None:
    async with TritonEngine(doomed_triton.grpc_address, "scripted") as engine:
        steps = engine.generate(scripted(FINISH, LONG_ANSWER))
        await anext(steps)
        doomed_triton.kill()
        with pytest.raises(EngineUnavailable) as raised:
            async with asyncio.timeout(PATIENCE_SECONDS):
                async for _ in steps:
                    pass
        assert raised.value.tokens_received >= 1


async def test_a_model_process_killed_in_mid_answer_is_unavailable(doomed_triton: TritonServer) -> None:
    async with TritonEngine(doomed_triton.grpc_address, "scripted") as engine:
        steps = engine.generate(scripted(FINISH, LONG_ANSWER))
        await anext(steps)
        for process in doomed_triton.model_pids():
            os.kill(process, signal.SIGKILL)
        be_impatient(engine)
        # Triton may report it, leave the stream open for good, or close the connection, at once or at the next prompt. The
        # client's timeout ends the second.
        ways_to_be_gone = r"sent nothing|not healthy|closed the connection"
        with pytest.raises(EngineUnavailable, match=ways_to_be_gone):
            async for _ in steps:
                pass
        with pytest.raises(EngineUnavailable, match=ways_to_be_gone):
            await answer(engine, scripted(FINISH))


async def test_a_model_that_fails_in_mid_answer_says_so(scripted_triton: TritonServer) -> None:
    async with TritonEngine(scripted_triton.grpc_address, "scripted") as engine:
        with pytest.raises(EngineFailed, match="the script says so") as raised:
            await answer(engine, scripted(FAIL))
    assert raised.value.tokens_received == 3


@pytest.mark.parametrize(("ending", "complaint"), [(NO_REASON, "without a finish reason"), (UNKNOWN_REASON, "bored")])
async def test_an_answer_against_the_contract_fails(scripted_triton: TritonServer, ending: int, complaint: str) -> None:
    async with TritonEngine(scripted_triton.grpc_address, "scripted") as engine:
        with pytest.raises(EngineFailed, match=complaint):
            await answer(engine, scripted(ending))


async def test_closing_the_client_ends_answers_under_way(scripted_triton: TritonServer) -> None:
    engine = TritonEngine(scripted_triton.grpc_address, "scripted")
    steps = engine.generate(scripted(FINISH, LONG_ANSWER))
    await anext(steps)
    await engine.close()
    with pytest.raises(EngineUnavailable, match="was closed"):
        async for _ in steps:
            pass
    with pytest.raises(EngineUnavailable, match="is closed"):
        await engine.check_ready()


async def test_a_large_tensor_arrives_whole_and_strided_ones_in_order(scripted_triton: TritonServer) -> None:
    wide = np.random.default_rng(0).integers(0, 256, (4096, 2 * 1536), np.uint8)
    patches = wide[:, ::2]  # 6 MB, encoded on a thread, and not contiguous
    halves = np.arange(8, dtype=ml_dtypes.bfloat16)
    async with TritonEngine(scripted_triton.grpc_address, "scripted") as engine:
        got = await answer(engine, scripted(CHECKSUM, pixel_patches=patches, halves=halves))
    assert got[-1] == zlib.crc32(np.ascontiguousarray(patches).data) & 0x7FFFFFFF


async def test_a_ready_engine_says_what_it_takes(engine: TritonEngine) -> None:
    await engine.check_ready()
    info = await engine.describe()
    assert info.model_name == "vlm_transformers"
    assert {tensor.name: tensor.datatype for tensor in info.inputs}["pixel_patches"] == "UINT8"
