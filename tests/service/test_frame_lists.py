"""Frames that the caller has chosen, from both clients, by messages of one's own and from the command line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_client.testing import FakeEngine
from preprocessor import pipeline
from preprocessor.__main__ import main
from preprocessor.client import AsyncClient, Cached, CallFailed, Client, Medium, chat, video
from preprocessor.config import Limits
from preprocessor.models.family import Model
from preprocessor.service.reading import read_spec
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.frame_lists import image_files
from tests.service.conftest import Caller, serving
from tests.service.conftest import chat as spec_of

PICTURES = image_files(5, 160, 120, "PNG")
LARGE = np.random.default_rng(3).integers(
    0, 256, (6, 480, 640, 3), np.uint8
)  # more than the messages of one chunk hold


def asked(*media: Medium) -> list[dict[str, object]]:
    return [{"role": "user", "content": [*media, "What happens?"]}]


def expected(model: Model, prompt: pb.PrepareSpec, files: dict[str, bytes]) -> dict[str, np.ndarray]:
    request, sources = read_spec(prompt)
    return dict(pipeline.prepare(model, sources.fill(request, files)).tensors)


async def test_frames_in_chunks_come_out_as_from_the_pipeline(model: Model, caller: Caller) -> None:
    prompt = chat(asked(video(frames=LARGE, fps=3), video(frames=PICTURES, times_seconds=[1, 2, 4, 7, 7.5])))
    async with AsyncClient(caller.server.address) as client:
        result = await client.prepare(prompt)
        counted = await client.count_tokens(prompt)
    tensors = expected(model, prompt.spec, dict(prompt.files))
    assert tensors.keys() == result.tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(result.tensors[name], tensor)
    assert (counted.token_count, list(counted.items)) == (result.header.token_count, list(result.header.items))
    raw, listed = result.header.items
    assert (raw.source.video.codec, raw.source.decoder, raw.source.size_bytes) == ("RGB24", "", LARGE.nbytes)
    assert (raw.source.video.average_fps, raw.source.video.duration_seconds, raw.basis) == (
        *(3, 2),
        pb.SAMPLING_BASIS_INDEX,
    )
    assert (listed.source.video.codec, listed.source.video.frame_count, listed.basis) == (
        *("PNG", 5),
        pb.SAMPLING_BASIS_TIME,
    )
    assert list(listed.frame_indices) == [0, 1, 2, 3, 4]
    assert list(listed.times_seconds) == list(listed.prompt_times_seconds) == [1, 2, 4, 7, 7.5]
    assert (listed.patches.padded_frame_count, listed.repeated_frame_count) == (1, 0)


async def test_frames_are_sent_and_decoded_once(model: Model) -> None:
    async with serving(model) as caller:
        prompt = chat(asked(video(frames=LARGE, fps=3)))

        def twice() -> tuple[list[int], list[int]]:
            with Client(caller.server.address) as client:
                results = [client.prepare(prompt) for _ in range(2)]
            one, other = (result.tensors["pixel_patches"] for result in results)
            np.testing.assert_array_equal(one, other)
            reports = [one.report for one in results]
            return [one.cached_item_count for one in reports], [one.received_bytes for one in reports]

        assert await asyncio.to_thread(twice) == ([0, 1], [LARGE.nbytes, 0])
        async with AsyncClient(caller.server.address) as client:  # other times are another item
            other = await client.prepare(chat(asked(video(frames=LARGE, fps=4))))
    assert other.report.cached_item_count == 0


async def test_frames_that_the_service_has_are_named_with_their_description(model: Model) -> None:
    async with serving(model) as caller, AsyncClient(caller.server.address) as client:
        camera = video(frames=PICTURES, times_seconds=[1, 2, 4, 7, 7.5], uuid="camera")
        sent = await client.prepare(chat(asked(camera)))
        named = video(Cached(uuid="camera", frame_list=camera.frame_list))
        again = await client.prepare(chat(asked(named)))
    np.testing.assert_array_equal(again.tensors["input_ids"], sent.tensors["input_ids"])
    np.testing.assert_array_equal(again.tensors["pixel_patches"], sent.tensors["pixel_patches"])
    assert again.report.received_bytes == 0


async def test_pictures_may_stand_in_the_spec(model: Model, caller: Caller) -> None:
    medium = pb.Media(
        key="v",
        modality=pb.MODALITY_VIDEO,
        inline_frames=pb.InlineFrames(pictures=PICTURES),
        frames=pb.FrameList(fps=2),
    )
    result = await caller.prepare(spec_of(medium))
    tensors = expected(model, chat(asked(video(frames=PICTURES, fps=2))).spec, {})
    np.testing.assert_array_equal(result.tensors["pixel_patches"], tensors["pixel_patches"])


async def test_an_engine_answers_about_frames(model: Model) -> None:
    prompt = chat(asked(video(frames=PICTURES, fps=1)))
    async with (
        serving(model, FakeEngine((11, 12))) as caller,
        AsyncClient(caller.server.address) as client,
        client.generate(prompt) as answer,
    ):
        await answer.read()
    assert answer.token_ids == [11, 12]


async def test_a_damaged_frame_is_replaced_and_reported_or_refused(caller: Caller) -> None:
    pictures = [*PICTURES[:2], PICTURES[2][:80], *PICTURES[3:]]
    async with AsyncClient(caller.server.address) as client:
        result = await client.prepare(chat(asked(video(frames=pictures, fps=4, tolerant=True, key="it"))))
        assert list(result.report.substitutions) == [pb.Substitution(key="it", frame_index=2, used_frame_index=1)]
        with pytest.raises(CallFailed, match=r"the frame at 0\.500 s cannot be decoded") as caught:
            await client.prepare(chat(asked(video(frames=pictures, fps=4))))
    assert caught.value.reason == "UNDECODABLE_FRAME"


async def test_fields_at_fault_are_named(model: Model) -> None:
    limits = Limits(max_media_bytes=LARGE.nbytes - 1)
    async with serving(model, limits=limits) as caller, AsyncClient(caller.server.address) as client:
        for medium, reason, fields in (
            (video(frames=PICTURES, times_seconds=[0, 1]), "INVALID_FRAMES", ["media[0].frames.times_seconds"]),
            (video(frames=LARGE, fps=1), "MEDIA_TOO_LARGE", ["media[0]"]),
        ):
            with pytest.raises(CallFailed) as caught:
                await client.prepare(chat(asked(medium)))
            assert caught.value.reason == reason
            assert list(caught.value.fields) == fields


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Frames, written in another order than that of their names, beside another file."""
    path = tmp_path / "camera"
    path.mkdir()
    for number in (3, 0, 4, 1, 2):
        (path / f"{number:02}.png").write_bytes(PICTURES[number])
    (path / "notes.txt").write_text("not a frame")
    (tmp_path / "times.txt").write_text("0 0.5\n1\n2.25\n9\n")
    return path


