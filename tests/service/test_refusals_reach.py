"""Refusals: before the upload if sizes are announced, and during the upload with the reason, for every kind of client."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from preprocessor.client import CallFailed, Client, Prompt
from preprocessor.client.requests import with_sizes
from preprocessor.client.retry import Retries
from preprocessor.config import Limits, WireSettings
from preprocessor.models.family import Model
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import photo
from tests.service.conftest import PREPARE, Caller, chat, image, in_flight, serving, video
from tests.service.pressure import chunks
from tests.service.refusals import refusal_of
from tests.waiting import eventually

MIB = 1 << 20
SIZE_BYTES = 40 * MIB
LIMITS = Limits(max_media_bytes=24 * MIB, max_request_bytes=30 * MIB)
INVALID, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
HERE = Path(__file__).parent
PROTOS = HERE.parents[1] / "protos"
NODE_MODULES = Path(os.environ.get("NODE_PATH", HERE / "node_modules"))
"""Where `npm install @grpc/grpc-js @grpc/proto-loader` was run, its folder node_modules."""


@pytest_asyncio.fixture(scope="module")
async def small(model: Model) -> AsyncIterator[Caller]:
    """A shared server with 20 MiB of memory for files."""
    async with serving(model, limits=LIMITS, memory_budget_bytes=80 * MIB, worker_count=1) as one:
        yield one


@pytest.mark.usefixtures("refusals_at_once")
@pytest.mark.parametrize(
    ("spec", "code", "reason"),
    [
        (chat(video(size_bytes=25 * MIB)), INVALID, "MEDIA_TOO_LARGE"),
        (chat(video("a", size_bytes=16 * MIB), video("b", size_bytes=15 * MIB)), INVALID, "REQUEST_TOO_LARGE"),
        (chat(video(size_bytes=21 * MIB)), EXHAUSTED, "MEMORY_BUDGET_FULL"),
        (chat(video("a", size_bytes=11 * MIB), video("b", size_bytes=11 * MIB)), EXHAUSTED, "MEMORY_BUDGET_FULL"),
        (chat(video(size_bytes=-1)), INVALID, "SIZE_MISMATCH"),
    ],
)
async def test_an_announced_size_beyond_the_limit_is_refused_before_the_upload(
    small: Caller, spec: pb.PrepareSpec, code: grpc.StatusCode, reason: str
) -> None:
    call = small.stub.Prepare()
    await call.write(pb.PrepareRequest(spec=spec))  # and neither a chunk nor an end of the stream
    found = await refusal_of(call)
    assert (found.code, found.reason) == (code, reason)
    assert found.retry_after_seconds == (1.0 if code is EXHAUSTED else None)


PHOTO = photo(90, 60)


@pytest.mark.parametrize("told_bytes", [len(PHOTO) - 1, len(PHOTO) + 1, 0])
@pytest.mark.parametrize("way", ["inline", "chunks"])
async def test_a_file_of_another_size_than_announced_is_refused(small: Caller, way: str, told_bytes: int) -> None:
    spec = chat(image("photo", PHOTO if way == "inline" else None, size_bytes=told_bytes))
    failed = await small.refusal(spec, {} if way == "inline" else {"photo": PHOTO})
    assert (failed.code, failed.reason) == (INVALID, "SIZE_MISMATCH")


async def test_a_file_of_the_announced_size_is_accepted(small: Caller) -> None:
    chunked = image("chunked", size_bytes=len(PHOTO))
    inline = image("inline", PHOTO, size_bytes=len(PHOTO))
    result = await small.prepare(chat(chunked, inline), {"chunked": PHOTO})
    assert result.report.received_bytes == 2 * len(PHOTO)


@pytest.mark.parametrize("way", ["inline", "chunks"])
async def test_a_file_with_another_digest_than_stated_is_refused(small: Caller, way: str) -> None:
    stated = hashlib.sha256(PHOTO + b"x").digest()
    spec = chat(image("photo", PHOTO if way == "inline" else None, content_sha256=stated))
    failed = await small.refusal(spec, {} if way == "inline" else {"photo": PHOTO})
    assert (failed.code, failed.reason) == (INVALID, "DIGEST_MISMATCH")
    assert failed.fields == ("media[0].content_sha256",)


async def test_a_file_that_was_damaged_on_its_way_is_told_from_a_damaged_file(small: Caller) -> None:
    stated = hashlib.sha256(PHOTO).digest()
    failed = await small.refusal(chat(image("photo", PHOTO[: len(PHOTO) // 2], content_sha256=stated)))
    assert failed.reason == "DIGEST_MISMATCH"


async def test_a_file_with_the_digest_that_was_stated_is_taken(small: Caller) -> None:
    digest = hashlib.sha256(PHOTO).digest()
    again = pb.Media(key="again", modality=pb.MODALITY_IMAGE, same_file_as="photo", content_sha256=digest)
    result = await small.prepare(chat(image("photo", content_sha256=digest), again), {"photo": PHOTO})
    assert [item.source.content_sha256 for item in result.header.items] == [digest, digest]


@pytest.mark.usefixtures("refusals_at_once")
@pytest.mark.parametrize("size_bytes", [0, 31, 33, 64])
async def test_what_is_no_digest_is_refused_before_the_file_comes(small: Caller, size_bytes: int) -> None:
    call = small.stub.Prepare()
    await call.write(pb.PrepareRequest(spec=chat(image("photo", content_sha256=bytes(size_bytes)))))
    found = await refusal_of(call)
    assert (found.code, found.reason) == (INVALID, "INVALID_DIGEST")


def test_the_client_announces_file_sizes() -> None:
    spec = with_sizes(Prompt(chat(video("a"), image("b", PHOTO), video("c")), {"a": bytes(7)}))
    assert [(one.key, one.HasField("size_bytes"), one.size_bytes) for one in spec.media] == [
        ("a", True, 7),
        ("b", False, 0),
        ("c", False, 0),
    ]


# -- during an upload --------------------------------------------------------------------------------------------------


def upload(told: bool) -> list[bytes]:
    spec = chat(video(size_bytes=SIZE_BYTES) if told else video())
    return [pb.PrepareRequest(spec=spec).SerializeToString(), *chunks(size_bytes=SIZE_BYTES)]


@pytest.mark.parametrize("told", [True, False])
async def test_the_blocking_client_receives_the_reason(small: Caller, told: bool) -> None:
    for _ in range(5):
        found = await refusal_of(small.send(upload(told)))
        assert found.reason == ("MEDIA_TOO_LARGE" if told else "MEMORY_BUDGET_FULL")


@pytest.mark.parametrize("told", [True, False])
async def test_an_aio_client_with_a_request_iterator_receives_the_reason(small: Caller, told: bool) -> None:
    for _ in range(5):
        method: Any = small.channel.stream_stream(PREPARE)
        found = await refusal_of(method(iter(upload(told))))
        assert found.reason == ("MEDIA_TOO_LARGE" if told else "MEMORY_BUDGET_FULL")


@pytest.mark.parametrize("told", [True, False])
async def test_an_aio_client_that_calls_write_receives_the_reason(small: Caller, told: bool) -> None:
    for _ in range(5):
        call: Any = small.channel.stream_stream(PREPARE)()
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for message in upload(told):
                await call.write(message)
            await call.done_writing()
        found = await refusal_of(call)
        assert found.reason == ("MEDIA_TOO_LARGE" if told else "MEMORY_BUDGET_FULL")


@pytest.mark.skipif(
    shutil.which("node") is None or not (NODE_MODULES / "@grpc" / "grpc-js").is_dir(),
    reason="no Node.js with @grpc/grpc-js and @grpc/proto-loader in NODE_PATH",
)
@pytest.mark.parametrize("told", [True, False])
async def test_a_node_client_receives_the_reason(small: Caller, told: bool) -> None:
    arguments = [small.server.address, str(PROTOS), str(SIZE_BYTES // MIB), "told" if told else ""]
    done = await asyncio.to_thread(
        subprocess.run,
        ["node", str(HERE / "refused.js"), *arguments],
        env={**os.environ, "NODE_PATH": str(NODE_MODULES)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    failed = json.loads(done.stdout)
    expected = (INVALID, "MEDIA_TOO_LARGE") if told else (EXHAUSTED, "MEMORY_BUDGET_FULL")
    assert failed["code"] == expected[0].value[0]
    assert expected[1] in failed["details"]


# -- retries -----------------------------------------------------------------------------------------------------------


async def test_the_client_retries_after_retry_info(small: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    holding = small.server.pool.files.lease(19 * MIB)
    assert holding is not None

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            holding.release()

    # The client's alone: other threads may sleep meanwhile.
    monkeypatch.setattr("preprocessor.client.sync.time", SimpleNamespace(sleep=wait))

    def call() -> int:
        with Client(small.server.address) as client:
            prompt = Prompt(chat(image("photo")), {"photo": PHOTO + bytes(2 * MIB)})
            return client.prepare(prompt, timeout_seconds=60).report.received_bytes

    assert await asyncio.to_thread(call) == len(PHOTO) + 2 * MIB
    assert len(waits) == 3
    assert all(1.0 <= seconds <= 2.0 for seconds in waits)
    assert len(set(waits)) == 3, "without jitter those who were refused together come back together"


@pytest.mark.parametrize(
    ("retry_after_seconds", "retry_seconds", "timeout_seconds"),
    [(None, 60.0, None), (1.0, 0.0, None), (1.0, 60.0, 0.5)],
)
def test_the_client_does_not_retry_when_it_cannot_succeed_in_time(
    retry_after_seconds: float | None, retry_seconds: float, timeout_seconds: float | None
) -> None:
    refused = CallFailed(EXHAUSTED, "MEMORY_BUDGET_FULL", "full", retry_after_seconds)
    assert Retries(retry_seconds, timeout_seconds).delay_after(refused) is None


# -- slow uploads ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("refusals_at_once")
async def test_an_idle_upload_is_ended_while_others_wait(model: Model) -> None:
    async with serving(model, worker_count=1, wire=WireSettings(max_upload_count=1)) as caller:
        silent = caller.stub.Prepare()
        await silent.write(pb.PrepareRequest(spec=chat(image("photo"))))
        await eventually(lambda: in_flight(caller) == 1)  # it has the only slot
        assert (await caller.prepare(chat("hello"))).header.token_count > 0
        assert (await refusal_of(silent)).reason == "UPLOAD_TOO_SLOW"
