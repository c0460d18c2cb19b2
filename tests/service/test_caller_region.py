"""Rows of `Prepare` by shared memory of the caller's: the same tensors, and nothing that a caller may not write itself."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
from safetensors.numpy import load_file

from engine_client.shm import DIRECTORY, OwnedRegion, remove_abandoned_regions
from preprocessor import pipeline
from preprocessor.client import AsyncClient, CallFailed, Credentials, PrepareResult, Prompt, RowsRegion, shared_memory
from preprocessor.config import AccessSettings
from preprocessor.errors import forget_frames
from preprocessor.models.family import Model
from preprocessor.service.caller_region import open_region
from preprocessor.service.reading import read_spec
from preprocessor.traffic.callers import drive
from preprocessor.traffic.load import Ending, Load, ask_prepare
from preprocessor.types.timing import Timings
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.regions import NAME_PREFIX
from preprocessor.workers.resources import RequestResources
from tests.bench.service import checksum
from tests.media import damaged, keyframe_packets, moving_shapes_clip, photo
from tests.service.conftest import Caller, chat, image, serving, video
from tests.service.refusals import refusal_of
from tests.waiting import PATIENCE_SECONDS, eventually

CLIP = moving_shapes_clip(seconds=2, width=160, height=120)
PHOTO = photo(333, 222)
MIB = 1 << 20
ALLOWED = AccessSettings(is_caller_shared_memory_on=True)


@pytest_asyncio.fixture(scope="module")
async def allowing(model: Model) -> AsyncIterator[Caller]:
    """A shared server that takes regions of callers."""
    async with serving(model, access=ALLOWED) as one:
        yield one


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No test leaves shared memory behind, nor a descriptor of some."""
    yield
    assert not names()
    assert not opened()


def names() -> set[str]:
    return {path.name for path in DIRECTORY.glob(NAME_PREFIX[1:] + "*")}


