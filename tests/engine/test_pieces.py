"""Prompts in pieces, through a real Triton: the same tokens, no deadlock, and nothing left behind when they end early."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from deploy.triton.local_server import TritonServer
from engine_client import (
    EngineDeadlineExceeded,
    EngineRejected,
    EngineRequest,
    EngineUnavailable,
    RowProgress,
    SamplingParameters,
    TritonEngine,
)
from engine_client.triton import messages, stream
from engine_client.triton.stream import MAX_UNREAD_PIECES, PromptStream
from tests.engine.prompts import PROMPTS, TOKEN_COUNT
from tests.engine.servers import (
    LONG_ANSWER,
    MODEL_DIRECTORY,
    SCRIPTED_REPOSITORY,
    answer,
    be_impatient,
    outcome_count,
    serving,
)
from tests.waiting import GROWING_SECONDS, PATIENCE_SECONDS, eventually

GREEDY = SamplingParameters(max_tokens=TOKEN_COUNT)


@pytest_asyncio.fixture
async def pieces_engine(pieces_triton: TritonServer) -> AsyncIterator[TritonEngine]:
    """A client of `pieces_triton`."""
    async with TritonEngine(pieces_triton.grpc_address, "pieces") as client:
        yield client


@pytest.fixture
def tiny_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run of rows that is final is worth a message, and none holds more than seven rows."""
    monkeypatch.setattr(messages, "MIN_PIECE_BYTES", 1)
    monkeypatch.setattr(messages, "MAX_INLINE_PIECE_BYTES", 7 * 1536)


def pending_request(
    name: str, prompt: Mapping[str, np.ndarray], sampling: SamplingParameters = GREEDY
) -> EngineRequest:
    return EngineRequest(name, prompt, sampling, pending=RowProgress("pixel_patches"))


def only_rows(count: int) -> dict[str, np.ndarray]:
    """All that `models/pieces` takes; 0 asks it for no checksum."""
    return {"input_ids": np.zeros(1, np.int32), "pixel_patches": np.zeros((count, 1536), np.uint8)}


def finish_all(request: EngineRequest) -> None:
    assert request.pending is not None
    request.pending.finish(len(request.tensors["pixel_patches"]))


async def answer_while_written(
    engine: TritonEngine, name: str, prompt: Mapping[str, np.ndarray], step: int
) -> list[int]:
    """Ask before a row is there; then write `step` rows at a time, and garbage until then."""
    tensors = dict(prompt) | {"pixel_patches": np.full_like(prompt["pixel_patches"], 99)}
    request = pending_request(name, tensors)
    assert request.pending is not None
    asking = asyncio.create_task(answer(engine, request))
    for start in range(0, len(prompt["pixel_patches"]), step):
        await asyncio.sleep(0)
        tensors["pixel_patches"][start : start + step] = prompt["pixel_patches"][start : start + step]
        request.pending.finish(min(start + step, len(prompt["pixel_patches"])))
    return await asking


@pytest.mark.parametrize("step", [1, 13, 16, 1000])
async def test_tokens_equal_those_of_a_direct_call(
    engine: TritonEngine, expected: Mapping[str, list[int]], step: int, tiny_pieces: None
) -> None:
    names = [name for name in PROMPTS if name not in ("text", "large")]
    answers = await asyncio.gather(*(answer_while_written(engine, name, PROMPTS[name], step) for name in names))
    assert dict(zip(names, answers, strict=True)) == {name: expected[name] for name in names}


async def test_a_large_prompt_answers_the_same_whole_and_while_it_is_written(
    engine: TritonEngine, expected: Mapping[str, list[int]]
) -> None:
    prompt = PROMPTS["large"]
    assert prompt["pixel_patches"].nbytes > 3 * messages.MAX_INLINE_PIECE_BYTES
    assert await answer(engine, EngineRequest("whole", prompt, GREEDY)) == expected["large"]
    assert await answer_while_written(engine, "written", prompt, 500) == expected["large"]


async def test_more_prompts_than_threads_wait_for_rows_and_hold_nobody_up(
    engine: TritonEngine, expected: Mapping[str, list[int]]
) -> None:
    requests = [pending_request(f"waits-{index}", PROMPTS["image"]) for index in range(4 + 8)]  # max_running is 4
    asking = [asyncio.create_task(answer(engine, request)) for request in requests]
    assert len(await answer(engine, EngineRequest("passes", PROMPTS["text"], GREEDY))) == TOKEN_COUNT
    for request, task in reversed(list(zip(requests, asking, strict=True))):
        assert not task.done()
        finish_all(request)
        assert await task == expected["image"]


