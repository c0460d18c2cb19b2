"""Both clients against a real service: answers, deadlines, cancellation, retries; and the examples in their documentation."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from safetensors.numpy import load_file

from engine_client.testing import FakeEngine
from preprocessor.client import (
    AsyncClient,
    CallFailed,
    Client,
    FieldViolation,
    PrepareResult,
    Prompt,
    asynchronous,
    chat,
    image,
    text,
    video,
)
from preprocessor.client.errors import failure_of
from preprocessor.models.family import Model
from tests.base_install import run_with_base_install
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import Caller, serving
from tests.waiting import PATIENCE_SECONDS, eventually

CLIP = moving_shapes_clip(seconds=2, width=160, height=120)
ANSWER = (11, 12, 13, 14)
# Runs the examples of every module of the client: address, a folder with a clip and a photo.
_EXAMPLES = """
import asyncio, doctest, importlib, pkgutil, sys
import preprocessor.client as client
folder = sys.argv[2]
known = {"address": sys.argv[1], "clip": f"{folder}/clip.mp4", "photo": f"{folder}/photo.jpg", "asyncio": asyncio}
known |= {name: getattr(client, name) for name in client.__all__}
names = [client.__name__, *(one.name for one in pkgutil.iter_modules(client.__path__, f"{client.__name__}."))]
finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
for name in names:
    for test in finder.find(importlib.import_module(name), name, extraglobs=known):
        runner.run(test)