def opened() -> list[str]:
    """The callers' regions that this process has open, the service included that runs in it."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(path.readlink()))
    return [path for path in found if NAME_PREFIX in path]


async def prepare(caller: Caller, spec: pb.PrepareSpec, memory: bool | RowsRegion = True) -> PrepareResult:
    def call() -> PrepareResult:
        with caller.client() as client:
            return client.prepare(Prompt(spec), timeout_seconds=PATIENCE_SECONDS, shared_memory=memory)

    return await asyncio.to_thread(call)


async def failure_of_prepare(caller: Caller, spec: pb.PrepareSpec, memory: bool | RowsRegion) -> CallFailed:
    """Its error without the frames, which would keep the memory."""
    with pytest.raises(CallFailed) as caught:
        await prepare(caller, spec, memory)
    forget_frames(caught.value)
    return caught.value


def assert_right(model: Model, spec: pb.PrepareSpec, tensors: Mapping[str, np.ndarray]) -> None:
    expected = dict(pipeline.prepare(model, read_spec(spec)[0]).tensors)
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert tensors[name].dtype == array.dtype, name
        np.testing.assert_array_equal(tensors[name].view(np.uint8), array.view(np.uint8), err_msg=name)


# -- the same tensors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [pb.PIXEL_FORM_UINT8, pb.PIXEL_FORM_BF16, pb.PIXEL_FORM_FP32])
async def test_tensors_are_those_of_the_pipeline_in_every_form_and_from_the_cache(
    allowing: Caller, model: Model, form: pb.PixelForm.ValueType
) -> None:
    spec = chat(image("a", PHOTO), "and", video("b", CLIP), image("c", photo(90, 400, "PNG")), pixel_form=form)
    made = await prepare(allowing, spec)
    cached = await prepare(allowing, spec)
    assert (made.report.cached_item_count, cached.report.cached_item_count) == (0, 3)
    for result in (made, cached):
        assert_right(model, spec, result.tensors)
    assert not names(), "the name goes when the service has opened it, whatever the arrays do"


async def test_the_asynchronous_client_s_tensors_are_the_same(allowing: Caller, model: Model) -> None:
    spec = chat(video("b", CLIP), "?")
    async with AsyncClient(allowing.server.address, Credentials(insecure=True)) as client:
        results = await asyncio.gather(
            *(client.prepare(Prompt(spec), timeout_seconds=PATIENCE_SECONDS, shared_memory=True) for _ in range(3))
        )
    for result in results:
        assert_right(model, spec, result.tensors)


async def test_replaced_frames_are_the_same_and_reported(allowing: Caller) -> None:
    grainy = moving_shapes_clip(1, 30, 96, 64, grain=30, options=(("g", "10"),))
    frames = keyframe_packets(grainy)[1]
    spoiled = damaged(grainy, *range(frames, frames + 5))
    spec = chat(
        video(
            "clip", spoiled, damage_policy=pb.DAMAGE_POLICY_TOLERANT, sampling=pb.Sampling(every_frame=pb.EveryFrame())
        ),
        "?",
    )
    by_messages, by_region = await prepare(allowing, spec, False), await prepare(allowing, spec)
    assert by_region.header.items == by_messages.header.items, "digests say nothing of where rows go"
    assert by_region.report.substitutions
    assert by_region.report.substitutions == by_messages.report.substitutions
    np.testing.assert_array_equal(by_region.tensors["pixel_patches"], by_messages.tensors["pixel_patches"])


async def test_a_prompt_without_pixels_takes_none_of_the_memory(allowing: Caller, model: Model) -> None:
    spec = chat(image("a", PHOTO), "?", pixel_form=pb.PIXEL_FORM_NONE)
    assert_right(model, spec, (await prepare(allowing, spec)).tensors)


async def test_rows_come_in_order_each_tensor_after_the_one_before_in_a_part_of_the_memory(
    allowing: Caller, model: Model
) -> None:
    """12 bytes of positions for each token, 1.08 MB, are too large for the header."""
    ids = [*[9] * 90_000, model.tokenizer.convert_tokens_to_ids("<|image_pad|>")]
    spec = pb.PrepareSpec(token_ids=pb.TokenIds(ids=ids), media=[image("photo", PHOTO)])
    begin = 64 << 10
    with RowsRegion.create(4 * MIB) as region:
        spec.rows_region.CopyFrom(part_of(region, begin, 2 * MIB))
        responses = [one async for one in allowing.stub.Prepare(iter([pb.PrepareRequest(spec=spec)]))]
        kinds = [one.WhichOneof("message") for one in responses]
        assert kinds == ["header", *["rows_ready"] * (len(kinds) - 2), "report"]
        tensors = responses[0].header.tensors
        expected = pipeline.prepare(model, read_spec(spec)[0]).tensors
        end = begin
        for index, told in itertools.groupby((one.rows_ready for one in responses[1:-1]), lambda one: one.tensor_index):
            array = expected[tensors[index].name]
            start, next_row = -(-end // 64) * 64, 0
            for ready in told:
                assert (ready.first_row, ready.offset_bytes) == (next_row, start + next_row * array[0].nbytes)
                next_row += ready.row_count
            assert next_row == len(array)
            end = start + array.nbytes
            assert region.array(start, np.dtype(np.uint8), (array.nbytes,)).tobytes() == array.tobytes()
        assert [tensors[index].name for index in {one.rows_ready.tensor_index for one in responses[1:-1]}] == [
            "mrope_position_ids",
            "pixel_patches",
        ]
        assert not region.array(end, np.dtype(np.uint8), (4 * MIB - end,)).any(), "nothing is written beyond"
        assert not region.array(0, np.dtype(np.uint8), (begin,)).any(), "nor before"


async def test_progress_is_told_as_with_messages(allowing: Caller) -> None:
    told: list[tuple[int, int]] = []

    def call() -> PrepareResult:
        with allowing.client() as client:
            return client.prepare(
                Prompt(chat(video("clip", CLIP))), progress=lambda *at: told.append(at), shared_memory=True
            )

    result = await asyncio.to_thread(call)
    size_bytes = result.tensors["pixel_patches"].nbytes
    assert [total for _, total in told] == [size_bytes] * len(told)
    assert told[-1][0] == size_bytes


async def test_a_load_by_shared_memory_gets_right_answers(
    allowing: Caller, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regions begin too small: the load makes larger ones, and uses each for one request at a time."""
    monkeypatch.setattr("preprocessor.traffic.regions._FIRST_BYTES", 4096)
    spec = chat(video("clip", CLIP))
    expected = pipeline.prepare(model, read_spec(spec)[0]).tensors
    right = checksum.of_tensors(expected)
    load = Load(
        (replace(ask_prepare("clip", Prompt(spec)), right_outcome=right),),
        concurrency=4,
        count=16,
        check=checksum.Checksum,
        check_share=1.0,
        is_counted=True,
        new_media_share=0.5,
        is_by_shared_memory=True,
    )
    endings: list[Ending] = []
    await drive(lambda: grpc.aio.insecure_channel(allowing.server.address), load, endings.append)
    assert [end.outcome for end in endings] == [right] * 16
    assert {end.row_count for end in endings} == {len(expected["pixel_patches"])}


