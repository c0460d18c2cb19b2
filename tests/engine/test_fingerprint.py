"""An engine set up for other prompts is refused with both values, unless someone says otherwise."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deploy.triton.local_server import REPOSITORY, TritonServer
from engine_client import (
    EXACT_PARTS,
    EndpointHealth,
    Endpoints,
    EngineCapabilities,
    EngineClient,
    EngineMismatch,
    EngineRequest,
    EngineUnavailable,
    Fingerprint,
    OnMismatch,
    PixelType,
    SamplingParameters,
    TritonEngine,
    format_parameters,
    load_mapping,
)
from engine_client.contract.published import published_parts
from engine_client.testing import FakeEngine
from preprocessor.models.family import Model
from preprocessor.models.fingerprint import CONTRACT_VERSION, fingerprint_parts
from tests.engine.prompts import image_prompt, text_prompt
from tests.engine.relay import Relay
from tests.engine.servers import SCRIPTED_REPOSITORY, answer, serving
from tests.engine.several import CALM, Ordered, by_name, tokens


@pytest.fixture(scope="module")
def published_triton() -> Iterator[TritonServer]:
    """A model set up for patches of 14 px; see its config.pbtxt."""
    with serving("legacy_encoders", SCRIPTED_REPOSITORY) as server:
        yield server
        server.kill()


def engine_for(server: TritonServer, fingerprint: Fingerprint) -> TritonEngine:
    profile = load_mapping("multimodal_encoders")
    return TritonEngine(server.grpc_address, "legacy_encoders", mapping=profile, fingerprint=fingerprint)


def legacy_request() -> EngineRequest:
    prompt = image_prompt()
    pixels = prompt["pixel_patches"].astype(np.float16)
    return EngineRequest("r", prompt | {"pixel_patches": pixels}, SamplingParameters(max_tokens=99))


# -- with real engines -------------------------------------------------------------------------------------------------


async def test_an_engine_publishes_its_fingerprint_and_what_is_empty_is_not_compared(
    published_triton: TritonServer,
) -> None:
    async with TritonEngine(published_triton.grpc_address, "legacy_encoders") as engine:
        info = await engine.describe()
    assert published_parts(info.parameters) == {
        "patch_size": "14",
        "pixel_mean": "[0.5, 0.5, 0.5]",
        "model": "Qwen/Qwen2-VL-2B-Instruct",
    }


async def test_an_engine_that_agrees_gets_prompts(published_triton: TritonServer) -> None:
    ours = Fingerprint(
        {"patch_size": "14", "pixel_mean": "[0.5,0.5,0.50]", "merge_size": "3", "temporal_patch_size": "2"}
    )
    async with engine_for(published_triton, ours) as engine:
        await engine.check_ready()
        assert await answer(engine, legacy_request())


async def test_an_engine_that_differs_is_refused_with_both_values(published_triton: TritonServer) -> None:
    async with engine_for(
        published_triton, Fingerprint({"patch_size": "16", "pixel_mean": "[0.4, 0.5, 0.5]"})
    ) as engine:
        for attempt in (engine.check_ready(), answer(engine, legacy_request())):
            with pytest.raises(EngineMismatch) as raised:
                await attempt
            assert raised.value.mismatches == (
                "fingerprint patch_size of the engine is 14, of this side 16",
                "fingerprint pixel_mean of the engine is [0.5, 0.5, 0.5], of this side [0.4, 0.5, 0.5]",
            )


async def test_the_override_lets_it_through_and_says_so_once(
    published_triton: TritonServer, caplog: pytest.LogCaptureFixture
) -> None:
    ours = Fingerprint({"patch_size": "16"}, OnMismatch.WARN)
    with caplog.at_level(logging.WARNING, "engine_client"):
        async with engine_for(published_triton, ours) as engine:
            await engine.check_ready()
            await engine.check_ready()
            assert await answer(engine, legacy_request())
    assert caplog.text.count("patch_size of the engine is 14, of this side 16") == 1


async def test_another_name_or_library_is_only_logged(
    published_triton: TritonServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "engine_client"):
        async with engine_for(published_triton, Fingerprint({"model": "qwen2-vl"})) as engine:
            await engine.check_ready()
    assert "model of the engine is Qwen/Qwen2-VL-2B-Instruct, of this side qwen2-vl" in caplog.text


async def test_the_deployed_model_agrees_with_the_preprocessor(triton: TritonServer, model: Model) -> None:
    async with TritonEngine(triton.grpc_address, fingerprint=Fingerprint(fingerprint_parts(model))) as engine:
        await engine.check_ready()
        request = EngineRequest("r", text_prompt(), SamplingParameters(max_tokens=2))
        assert len(await answer(engine, request)) == 2
        published = published_parts((await engine.describe()).parameters)
    assert published == {"contract_version": CONTRACT_VERSION, "video_markers": "keep"}


async def test_an_engine_of_another_contract_is_refused(triton: TritonServer, model: Model) -> None:
    parts = fingerprint_parts(model) | {"contract_version": "0"}
    async with TritonEngine(triton.grpc_address, fingerprint=Fingerprint(parts)) as engine:
        with pytest.raises(EngineMismatch, match="contract_version of the engine is 1, of this side 0"):
            await engine.check_ready()


async def test_of_two_engines_the_one_that_differs_gets_nothing(published_triton: TritonServer) -> None:
    same = FakeEngine([5], capabilities=EngineCapabilities((PixelType.FP16,)))
    engines: dict[str, EngineClient] = {
        "other": engine_for(published_triton, Fingerprint({"patch_size": "16"})),
        "same": same,
    }
    async with Endpoints(engines, CALM, chance=Ordered()) as endpoints:
        assert await tokens(endpoints) == [5]
        state = by_name(endpoints)["other"]
    assert state.health is EndpointHealth.EJECTED
    assert "patch_size of the engine is 14" in state.last_error


async def test_an_engine_that_was_exchanged_between_two_prompts_is_compared_again(
    published_triton: TritonServer, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(SCRIPTED_REPOSITORY / "legacy_encoders", tmp_path / "legacy_encoders"))
    config = (copy / "config.pbtxt").read_text()
    assert config.count('"14"') == 1
    (copy / "config.pbtxt").write_text(config.replace('"14"', '"16"'))
    with serving("legacy_encoders", tmp_path) as exchanged:
        async with Relay(published_triton.grpc_address) as relay:
            profile, ours = load_mapping("multimodal_encoders"), Fingerprint({"patch_size": "14"})
            async with TritonEngine(relay.address, "legacy_encoders", mapping=profile, fingerprint=ours) as engine:
                assert await answer(engine, legacy_request())
                relay.upstream = exchanged.grpc_address
                await relay.cut()
                # The first may still find the old connection, and that it has ended; none may be answered.
                with pytest.raises(EngineUnavailable):
                    await answer(engine, legacy_request())
                with pytest.raises(EngineMismatch, match="patch_size of the engine is 16, of this side 14"):
                    await answer(engine, legacy_request())
        exchanged.kill()


# -- comparing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(EXACT_PARTS))
def test_each_part_that_changes_what_a_prompt_means_must_be_equal(name: str) -> None:
    comparison = Fingerprint({name: "a"}).compare({f"fingerprint.{name}": "b"})
    assert comparison.refused == (f"fingerprint {name} of the engine is b, of this side a",)
    assert comparison.warned == ()


@pytest.mark.parametrize("name", ["model", "preprocessing_sha256", "library.torch", "something_new"])
def test_any_other_part_is_only_worth_a_line_in_the_log(name: str) -> None:
    comparison = Fingerprint({name: "a"}).compare({f"fingerprint.{name}": "b"})
    assert (len(comparison.refused), len(comparison.warned)) == (0, 1)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"patch_size": "16"}, {}),
        ({}, {"fingerprint.patch_size": "16"}),
        ({"patch_size": "16"}, {"fingerprint.patch_size": " "}),
        ({"patch_size": ""}, {"fingerprint.patch_size": "16"}),
        ({"patch_size": "16"}, {"patch_size": "14"}),
        ({"patch_size": "16"}, {"fingerprint.patch_size": " 16 "}),
        ({"pixel_std": "[0.5, 0.5, 0.5]"}, {"fingerprint.pixel_std": "[0.50,0.5,0.5]"}),
    ],
    ids=["not published", "not known here", "blank there", "blank here", "no part of it", "blanks", "as JSON"],
)
def test_nothing_is_wrong_where_nothing_differs_that_both_sides_say(
    ours: dict[str, str], theirs: dict[str, str]
) -> None:
    comparison = Fingerprint(ours).compare(theirs)
    assert (comparison.refused, comparison.warned) == ((), ())


def test_where_it_is_required_an_engine_that_leaves_a_part_empty_is_refused() -> None:
    ours = Fingerprint({"patch_size": "16", "family": "qwen3_vl", "model": "m"}, OnMismatch.REQUIRE)
    comparison = ours.compare({"fingerprint.family": "qwen3_vl", "fingerprint.patch_size": " "})
    assert comparison.refused == ("fingerprint patch_size is not published by the engine, and must be",)
    assert comparison.warned == ()


def test_where_it_is_required_a_part_that_this_side_does_not_have_may_be_missing() -> None:
    assert Fingerprint({"family": ""}, OnMismatch.REQUIRE).compare({}).refused == ()


def test_where_it_is_required_a_part_that_differs_is_refused_too() -> None:
    comparison = Fingerprint({"patch_size": "16"}, OnMismatch.REQUIRE).compare({"fingerprint.patch_size": "14"})
    assert len(comparison.refused) == 1


def test_a_strictness_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="on_mismatch is 'ignore'; it must be one of refuse, require, warn"):
        Fingerprint({}, "ignore")  # type: ignore[arg-type]


# -- what an operator puts in place ------------------------------------------------------------------------------------


def test_the_text_for_an_operator_is_read_back_by_tritons_own_format(model: Model) -> None:
    parts = fingerprint_parts(model) | {"odd": 'quotes ", \\ and ünïcode'}
    config = text_format.Parse(f"parameters [\n{format_parameters(parts)}\n]", model_config_pb2.ModelConfig())
    assert published_parts({key: value.string_value for key, value in config.parameters.items()}) == parts


@pytest.mark.parametrize("name", ["vlm_transformers", "vlm_tensorrt_llm"])
def test_a_deployed_model_s_configuration_has_a_place_for_every_part_that_must_be_equal(name: str) -> None:
    text = (REPOSITORY / name / "config.pbtxt").read_text()
    assert set(re.findall(r'"fingerprint\.(\w+)"', text)) == EXACT_PARTS | {"model"}