print(runner.tries, runner.failures)
"""


@pytest_asyncio.fixture(scope="module")
async def answering(model: Model) -> AsyncIterator[Caller]:
    """A server with an engine, which the tests leave as it was."""
    async with serving(model, FakeEngine(ANSWER)) as one:
        yield one


async def test_the_examples_of_the_client_run_without_what_prepares_requests(answering: Caller, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    (tmp_path / "photo.jpg").write_bytes(photo(90, 60))
    done = await asyncio.to_thread(run_with_base_install, _EXAMPLES, answering.server.address, str(tmp_path))
    tries, failures = map(int, done.stdout.splitlines()[-1].split())
    assert not failures, done.stdout
    assert tries > 10


@pytest.mark.parametrize("command", ["prepare", "generate", "bench"])
async def test_commands_that_ask_a_service_run_without_what_prepares_requests(
    answering: Caller, tmp_path: Path, command: str
) -> None:
    (tmp_path / "clip.mp4").write_bytes(CLIP)
    asked = ["--address", answering.server.address, "--video", str(tmp_path / "clip.mp4"), "--json"]
    if command == "prepare":
        asked += ["--output", str(tmp_path / "out.safetensors")]
    if command == "bench":
        asked += ["--seconds", "0.2", "--warm-up-seconds", "0", "--concurrency", "1"]
    code = "if __name__ == '__main__': from preprocessor.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = await asyncio.to_thread(run_with_base_install, code, command, *asked)
    told = json.loads(done.stdout)
    if command == "prepare":
        assert "pixel_patches" in load_file(tmp_path / "out.safetensors")
    if command == "generate":
        assert told["token_ids"] == list(ANSWER)


def films() -> Prompt:
    return chat(
        [{"role": "user", "content": [video(CLIP, every_frame=True), image(photo(2000, 1500, "PNG")), "Compare."]}]
    )


async def test_both_clients_get_the_same_answers(answering: Caller) -> None:
    prompt = films()
    assert set(prompt.files) == {"image"}, "one file inline, one in chunks"

    def blocking() -> tuple[PrepareResult, int, str, str]:
        with Client(answering.server.address) as client:
            counted = client.count_tokens(prompt).token_count
            with client.generate(prompt, max_tokens=4) as answer:
                return client.prepare(prompt), counted, client.get_model().fingerprint, answer.read()

    result, counted, fingerprint, text = await asyncio.to_thread(blocking)
    async with AsyncClient(answering.server.address) as client:
        awaited = await client.prepare(prompt)
        assert (await client.count_tokens(prompt)).token_count == counted == result.header.token_count
        assert (await client.get_model()).fingerprint == fingerprint
        async with client.generate(prompt, max_tokens=4) as answer:
            deltas = [delta async for delta in answer]
    assert text == answer.text == "".join(delta.text for delta in deltas)
    assert answer.token_ids == list(ANSWER)
    assert answer.completion.completion_token_count == 4
    assert answer.header.token_count == counted
    assert awaited.tensors.keys() == result.tensors.keys()
    for name, array in result.tensors.items():
        np.testing.assert_array_equal(awaited.tensors[name], array, err_msg=name)


async def test_progress_counts_up_to_the_whole_and_may_end_the_call(answering: Caller) -> None:
    seen: list[tuple[int, int]] = []

    class Enough(Exception):
        pass

    def stop(_: int, __: int) -> None:
        raise Enough

    async with AsyncClient(answering.server.address) as client:
        result = await client.prepare(films(), progress=lambda received, whole: seen.append((received, whole)))
        whole_bytes = result.tensors["pixel_patches"].nbytes
        assert len(seen) > 1
        assert seen[-1] == (whole_bytes, whole_bytes)
        assert seen == sorted(seen)
        with pytest.raises(Enough):
            await client.prepare(films(), progress=stop)

    def blocking() -> None:
        with Client(answering.server.address) as client:
            client.prepare(films(), progress=stop)

    with pytest.raises(Enough):
        await asyncio.to_thread(blocking)
    await eventually(lambda: answering.server.metrics.open_call_count() == 0)


async def test_a_deadline_is_of_the_whole_call(model: Model) -> None:
    async with serving(model, FakeEngine(ANSWER, gate=asyncio.Event())) as caller:
        async with AsyncClient(caller.server.address) as client:
            with pytest.raises(CallFailed) as caught:
                async with client.generate(chat("Hi"), timeout_seconds=0.5) as answer:
                    await answer.read()
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED

        def blocking() -> None:
            with Client(caller.server.address) as client, client.generate(chat("Hi"), timeout_seconds=0.5) as answer:
                answer.read()

        with pytest.raises(CallFailed) as caught:
            await asyncio.to_thread(blocking)
        assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_leaving_an_answer_cancels_it(model: Model) -> None:
    async with serving(model, FakeEngine(ANSWER, gate=asyncio.Event())) as caller:
        open_calls = caller.server.metrics.open_call_count
        cancelled: list[bool] = []
        async with AsyncClient(caller.server.address) as client:
            async with client.generate(chat("Hi")):
                assert open_calls() == 1
            await eventually(lambda: open_calls() == 0)
            task = asyncio.create_task(client.prepare(films(), progress=lambda *_: cancelled.append(task.cancel())))
            with pytest.raises(asyncio.CancelledError):
                await task
            await eventually(lambda: open_calls() == 0)

        entered, leave = threading.Event(), threading.Event()

        def blocking() -> None:
            with Client(caller.server.address) as client:
                with client.generate(chat("Hi")):
                    entered.set()
                    leave.wait(PATIENCE_SECONDS)
                closing.append(client.get_model().name)

        closing: list[str] = []
        thread = asyncio.create_task(asyncio.to_thread(blocking))
        await asyncio.to_thread(entered.wait, PATIENCE_SECONDS)
        assert open_calls() == 1
        leave.set()
        await thread
        assert closing == ["qwen3-vl"], "the connection serves further calls"
        await eventually(lambda: open_calls() == 0)


async def test_the_async_client_waits_as_it_is_told_and_is_answered(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(model, worker_count=1, memory_budget_bytes=80 << 20) as caller:
        holding = caller.server.pool.files.lease(19 << 20)
        assert holding is not None
        waits: list[float] = []

        async def wait(seconds: float) -> None:
            waits.append(seconds)
            holding.release()

        monkeypatch.setattr(asynchronous, "asyncio", SimpleNamespace(sleep=wait))
        prompt = chat([{"role": "user", "content": [image(photo(90, 60) + bytes(2 << 20))]}])
        async with AsyncClient(caller.server.address) as client:
            assert (await client.prepare(prompt, timeout_seconds=PATIENCE_SECONDS)).report.received_bytes > 2 << 20
        assert len(waits) == 1
        assert 1.0 <= waits[0] <= 2.0


async def test_a_refusal_has_its_code_and_reason(answering: Caller) -> None:
    async with AsyncClient(answering.server.address) as client:
        with pytest.raises(CallFailed) as caught:
            await client.get_model("another")
        assert (caught.value.code, caught.value.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
        with pytest.raises(CallFailed) as caught:
            async with client.generate(text("")):
                pass
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


def test_fields_that_were_not_accepted_are_named() -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="media[0].sampling.fps", description="fps is 0")
    detail = any_pb2.Any()
    detail.Pack(bad)
    status = status_pb2.Status(code=3, details=[detail])

    class Refused(grpc.RpcError):
        def code(self) -> grpc.StatusCode:
            return grpc.StatusCode.INVALID_ARGUMENT

        def details(self) -> str:
            return "fps is 0"

        def trailing_metadata(self) -> Any:
            return (("grpc-status-details-bin", status.SerializeToString()),)

    failure = failure_of(Refused())
    assert failure.field_violations == (FieldViolation("media[0].sampling.fps", "fps is 0"),)
    assert failure.fields == ("media[0].sampling.fps",)
    assert failure.retry_after_seconds is None


@pytest.mark.parametrize("method", ["prepare", "generate"])
async def test_both_clients_tell_how_much_of_the_files_has_left(answering: Caller, method: str) -> None:
    large, small = photo(1800, 1400, "PNG"), photo(60, 60)
    assert len(large) > 2 << 20, "it must take several chunks"
    prompt = chat([{"role": "user", "content": [image(large), image(small), "What is this?"]}])
    total_bytes = sum(map(len, prompt.files.values()))
    told: list[tuple[int, int]] = []

    def note(sent_bytes: int, of_bytes: int) -> None:
        told.append((sent_bytes, of_bytes))

    def call() -> None:
        with Client(answering.server.address) as client:
            if method == "prepare":
                client.prepare(prompt, upload_progress=note)
            else:
                with client.generate(prompt, upload_progress=note) as answer:
                    answer.read()

    await asyncio.to_thread(call)
    by_threads, told = told, []
    async with AsyncClient(answering.server.address) as client:
        if method == "prepare":
            await client.prepare(prompt, upload_progress=note)
        else:
            async with client.generate(prompt, upload_progress=note) as answer:
                await answer.read()
    for calls in (by_threads, told):
        assert len(calls) > 2
        assert calls == sorted(set(calls))
        assert calls[-1] == (total_bytes, total_bytes)