async def test_every_row_arrives_once_and_in_order(pieces_engine: TritonEngine) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (20_000, 1536), np.uint8)
    request = EngineRequest("r", {"input_ids": np.ones(1, np.int32), "pixel_patches": rows})
    message_count, row_count, crc = await answer(pieces_engine, request)
    assert (row_count, crc) == (len(rows), zlib.crc32(rows.data) & 0x7FFFFFFF)
    assert message_count > 1 + MAX_UNREAD_PIECES


async def test_arrays_are_released_before_the_answer_ends(engine: TritonEngine) -> None:
    released = asyncio.Event()
    request = EngineRequest("r", PROMPTS["large"], LONG_ANSWER, on_released=released.set)
    async with aclosing(engine.generate(request)) as steps:
        await anext(steps)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await released.wait()


async def test_waiting_for_rows_is_not_the_engine_s_silence(pieces_triton: TritonServer) -> None:
    silence_seconds = 0.1
    async with TritonEngine(pieces_triton.grpc_address, "pieces") as engine:
        request = pending_request("slow", only_rows(5000))
        asking = await start(engine, request)
        be_impatient(engine, silence_seconds)
        _, waiting = await asyncio.wait({asking}, timeout=3 * silence_seconds)
        assert waiting
        be_impatient(engine, PATIENCE_SECONDS)  # now it is the engine's turn
        finish_all(request)
        assert (await asking)[1] == 5000


async def test_an_engine_that_takes_no_pieces_gets_one_message_when_all_rows_are_final(
    scripted_triton: TritonServer,
) -> None:
    rows = np.zeros((3000, 1536), np.uint8)
    tensors: dict[str, np.ndarray] = {
        "input_ids": np.array([4], np.int32),
        "pixel_patches": rows,
    }  # 4: its checksum, see models/scripted
    request = EngineRequest("r", tensors, SamplingParameters(max_tokens=1), pending=RowProgress("pixel_patches"))
    async with TritonEngine(scripted_triton.grpc_address, "scripted") as engine:
        asking = asyncio.create_task(answer(engine, request))
        await asyncio.sleep(0)
        rows[:] = 3
        finish_all(request)
        assert (await asking)[-1] == zlib.crc32(rows.data) & 0x7FFFFFFF


async def start(engine: TritonEngine, request: EngineRequest) -> asyncio.Task[list[int]]:
    """Ask, and return when the engine has read the first rows."""
    assert request.pending is not None
    asking = asyncio.create_task(answer(engine, request))
    request.pending.finish(1000)
    await eventually(lambda: [has_read_a_piece(stream) for stream in engine._streams] == [True])
    return asking


def has_read_a_piece(stream: PromptStream) -> bool:
    return stream.sent_message_count == 2 and stream.unanswered_message_count == 1


async def test_leaving_between_two_pieces_frees_the_place_and_leaks_nothing(
    triton: TritonServer, engine: TritonEngine
) -> None:
    await engine.check_ready()
    tasks_before, cancelled_before = asyncio.all_tasks(), outcome_count(triton, "cancelled")
    released = asyncio.Event()
    request = EngineRequest(
        "left", PROMPTS["large"], GREEDY, pending=RowProgress("pixel_patches"), on_released=released.set
    )
    asking = await start(engine, request)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await eventually(lambda: outcome_count(triton, "cancelled") == cancelled_before + 1)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await released.wait()
    loop = asyncio.get_running_loop()
    this = asyncio.current_task()
    await eventually(lambda: not asyncio.all_tasks(loop) - tasks_before - {this})
    await eventually(lambda: not engine._streams and not engine._shutdowns)


async def test_rows_that_fail_end_the_answer_with_that_error_and_stop_the_engine(
    triton: TritonServer, engine: TritonEngine
) -> None:
    before = outcome_count(triton, "cancelled")
    request = pending_request("failed", PROMPTS["large"])
    asking = await start(engine, request)
    assert request.pending is not None
    request.pending.fail(RuntimeError("the decoder broke"))
    with pytest.raises(RuntimeError, match="the decoder broke"):
        await asking
    await eventually(lambda: outcome_count(triton, "cancelled") == before + 1)