async def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert await asyncio.to_thread(main, [*arguments, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


async def test_the_command_line_takes_a_folder_of_frames(
    caller: Caller, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ("prepare", "--address", caller.server.address, "--frames", str(folder))
    (item,) = (await printed(capsys, *there, "--fps", "4"))["items"]
    assert (item["key"], item["times_seconds"]) == ("camera", [0, 0.25, 0.5, 0.75, 1])
    timed = ("--frame-times", str(folder.with_name("times.txt")))
    (item,) = (await printed(capsys, *there, *timed))["items"]
    assert item["times_seconds"] == [0, 0.5, 1, 2.25, 9]


@pytest.mark.parametrize(
    "wrong",
    [
        ("--frames", "{folder}"),
        ("--frames", "{folder}", "--num-frames", "2"),
        ("--frames", "{folder}/..", "--fps", "1"),
        ("--frames", "{folder}/missing", "--fps", "1"),
        ("--frames", "{folder}", "--frame-times", "{folder}/notes.txt"),
        ("--text", "x", "--frame-times", "{folder}/../times.txt"),
    ],
)
async def test_a_folder_that_cannot_be_meant_is_refused(
    caller: Caller, folder: Path, capsys: pytest.CaptureFixture[str], wrong: tuple[str, ...]
) -> None:
    options = [option.format(folder=folder) for option in wrong]
    assert await asyncio.to_thread(main, ["prepare", "--address", caller.server.address, *options]) != 0
    assert len(capsys.readouterr().err.splitlines()) == 1
