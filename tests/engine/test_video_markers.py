"""What a Triton model declares of the markers around a video."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from deploy.triton.local_server import RANDOM_WEIGHTS, REPOSITORY, TritonServer, TritonSetupError
from engine_client import TritonEngine
from engine_client.fingerprint import Fingerprint, OnMismatch
from engine_client.triton.backend.video_markers import (
    PARAMETER,
    check_video_markers,
    declare_video_markers,
    video_markers_of,
)
from preprocessor.cli.doctor.engine import check_fingerprint
from preprocessor.cli.doctor.files import check_model
from preprocessor.cli.doctor.finding import Verdict
from preprocessor.config import EngineSettings
from preprocessor.models.fingerprint import fingerprint_parts
from preprocessor.models.registry import load_model
from preprocessor.service.engine_options import declared_video_markers
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from tests.bench.service.watched import WatchedServer
from tests.engine.servers import SCRIPTED_REPOSITORY, serving
from tests.waiting import PATIENCE_SECONDS


@pytest.mark.parametrize(
    ("release", "markers"),
    [
        ("4.57.6", "replace"),
        ("5.0.0", "replace"),
        ("5.9.0", "replace"),
        ("5.10.0.dev0", "keep"),
        ("5.23.0", "keep"),
        ("6.0.0", "keep"),
    ],
)
def test_transformers_keep_the_markers_since_5_10(release: str, markers: str) -> None:
    assert video_markers_of(release) == markers


def test_what_is_no_version_is_refused() -> None:
    with pytest.raises(ValueError, match="'main' is no version of transformers"):
        video_markers_of("main")


@pytest.mark.parametrize("declared", ["replace", " replace ", ""])
def test_a_model_may_declare_what_is_so_or_nothing(declared: str) -> None:
    assert check_video_markers({PARAMETER: declared}, "5.9.0") == "replace"


def test_a_model_that_declares_what_is_not_so_is_told_what_to_write() -> None:
    with pytest.raises(
        ValueError, match=r"fingerprint\.video_markers is 'keep'; transformers 4\.57\.6 here is for 'replace'"
    ):
        check_video_markers({PARAMETER: "keep"}, "4.57.6")


@pytest.mark.parametrize("name", ["vlm_transformers", "vlm_tensorrt_llm"])
def test_an_image_is_built_with_what_its_transformers_do(name: str, tmp_path: Path) -> None:
    config = tmp_path / "config.pbtxt"
    shutil.copy(REPOSITORY / name / "config.pbtxt", config)
    before = config.read_text()
    for release, markers in (("4.57.6", "replace"), ("5.23.0", "keep")):
        assert declare_video_markers(config, release) == markers
        (line,) = [line for line in config.read_text().splitlines() if PARAMETER in line]
        assert line.split() == ["{", "key:", f'"{PARAMETER}"', "value:", "{", "string_value:", f'"{markers}"', "}", "}"]
    assert len(config.read_text().splitlines()) == len(before.splitlines())


def test_a_configuration_without_the_parameter_is_not_written(tmp_path: Path) -> None:
    config = tmp_path / "config.pbtxt"
    config.write_text('name: "other"\n')
    with pytest.raises(ValueError, match=r"has 0 parameters fingerprint\.video_markers"):
        declare_video_markers(config, "5.23.0")
    assert config.read_text() == 'name: "other"\n'


def test_an_engine_for_the_other_prompt_is_refused() -> None:
    ours = Fingerprint(fingerprint_parts(load_model("qwen3-vl", "keep")))
    assert ours.compare({PARAMETER: "keep"}).refused == ()
    assert ours.compare({PARAMETER: "replace"}).refused == (
        "fingerprint video_markers of the engine is replace, of this side keep",
    )


def test_a_served_model_that_declares_what_is_not_so_does_not_load(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "vlm_transformers", tmp_path / "vlm_transformers")
    declare_video_markers(tmp_path / "vlm_transformers" / "config.pbtxt", "4.57.6")
    server = TritonServer(["vlm_transformers"], repository=tmp_path, environment=RANDOM_WEIGHTS)
    with (
        pytest.raises(TritonSetupError, match=r"fingerprint\.video_markers is 'replace'; transformers 5\.23\.0 here"),
        server,
    ):
        pass


# -- what `auto` makes of it -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def declaring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A model that declares `replace`."""
    folder = tmp_path_factory.mktemp("declaring")
    shutil.copytree(SCRIPTED_REPOSITORY / "scripted", folder / "scripted")
    with (folder / "scripted" / "config.pbtxt").open("a") as config:
        config.write(f'parameters [ {{ key: "{PARAMETER}" value: {{ string_value: "replace" }} }} ]\n')
    with serving("scripted", folder) as server:
        yield server


async def test_an_engine_is_asked_what_it_declares(declaring: TritonServer, scripted_triton: TritonServer) -> None:
    async def declared(*addresses: str) -> str:
        return await declared_video_markers(EngineSettings(address=",".join(addresses), model="scripted"))

    assert await declared(declaring.grpc_address) == "replace"
    assert await declared(scripted_triton.grpc_address, declaring.grpc_address) == "replace"
    assert await declared(scripted_triton.grpc_address) == "auto"
    assert await declared("127.0.0.1:1") == "auto"
    assert await declared("other://engine:1") == "auto"


@pytest.mark.parametrize(("asked", "markers"), [("auto", pb.VIDEO_MARKERS_REPLACE), ("keep", pb.VIDEO_MARKERS_KEEP)])
def test_serve_prepares_prompts_as_the_engine_declares(
    declaring: TritonServer, asked: str, markers: pb.VideoMarkers.ValueType
) -> None:
    engine = ("--engine", declaring.grpc_address, "--engine-model", "scripted")
    with WatchedServer("--workers", "1", *engine, "--video-markers", asked, is_warm=True) as server:
        with grpc.insecure_channel(server.address) as channel:
            model = pb_grpc.PreprocessorStub(channel).GetModel(pb.GetModelRequest(), timeout=PATIENCE_SECONDS)
        server.process.terminate()
        assert server.wait() == 0
    assert model.video_markers == markers


async def test_doctor_compares_with_what_the_engine_declares(declaring: TritonServer) -> None:
    settings = EngineSettings(address=declaring.grpc_address, model="scripted")
    async with TritonEngine(declaring.grpc_address, "scripted") as engine:
        info = await engine.describe()
    for asked, verdict in (("replace", Verdict.OK), ("keep", Verdict.FAILED)):
        _, model = check_model("qwen3-vl", asked)
        assert model is not None
        finding = check_fingerprint(settings.address, info, fingerprint_parts(model), OnMismatch.REFUSE)
        assert finding.verdict is verdict
    assert "--video-markers" in finding.fix
