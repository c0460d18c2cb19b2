"""How the bench of peers reads and compares what they make, and what it says of them; without any of them."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as engine_pb
from smg_grpc_proto.generated.vllm_engine_pb2_grpc import VllmEngineStub

from engine_client.shm import DIRECTORY
from engine_client.vllm import VllmEngine
from engine_client.vllm.links import namespace_id
from preprocessor import pipeline
from preprocessor.models.family import Model
from preprocessor.types.request import ChatPrompt, MediaPart, Message, PreparationRequest, TextPart
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.bench.contest import CannotDo, Disagreement, Result, Runner, Sample, Timed
from tests.bench.peers.__main__ import compare, tables
from tests.bench.peers.engine import running_engine
from tests.bench.peers.made import Made, difference, read_prompt
from tests.bench.peers.workloads import Workload, made_by_pipeline
from tests.engine.vllm_prompts import answer, clip, tensors_of

MADE = Made(np.arange(5), np.array([[1, 2, 2]]), np.arange(8, dtype=np.uint8).reshape(4, 2) * 30)


def never() -> Result:
    raise AssertionError("nothing is timed here")


@pytest.fixture(scope="module")
def workload() -> Workload:
    request = PreparationRequest(ChatPrompt((Message("user", (MediaPart("clip"), TextPart("What?"))),)), (clip(),))
    return Workload("a clip", 2.0, (bytes(clip().data),), pb.PrepareSpec(), {}, request, never)


class System:
    """A system that makes what it is told to."""

    def __init__(self, name: str, made: Made | CannotDo) -> None:
        self.name = name
        self._made = made

    def made(self, workload: Workload) -> Made:
        if isinstance(self._made, CannotDo):
            raise self._made
        return self._made

    def runner(self, workload: Workload, count: int) -> Runner:
        raise AssertionError("nothing is timed here")


def test_equal_prompts_do_not_differ() -> None:
    assert difference(MADE, MADE) == ""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"token_ids": np.arange(6)}, "6 tokens in place of 5"),
        ({"token_ids": np.array([0, 1, 2, 3, 9])}, "1 of 5 token ids differ"),
        ({"grids": np.array([[1, 2, 4]])}, "grids [1, 2, 4] in place of [1, 2, 2]"),
        ({"pixels": MADE.pixels[:3]}, "pixels of shape [3, 2] in place of [4, 2]"),
        (
            {"pixels": MADE.pixels + np.array([[0, 0], [0, 4], [0, 0], [0, 0]], np.uint8)},
            "12.50% of the pixels differ, in 25% of the patches, by 0.5 levels on average over all, 4 at most",
        ),
    ],
)
def test_what_differs_is_said(changed: dict[str, np.ndarray], said: str) -> None:
    assert difference(replace(MADE, **changed), MADE) == said


def test_floats_are_compared_as_the_levels_that_they_were_made_from() -> None:
    normalized = ((MADE.pixels / 255 - 0.5) / 0.5).astype(np.float32)
    assert difference(replace(MADE, pixels=normalized), MADE) == "pixels are float32"
    normalized[0, 0] += 2 / 255
    assert "12.50% of the pixels differ" in difference(replace(MADE, pixels=normalized), MADE)


async def test_what_an_engine_receives_is_what_the_pipeline_made(model: Model, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    tensors = tensors_of(model, (clip(),))
    with running_engine(tmp_path) as engine:
        async with VllmEngine(engine.address) as client:
            tokens, _ = await answer(client, tensors)
    assert tokens == [1, 2, 3]
    assert engine.last is not None
    expected = Made(tensors["input_ids"].ravel(), tensors["grid_thw"], tensors["pixel_patches"])
    assert difference(read_prompt(engine.last), expected) == ""


async def test_tensors_in_shared_memory_are_read_and_their_names_removed(tmp_path: Path) -> None:
    path = DIRECTORY / f"bench-peers-{secrets.token_hex(8)}"
    path.write_bytes(b"..abcd")
    handle = common_pb2.ShmHandle(name=path.name, offset=2, nbytes=4)
    inputs = engine_pb.MultimodalInputs(pixel_values=engine_pb.TensorData(shape=[4], dtype="uint8", shm=handle))
    try:
        with running_engine(tmp_path, shares_memory=True) as engine:
            async with grpc.aio.insecure_channel(engine.address) as channel:
                stub = VllmEngineStub(channel)
                info = await stub.GetServerInfo(engine_pb.GetServerInfoRequest())
                replies = [reply async for reply in stub.Generate(engine_pb.GenerateRequest(mm_inputs=inputs))]
        assert not path.exists()
    finally:
        path.unlink(missing_ok=True)
    assert info.shm_namespace_id == namespace_id()
    assert [reply.WhichOneof("response") for reply in replies] == ["complete"]
    assert engine.last is not None
    assert engine.last.mm_inputs.pixel_values.inline == b"abcd"


def test_a_system_may_refuse_but_not_differ(model: Model, workload: Workload) -> None:
    right = made_by_pipeline(model, workload)
    able, unable = compare(model, workload, [System("right", right), System("refuses", CannotDo("no clips"))])
    assert [system.name for system in able] == ["right"]
    assert unable == {"refuses": "no clips"}
    wrong = System("wrong", replace(right, token_ids=right.token_ids[:-1]))
    with pytest.raises(Disagreement, match=r"a clip, wrong: \d+ tokens in place of \d+"):
        compare(model, workload, [wrong])


def test_the_rate_stands_where_a_system_looks_for_it(workload: Workload) -> None:
    ours, theirs = (json.loads(workload.chat_body(fps_beside_url=beside)) for beside in (False, True))
    assert ours["media_io_kwargs"] == {"video": {"fps": 2.0}}
    assert "media_io_kwargs" not in theirs
    assert theirs["messages"][0]["content"][0]["video_url"]["fps"] == 2.0
    photo = json.loads(replace(workload, fps=None).chat_body())
    assert [one["type"] for one in photo["messages"][0]["content"]] == ["image_url", "text"]


def test_each_request_has_other_bytes_and_the_same_pictures(model: Model, workload: Workload) -> None:
    urls = [json.loads(workload.chat_body())["messages"][0]["content"][0]["video_url"]["url"] for _ in range(2)]
    files = [base64.b64decode(url.partition(",")[2]) for url in urls]
    assert files[0] != files[1]
    expected = made_by_pipeline(model, workload)
    for file in files:
        request = replace(workload.request, media=(replace(clip(), data=file),))
        assert difference(made_by_pipeline(model, replace(workload, request=request)), expected) == ""


def test_the_pipeline_makes_what_a_workload_asks(model: Model, workload: Workload) -> None:
    made = made_by_pipeline(model, workload)
    assert made.pixels.shape[0] == int(np.prod(made.grids, axis=1).sum())
    assert made.token_ids.size == pipeline.prepare(model, workload.request).tensors["input_ids"].size


def samples(*milliseconds: float) -> Timed:
    return Timed([Sample(one * 2, one, {}) for one in milliseconds])


def rows(lines: Sequence[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line]


def test_tables_have_medians_ratios_of_cpu_and_a_dash_for_what_cannot() -> None:
    timed = {
        "clip": {"ours": samples(10, 30, 20), "vLLM, in process": samples(60), "ours → engine": samples(5)},
        "photo": {"ours": samples(4), "ours → engine": samples(5), "SMG → engine": samples(10)},
    }
    names = ["ours", "vLLM, in process", "ours → engine", "SMG → engine"]
    head, _, clip_times, photo_times, ratio_head, _, clip_ratios, photo_ratios = rows(tables(timed, names))
    assert head == ["CPU / wall, ms", *names]
    assert clip_times == ["clip", "20 / 40", "60 / 120", "5 / 10", "—"]
    assert photo_times == ["photo", "4 / 8", "—", "5 / 10", "10 / 20"]
    assert ratio_head[1:] == ["vLLM, in process ÷ ours", "SMG → engine ÷ ours → engine"]
    assert (clip_ratios[1:], photo_ratios[1:]) == (["3.00", "—"], ["—", "2.00"])


def test_without_peers_there_are_no_ratios() -> None:
    assert len(rows(tables({"clip": {"ours": samples(1)}}, ["ours"]))) == 3
