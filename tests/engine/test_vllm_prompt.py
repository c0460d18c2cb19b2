"""The message for vLLM: joined as protobuf reads it, and refused where the engine core would not survive it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import pytest
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_client import (
    EngineMismatch,
    EngineOptions,
    EngineRejected,
    EngineRequest,
    SamplingParameters,
    connect_engine,
)
from engine_client.contract.tensors import IMAGE, VIDEO, Array
from engine_client.vllm import VllmEngine
from engine_client.vllm.prompt import encode_prompt
from engine_client.vllm.server import VllmServer, read_bundle, read_server
from preprocessor import pipeline
from preprocessor.models.family import Model
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PixelForm,
    PreparationRequest,
    Sampling,
)
from tests.loading import load_family_model
from tests.media import moving_shapes_clip, photo

IMAGE_PAD, VIDEO_PAD, VISION_START = 151655, 151656, 151652
SERVER = VllmServer(
    model_name="m",
    model_type="qwen3_vl",
    normalizes=True,
    float_type="float32",
    max_prompt_tokens=100_000,
    max_item_tokens=0,
    max_items=MappingProxyType({}),
    vocabulary_size=151936,
    pad_ids=MappingProxyType({IMAGE: IMAGE_PAD, VIDEO: VIDEO_PAD}),
    rows_per_token=4,
    vision_start_id=VISION_START,
    shm_namespace="",
    parameters=MappingProxyType({}),
)
MEDIA = (
    Media("a", Modality.IMAGE, photo()),
    Media("b", Modality.VIDEO, moving_shapes_clip(seconds=2, width=64, height=64), Sampling(fps=2)),
    Media("c", Modality.IMAGE, photo()),
)


def prepared(model: Model, form: PixelForm | None = None) -> dict[str, Array]:
    message = Message("user", tuple(MediaPart(medium.key) for medium in MEDIA))
    return dict(pipeline.prepare(model, PreparationRequest(ChatPrompt((message,)), MEDIA, form)).tensors)


@pytest.fixture(scope="module")
def tensors(model: Model) -> Mapping[str, Array]:
    return prepared(model)


def encoded(tensors: Mapping[str, Array], server: VllmServer = SERVER) -> pb.GenerateRequest:
    request = EngineRequest("r", tensors, SamplingParameters(max_tokens=3, seed=2**40 + 5, stop_token_ids=(7,)))
    return pb.GenerateRequest.FromString(encode_prompt("engine", request, server))


def pixels_of(batch: pb.MultimodalInputs, dtype: type[np.generic] = np.uint8) -> Array:
    return np.frombuffer(batch.pixel_values.inline, dtype).reshape(tuple(batch.pixel_values.shape))


def test_a_batch_for_each_modality_has_the_rows_of_its_items(tensors: Mapping[str, Array]) -> None:
    message = encoded(tensors)
    assert message.tokenized.input_ids == tensors["input_ids"].tolist()
    assert (message.stream, message.sampling_params.max_tokens, message.sampling_params.seed) == (
        True,
        3,
        5 + 2**40 % 2**31,
    )
    videos, (images,) = message.mm_inputs, message.extra_mm_inputs
    counts = tensors["grid_thw"].prod(axis=1)
    starts = np.cumsum([0, *counts])
    rows = [tensors["pixel_patches"][starts[item] : starts[item + 1]] for item in range(3)]
    assert (videos.modality, images.modality) == (common_pb2.VIDEO, common_pb2.IMAGE)
    assert np.array_equal(pixels_of(videos), rows[1])
    assert np.array_equal(pixels_of(images), np.concatenate([rows[0], rows[2]]))
    assert [hash_ for batch in (videos, images) for hash_ in batch.mm_hashes] == [
        tensors["item_hash"][item].tobytes().hex() for item in (1, 0, 2)
    ]


def test_a_range_of_a_video_begins_at_its_first_marker(tensors: Mapping[str, Array]) -> None:
    message = encoded(tensors)
    (video,) = message.mm_inputs.mm_placeholders
    ids = tensors["input_ids"][video.offset : video.offset + video.length]
    assert (ids[0], ids[-1]) == (VISION_START, VIDEO_PAD)
    for image in message.extra_mm_inputs[0].mm_placeholders:
        assert set(tensors["input_ids"][image.offset : image.offset + image.length].tolist()) == {IMAGE_PAD}


@pytest.mark.parametrize(
    ("float_type", "form", "dtype"),
    [
        ("float32", PixelForm.FP32, np.uint32),
        ("bfloat16", PixelForm.BF16, np.uint16),
        ("float16", PixelForm.FP16, np.uint16),
    ],
)
def test_a_server_that_does_not_normalize_gets_the_floats_that_hugging_face_makes(
    model: Model, tensors: Mapping[str, Array], float_type: str, form: PixelForm, dtype: type[np.generic]
) -> None:
    message = encoded(tensors, dataclasses.replace(SERVER, normalizes=False, float_type=float_type))
    counts = tensors["grid_thw"].prod(axis=1)
    expected = prepared(model, form)["pixel_values"][counts[0] : counts[0] + counts[1]]
    assert message.mm_inputs.pixel_values.dtype == float_type
    assert np.array_equal(pixels_of(message.mm_inputs, dtype), expected.view(dtype))


def without(name: str) -> Callable[[dict[str, Array]], object]:
    return lambda tensors: tensors.pop(name)


def changed(name: str, place: tuple[int, ...], value: int) -> Callable[[dict[str, Array]], None]:
    def change(tensors: dict[str, Array]) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name][place] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("item_hash"), "lacks item_hash"),
        (without("pixel_mean"), "lacks pixel_mean"),
        (changed("grid_thw", (0, 1), 0), "not above 0"),
        (changed("grid_thw", (0, 1), 4), "rows"),
        (changed("item_spans", (0, 2), 1), "placeholders"),
        (changed("item_spans", (0, 0), 9), "item that the prompt does not have"),
        (changed("item_spans", (0, 1), 10**6), "do not lie in the prompt"),
        (changed("item_modality", (0,), 3), "neither image nor video"),
        (changed("item_modality", (0,), VIDEO), "has the placeholder"),
        (changed("input_ids", (0,), -1), "vocabulary"),
        (changed("input_ids", (0,), 151936), "vocabulary"),
    ],
)
def test_what_would_end_the_core_is_refused(
    tensors: Mapping[str, Array], change: Callable[[dict[str, Array]], object], message: str
) -> None:
    made = dict(tensors)
    change(made)
    with pytest.raises(EngineRejected, match=message):
        encoded(made)


def test_a_video_without_its_first_marker_is_refused(tensors: Mapping[str, Array]) -> None:
    (first, *_) = [offset for item, offset, _ in tensors["item_spans"].tolist() if item == 1]
    made = dict(tensors)
    changed("input_ids", (first - 1,), 5)(made)
    with pytest.raises(EngineRejected, match="no vision marker"):
        encoded(made)


def test_seconds_of_qwen2_5_vl_are_those_of_its_videos() -> None:
    server = dataclasses.replace(SERVER, model_type="qwen2_5_vl")
    made = prepared(load_family_model("qwen2.5-vl"))
    assert made["second_per_grid_ts"].tolist() == [0, 1, 0]  # an item each
    seconds = encoded(made, server).mm_inputs.model_specific_tensors["second_per_grid_ts"]
    assert (np.frombuffer(seconds.inline, np.float32).tolist(), seconds.dtype) == ([1], "float32")
    for change, message in (
        (without("second_per_grid_ts"), "lacks second_per_grid_ts"),  # vLLM would take a second for each step
        (changed("second_per_grid_ts", (1,), 0), "must be above 0"),
        (lambda broken: broken.update(second_per_grid_ts=broken["second_per_grid_ts"][1:]), "one an item"),
    ):
        broken = dict(made)
        change(broken)
        with pytest.raises(EngineRejected, match=message):
            encoded(broken, server)


def test_items_without_stamps_must_have_one_run_of_placeholders(tensors: Mapping[str, Array]) -> None:
    item, offset, length = tensors["item_spans"][0].tolist()
    parts = np.array([[item, offset, 1], [item, offset + 1, length - 1]], np.int32)
    with pytest.raises(EngineRejected, match="item 0 has 2 runs of placeholders"):
        encoded({**tensors, "item_spans": np.concatenate([parts, tensors["item_spans"][1:]])})


def test_the_server_s_limits_hold(tensors: Mapping[str, Array]) -> None:
    for limits, message in (
        ({"max_items": {IMAGE: 1}}, "2 images; the engine takes 1"),
        ({"max_item_tokens": 3}, "encoder takes 3"),
        ({"max_prompt_tokens": 20}, "context holds 20"),
    ):
        with pytest.raises(EngineRejected, match=message):
            encoded(tensors, dataclasses.replace(SERVER, **limits))


def test_servers_that_cannot_be_served_are_named() -> None:
    model, server = pb.GetModelInfoResponse(model_type="llava"), pb.GetServerInfoResponse()
    with pytest.raises(EngineMismatch, match=r"llava.*smg-grpc-servicer before 0\.14"):
        read_server("engine", model, server, {})


def test_what_is_no_archive_tells_nothing() -> None:
    assert read_bundle([b"PK", b"\x03\x04garbage"]) == read_bundle([]) == {}


async def test_the_scheme_chooses_it() -> None:
    engine = connect_engine("vllm://127.0.0.1:1", EngineOptions())
    assert isinstance(engine, VllmEngine)
    with pytest.raises(ValueError, match="tensor mapping"):
        connect_engine("vllm://127.0.0.1:1", EngineOptions(tensor_mapping="vlm_transformers"))
    await engine.close()