async def test_the_command_line_prepares_and_puts_a_load_by_shared_memory(
    allowing: Caller, model: Model, tmp_path: Path
) -> None:
    picture, output = tmp_path / "photo.png", tmp_path / "prompt.safetensors"
    picture.write_bytes(photo(100, 80, "PNG"))

    async def run(*arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "preprocessor", *arguments, "--address", allowing.server.address),
            *("--image", str(picture), "--text", "?", "--shared-memory", "--json"),
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE_SECONDS):
            printed, _ = await process.communicate()
        assert process.returncode == 0
        return printed.decode()

    await run("prepare", "--output", str(output))
    spec = chat(image("photo.png", picture.read_bytes()), "?")
    np.testing.assert_array_equal(
        load_file(output)["pixel_patches"], pipeline.prepare(model, read_spec(spec)[0]).tensors["pixel_patches"]
    )
    figures = json.loads(await run("bench", "--seconds", "0.2", "--warm-up-seconds", "0", "--concurrency", "2"))
    assert figures["answered_count"] > 0
    assert figures["row_count"] > 0


# -- sizes -------------------------------------------------------------------------------------------------------------


async def test_a_region_that_is_too_small_is_refused_before_a_frame_is_decoded(allowing: Caller) -> None:
    spec = chat(video("clip", moving_shapes_clip(seconds=1, width=128, height=96)))
    before = await allowing.samples()
    with RowsRegion.create(4096) as region:
        failure = await failure_of_prepare(allowing, spec, region)
        assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REGION_TOO_SMALL")
        assert failure.fields == ("rows_region.size_bytes",)
    after = await allowing.samples()
    decoded = ("preprocessor_stage_duration_seconds_count", "decode")
    assert after.get(decoded, 0) == before.get(decoded, 0)
    with RowsRegion.create(int(failure.metadata["needed_bytes"])) as region:
        result = await prepare(allowing, spec, region)
        assert result.tensors["pixel_patches"].any()


async def test_the_client_asks_again_with_a_larger_region_and_knows_its_size_then(
    allowing: Caller, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "_LEAST_BYTES", 4096)
    spec = chat(video("clip", CLIP), image("photo", photo(400, 300, "BMP")))

    async def refused() -> float:
        return sum(value for key, value in (await allowing.samples()).items() if "REGION_TOO_SMALL" in key)

    before = await refused()

    def call() -> list[PrepareResult]:
        with allowing.client() as client:
            return [
                client.prepare(Prompt(spec), timeout_seconds=PATIENCE_SECONDS, shared_memory=True) for _ in range(2)
            ]

    for result in await asyncio.to_thread(call):
        assert_right(model, spec, result.tensors)
        assert result.report.received_bytes == len(CLIP), (
            "the photo is large enough to be named, and not sent, the second time"
        )
    assert await refused() == before + 1


# -- what is refused ---------------------------------------------------------------------------------------------------


def part_of(region: RowsRegion, offset_bytes: int, size_bytes: int) -> pb.RowsRegion:
    """A range of it, with the secret at its beginning."""
    message = region.message()
    region.array(0, np.dtype(np.uint8), (16,))[:] = 0
    region.array(offset_bytes, np.dtype(np.uint8), (16,))[:] = np.frombuffer(message.secret, np.uint8)
    return pb.RowsRegion(name=message.name, offset_bytes=offset_bytes, size_bytes=size_bytes, secret=message.secret)


def path_of(message: pb.RowsRegion) -> Path:
    return DIRECTORY / message.name[1:]


def renamed(message: pb.RowsRegion, name: str) -> Path:
    """Have the message name something else; returns its path."""
    message.name = name
    return path_of(message)


def linked(message: pb.RowsRegion) -> list[Path]:
    target = path_of(message)
    other = renamed(message, NAME_PREFIX + "link")
    other.symlink_to(target)
    return [other]


def with_two_names(message: pb.RowsRegion) -> list[Path]:
    other = DIRECTORY / (NAME_PREFIX[1:] + "second")
    other.hardlink_to(path_of(message))
    return [other]


def piped(message: pb.RowsRegion) -> list[Path]:
    other = renamed(message, NAME_PREFIX + "pipe")
    os.mkfifo(other)
    return [other]


def sparse(message: pb.RowsRegion) -> list[Path]:
    os.truncate(path_of(message), 16 * MIB)
    return []


def change(**fields: object) -> Callable[[pb.RowsRegion], list[Path]]:
    def apply(message: pb.RowsRegion) -> list[Path]:
        for name, value in fields.items():
            setattr(message, name, value)
        return []

    return apply


