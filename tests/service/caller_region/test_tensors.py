"""Rows of `Prepare` by shared memory of the caller's: the same tensors, and nothing that a caller may not write itself."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from safetensors.numpy import load_file

from preprocessor import pipeline
from preprocessor.client import AsyncClient, Credentials, PrepareResult, Prompt, RowsRegion, shared_memory
from preprocessor.models.family import Model
from preprocessor.service.reading import read_spec
from preprocessor.traffic.callers import drive
from preprocessor.traffic.load import Ending, Load, ask_prepare
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.bench.service import checksum
from tests.media import damaged, keyframe_packets, moving_shapes_clip, photo
from tests.service.caller_region.conftest import CLIP, MIB, PHOTO, assert_right, failure_of_prepare, names, prepare
from tests.service.conftest import Caller, chat, image, video
from tests.waiting import PATIENCE_SECONDS

# -- the same tensors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [pb.PIXEL_FORM_UINT8, pb.PIXEL_FORM_BF16, pb.PIXEL_FORM_FP32])
async def test_tensors_are_those_of_the_pipeline_in_every_form_and_from_the_cache(
    allowing: Caller, model: Model, form: pb.PixelForm.ValueType
) -> None:
    spec = chat(image("a", PHOTO), "and", video("b", CLIP), image("c", photo(90, 400, "PNG")), pixel_form=form)
    spec.cache_salt = str(form)  # else rows of one form would be made of those of another
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


def part_of(region: RowsRegion, offset_bytes: int, size_bytes: int) -> pb.RowsRegion:
    """A range of it, with the secret at its beginning."""
    message = region.message()
    region.array(0, np.dtype(np.uint8), (16,))[:] = 0
    region.array(offset_bytes, np.dtype(np.uint8), (16,))[:] = np.frombuffer(message.secret, np.uint8)
    return pb.RowsRegion(name=message.name, offset_bytes=offset_bytes, size_bytes=size_bytes, secret=message.secret)