async def test_a_deadline_passes_between_two_pieces(triton: TritonServer, engine: TritonEngine) -> None:
    for seconds in GROWING_SECONDS:
        before = outcome_count(triton, "cancelled")
        request = pending_request("late", PROMPTS["large"])
        asking = asyncio.create_task(answer(engine, request, seconds))
        assert request.pending is not None
        request.pending.finish(1000)
        await eventually(lambda: asking.done() or any(map(has_read_a_piece, engine._streams)))  # noqa: B023
        has_begun = not asking.done()
        with pytest.raises(EngineDeadlineExceeded):
            await asking
        if has_begun:
            break
    assert has_begun
    await eventually(lambda: outcome_count(triton, "cancelled") > before)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        pytest.param(np.zeros((80 + 1, 1536), np.uint8), "has 81 rows; grid_thw needs 80", id="too many"),
        pytest.param(np.zeros((80 - 1, 1536), np.uint8), "79 in all; grid_thw needs more", id="too few"),
        pytest.param(np.zeros((80, 1176), np.uint8), "must be uint8", id="too short"),
    ],
)
async def test_wrong_rows_are_rejected_and_the_next_prompt_is_answered(
    engine: TritonEngine, expected: Mapping[str, list[int]], rows: np.ndarray, complaint: str
) -> None:
    request = pending_request("wrong", PROMPTS["mixed"] | {"pixel_patches": rows})
    finish_all(request)
    with pytest.raises(EngineRejected, match=complaint):
        await answer(engine, request)
    assert await answer(engine, EngineRequest("right", PROMPTS["mixed"], GREEDY)) == expected["mixed"]


async def test_a_prompt_refused_at_its_opening_does_not_wait_for_rows(engine: TritonEngine) -> None:
    wrong = PROMPTS["image"] | {"item_spans": np.array([[0, 3, 6]], np.int32)}
    with pytest.raises(EngineRejected, match="only the placeholder"):
        await answer(engine, pending_request("refused", wrong))


LEAVING_CLIENT = """
    import asyncio, sys
    from engine_client import EngineRequest, RowProgress, SamplingParameters, TritonEngine
    from tests.engine.prompts import image_prompt

    async def main():
        request = EngineRequest("r", image_prompt(), SamplingParameters(), pending=RowProgress("pixel_patches"))
        async with TritonEngine(sys.argv[1]) as engine:
            asking = asyncio.create_task(anext(engine.generate(request)))
            while not any(stream.sent_message_count for stream in engine._streams):
                await asyncio.sleep(0.01)
            print("open", flush=True)
            await asking

    asyncio.run(main())
"""


async def test_a_client_that_dies_between_two_pieces_frees_its_place(triton: TritonServer) -> None:
    before = outcome_count(triton, "cancelled")
    command = [sys.executable, "-c", textwrap.dedent(LEAVING_CLIENT), triton.grpc_address]
    client = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert client.stdout is not None
    assert await client.stdout.readline() == b"open\n"
    client.kill()
    await client.wait()
    await eventually(lambda: outcome_count(triton, "cancelled") == before + 1)


async def test_a_prompt_whose_rows_never_come_is_ended_by_the_engine(tmp_path: Path) -> None:
    shutil.copytree(MODEL_DIRECTORY, tmp_path / "vlm_transformers")
    config = tmp_path / "vlm_transformers" / "config.pbtxt"
    usual = 'key: "max_row_wait_seconds" value: { string_value: "60" }'
    assert usual in config.read_text()
    config.write_text(config.read_text().replace(usual, usual.replace("60", "0.3")))
    with serving("vlm_transformers", tmp_path) as server:
        async with TritonEngine(server.grpc_address) as engine:
            with pytest.raises(EngineUnavailable, match=r"no rows came for 0\.3 s"):
                await answer(engine, pending_request("starved", PROMPTS["image"]))


async def test_a_server_killed_between_two_pieces_is_unavailable(doomed_pieces_triton: TritonServer) -> None:
    async with TritonEngine(doomed_pieces_triton.grpc_address, "pieces") as engine:
        asking = await start(engine, pending_request("r", only_rows(5000)))
        doomed_pieces_triton.kill()
        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(EngineUnavailable) as raised:
                await asking
    assert raised.value.tokens_received == 0


async def test_a_model_process_killed_between_two_pieces_is_unavailable(
    doomed_pieces_triton: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "SHUTDOWN_SECONDS", 0.2)
    async with TritonEngine(doomed_pieces_triton.grpc_address, "pieces") as engine:
        request = pending_request("r", only_rows(5000))
        asking = await start(engine, request)
        for process in doomed_pieces_triton.model_pids():
            os.kill(process, signal.SIGKILL)
        be_impatient(engine)
        finish_all(request)
        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(EngineUnavailable, match=r"sent nothing|not healthy"):
                await asking


async def test_pieces_pass_where_the_server_s_own_shared_memory_is_as_small_as_a_container_s() -> None:
    prompt = only_rows(65_000)  # 100 MB
    with serving("pieces", SCRIPTED_REPOSITORY, shared_memory_bytes=64 << 20) as server:
        async with TritonEngine(server.grpc_address, "pieces") as engine:
            assert (await answer(engine, EngineRequest("r", prompt)))[1] == 65_000