def mode(bits: int) -> Callable[[pb.RowsRegion], list[Path]]:
    def apply(message: pb.RowsRegion) -> list[Path]:
        path_of(message).chmod(bits)
        return []

    return apply


REFUSED: dict[str, tuple[Callable[[pb.RowsRegion], list[Path]], str, str]] = {
    "an unknown name": (change(name=NAME_PREFIX + "nobody"), "REGION_NOT_FOUND", "name"),
    "the service's own region": (change(name="/vlm-preprocessor-0"), "INVALID_REGION", "name"),
    "a path": (change(name=NAME_PREFIX + "/../x"), "INVALID_REGION", "name"),
    "no name": (change(name=""), "INVALID_REGION", "name"),
    "an odd offset": (change(offset_bytes=65), "INVALID_REGION", "offset_bytes"),
    "a negative offset": (change(offset_bytes=-64), "INVALID_REGION", "offset_bytes"),
    "hardly a size": (change(size_bytes=15), "INVALID_REGION", "size_bytes"),
    "more than there is": (change(size_bytes=2 * MIB), "INVALID_REGION", "size_bytes"),
    "no secret": (change(secret=b""), "INVALID_REGION", "secret"),
    "another secret": (change(secret=secrets.token_bytes(16)), "REGION_NOT_ALLOWED", "secret"),
    "a symbolic link": (linked, "REGION_NOT_ALLOWED", "name"),
    "two names": (with_two_names, "REGION_NOT_ALLOWED", "name"),
    "a pipe": (piped, "REGION_NOT_ALLOWED", "name"),
    "pages not allocated": (sparse, "REGION_NOT_ALLOWED", "name"),
    "readers who may not write": (mode(0o644), "REGION_NOT_ALLOWED", "name"),
    "a group that may only read": (mode(0o640), "REGION_NOT_ALLOWED", "name"),
}


@pytest.mark.parametrize("why", REFUSED)
async def test_what_the_caller_could_not_write_itself_is_refused(allowing: Caller, why: str) -> None:
    apply, reason, field = REFUSED[why]
    with RowsRegion.create(MIB) as region:
        message = region.message()
        made = apply(message)
        spec = chat("Hi")
        spec.rows_region.CopyFrom(message)
        try:
            failure = await refusal_of(allowing.stub.Prepare(iter([pb.PrepareRequest(spec=spec)])))
        finally:
            for path in made:
                path.unlink()
        assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
        assert failure.fields == (f"rows_region.{field}",)
        assert not region.array(16, np.dtype(np.uint8), (MIB - 16,)).any()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("bits", [0o600, 0o660])
async def test_another_user_s_region_is_taken_if_the_service_can_open_it(
    allowing: Caller, model: Model, bits: int
) -> None:
    """Root can. A region of mode 0600 that the service's user cannot open is REGION_NOT_ALLOWED by the kernel."""
    spec = chat(image("a", PHOTO), "?")
    with RowsRegion.create(4 * MIB, mode=bits) as region:
        os.chown(path_of(region.message()), 1234, 1234)
        assert_right(model, spec, (await prepare(allowing, spec, region)).tensors)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_region_that_the_kernel_does_not_let_the_service_s_user_open_is_refused() -> None:
    code = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from preprocessor.errors import InvalidRequest
from preprocessor.service.caller_region import open_region
from preprocessor.v1 import preprocessor_pb2 as pb
os.setuid(1234)
try:
    open_region(pb.RowsRegion.FromString(sys.stdin.buffer.read()), ThreadPoolExecutor(1), None, is_allowed=True)
except InvalidRequest as error:
    print(error.reason)
"""
    with RowsRegion.create(MIB) as region:
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=region.message().SerializeToString(),
            capture_output=True,
            timeout=PATIENCE_SECONDS,
            check=True,
        )
    assert done.stdout.decode().strip() == "REGION_NOT_ALLOWED"


async def test_regions_are_refused_unless_the_deployment_takes_them(caller: Caller) -> None:
    failure = await failure_of_prepare(caller, chat("Hi"), True)
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REGION_DISABLED")
    assert failure.fields == ("rows_region",)


async def test_memory_that_shrinks_during_the_call_ends_that_call_alone(allowing: Caller, model: Model) -> None:
    async with shrinking(allowing) as (spec, messages):
        failure = await refusal_of(allowing.stub.Prepare(messages))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "REGION_TRUNCATED")
    assert_right(model, spec, (await prepare(allowing, spec)).tensors)


@contextlib.asynccontextmanager
async def shrinking(caller: Caller) -> AsyncIterator[tuple[pb.PrepareSpec, AsyncIterator[pb.PrepareRequest]]]:
    """A request with its messages: the file comes when the service has opened the region, and that is cut to nothing."""
    with RowsRegion.create(4 * MIB) as region:
        message, own_count = region.message(), len(opened())

        async def messages() -> AsyncIterator[pb.PrepareRequest]:
            chunked = chat(image("photo"), "?", rows_region=message)
            yield pb.PrepareRequest(spec=chunked)
            await eventually(lambda: len(opened()) > own_count)
            os.truncate(path_of(message), 0)
            yield pb.PrepareRequest(chunk=pb.MediaChunk(key="photo", data=PHOTO, last=True))

        yield chat(image("photo", PHOTO), "?"), messages()
        assert path_of(message).stat().st_size == 0, "the service has not made it larger again"


# -- callers that leave ------------------------------------------------------------------------------------------------


async def test_a_caller_that_cancels_leaves_nothing_open(allowing: Caller) -> None:
    with RowsRegion.create(4 * MIB) as region:
        own_count = len(opened())
        spec = chat(video("clip", moving_shapes_clip(seconds=3, width=160, height=120)), rows_region=region.message())
        call: Any = allowing.stub.Prepare(iter([pb.PrepareRequest(spec=spec)]))
        assert (await call.read()).HasField("header")
        assert len(opened()) > own_count
        call.cancel()
        await eventually(lambda: len(opened()) == own_count)
    await eventually(lambda: allowing.server.metrics.open_call_count() == 0)


async def test_rows_are_held_until_the_thread_that_copies_them_has_stopped(allowing: Caller) -> None:
    """Else their memory could go to another request, whose pixels would be copied to this caller."""
    gate = threading.Event()
    with ThreadPoolExecutor(1) as executor, RowsRegion.create(MIB) as memory:
        executor.submit(gate.wait, PATIENCE_SECONDS)
        deadline_seconds = time.monotonic() + PATIENCE_SECONDS
        before_bytes, own_count = allowing.server.pool.files.leased_bytes, len(opened())
        async with RequestResources(allowing.server.pool, deadline_seconds, Timings()) as resources:
            lease = resources.lease_file(64, 0)
            region = open_region(memory.message(), executor, resources, is_allowed=True)
            rows = np.frombuffer(resources.arena.view(lease.offset, 64), np.uint8)
            writing = asyncio.create_task(region.write(rows, 64))
            await eventually(lambda: region._copying is not None)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
        assert len(opened()) == own_count + 1
        assert allowing.server.pool.files.leased_bytes > before_bytes
        gate.set()
        await eventually(lambda: len(opened()) == own_count)
        await eventually(lambda: allowing.server.pool.files.leased_bytes == before_bytes)


KILLED = """
import sys
from preprocessor.client import Client, Credentials, Prompt, RowsRegion
from preprocessor.v1 import preprocessor_pb2 as pb

def wait(received, total):
    print("rows", flush=True)
    sys.stdin.read()

spec = pb.PrepareSpec.FromString(sys.stdin.buffer.read(int(sys.argv[2])))
with RowsRegion.create(16 << 20) as region, Client(sys.argv[1], Credentials(insecure=True)) as client:
    client.prepare(Prompt(spec), progress=wait, shared_memory=region)
"""


async def test_what_a_killed_caller_leaves_is_removed_by_the_next_start_of_a_service(allowing: Caller) -> None:
    spec = chat(video("clip", CLIP)).SerializeToString()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", KILLED, allowing.server.address, str(len(spec))),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(spec)
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await process.stdout.readline() == b"rows\n"
        process.send_signal(signal.SIGKILL)
        await process.wait()
    await eventually(lambda: not opened())
    (left,) = names()
    with RowsRegion.create(MIB) as in_use:
        assert remove_abandoned_regions() == ["/" + left]
        assert names() == {in_use.message().name[1:]}


def test_a_region_that_another_user_s_directory_keeps_is_left_to_that_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sticky directory others may lock the file, and only its owner may remove it."""
    region = OwnedRegion.create(4096, prefix=NAME_PREFIX)
    path = DIRECTORY / region.key[1:]
    assert region._descriptor is not None
    os.close(region._descriptor)  # its owner is gone
    region._descriptor = None
    region.buffer.close()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    try:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", refuse)
            assert remove_abandoned_regions() == []
        assert remove_abandoned_regions() == [region.key]
    finally:
        path.unlink(missing_ok=True)
