"""Messages for vLLM of the families beside Qwen: tensors as transformers' processors make them; wrong prompts are rejected."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_client import EngineMismatch, EngineRejected, EngineRequest
from engine_client.contract.errors import InvalidPrompt
from engine_client.contract.prompt import check_prompt
from engine_client.contract.tensors import VIDEO, Array
from engine_client.contract.vllm_families import FAMILIES, REFUSED
from engine_client.fingerprint import EXACT_PARTS, Fingerprint
from engine_client.vllm.prompt import encode_prompt
from engine_client.vllm.server import VllmServer, read_server
from preprocessor.models.family import Model
from preprocessor.models.fingerprint import fingerprint_parts
from preprocessor.models.registry import read_model_files
from tests.engine.family_prompts import ONE_SIZE, TALL, kinds_of, media_arrays, server_of
from tests.engine.model_files import model_file
from tests.engine.tiny_families import WRITERS
from tests.engine.vllm_prompts import broken, clip, picture, tensors_of
from tests.golden.tile_oracle import processor_in
from tests.loading import load_family_model

from transformers import AutoConfig  # isort: skip  # after what makes torchvision importable


@dataclass(frozen=True)
class Tiny:
    folder: Path
    model: Model
    server: VllmServer


@pytest.fixture(scope="module")
def tinies(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Tiny]:
    made = {}
    for name, write in WRITERS.items():
        folder = tmp_path_factory.mktemp(name)
        write(folder)
        made[name] = Tiny(folder, load_family_model(str(folder)), server_of(folder, normalizes=False))
    return made


def batches(tiny: Tiny, tensors: Mapping[str, Array]) -> list[pb.MultimodalInputs]:
    message = pb.GenerateRequest.FromString(encode_prompt("engine", EngineRequest("r", tensors), tiny.server))
    return [message.mm_inputs, *message.extra_mm_inputs]


def array_of(data: pb.TensorData) -> Array:
    return np.frombuffer(data.inline, data.dtype).reshape(tuple(data.shape))


@pytest.mark.parametrize("name", WRITERS)
def test_the_pixels_of_images_are_those_of_transformers(name: str, tinies: Mapping[str, Tiny]) -> None:
    tiny, media = tinies[name], (picture("a"), picture("b"))
    arrays = media_arrays(tiny.model, tiny.folder, media)
    made = processor_in(str(tiny.folder))(
        text=[str(arrays["text"])],
        images=[arrays["image0"], arrays["image1"]],
        return_tensors="np",
        add_special_tokens=bool(arrays["adds_special_tokens"]),
    )
    tensors = tensors_of(tiny.model, media)
    (batch,) = batches(tiny, tensors)
    assert tensors["input_ids"].tolist() == made["input_ids"][0].tolist()
    assert np.array_equal(array_of(batch.pixel_values), made["pixel_values"])
    fields = batch.model_specific_tensors
    if "image_position_ids" in made:
        assert np.array_equal(array_of(fields["pixel_position_ids"]), made["image_position_ids"])
    if "image_grid_thw" in made:
        assert np.array_equal(array_of(fields["image_grid_thw"]), made["image_grid_thw"])
    assert [len(placeholder_tokens(batch, tensors, item)) for item in range(2)] == [token_count(tensors, 0)] * 2


@pytest.mark.parametrize("name", [name for name in WRITERS if name in ("glm-4.1v", "glm-4.6v", "gemma4", "internvl")])
def test_videos_and_images_go_in_a_batch_each(name: str, tinies: Mapping[str, Tiny]) -> None:
    tiny = tinies[name]
    tensors = tensors_of(tiny.model, (picture("a"), clip(fps=2), picture("b")))
    videos, images = batches(tiny, tensors)
    assert (videos.modality, images.modality) == (common_pb2.VIDEO, common_pb2.IMAGE)
    assert len(placeholder_tokens(videos, tensors, 0)) == token_count(tensors, 1)
    assert [len(placeholder_tokens(images, tensors, item)) for item in range(2)] == [token_count(tensors, 0)] * 2
    for batch in (videos, images):
        keys = {"pixel_values", *batch.model_specific_tensors}
        assert {*batch.batched_keys, *batch.flat_keys} | {"image_token_id", "video_token_id"} >= keys
    alone, _ = batches(tiny, tensors_of(tiny.model, (clip(fps=2), picture("b"))))
    assert videos.pixel_values == alone.pixel_values


def placeholder_tokens(batch: pb.MultimodalInputs, tensors: Mapping[str, Array], item: int) -> list[int]:
    """Those tokens of an item's range that features replace."""
    place = batch.mm_placeholders[item]
    within: list[int] = tensors["input_ids"][place.offset : place.offset + place.length].tolist()
    return [token for token in within if token == batch.im_token_id]


def token_count(tensors: Mapping[str, Array], item: int) -> int:
    spans = tensors["item_spans"]
    return int(spans[spans[:, 0] == item, 2].sum())


@pytest.mark.parametrize("name", WRITERS)
def test_vlm_vllm_takes_the_same_prompts_by_the_same_rules(name: str, tinies: Mapping[str, Tiny]) -> None:
    tiny = tinies[name]
    own = AutoConfig.from_pretrained(tiny.folder)
    limits = SimpleNamespace(get_limit_per_prompt={"image": 3, "video": 1}.__getitem__)
    model = SimpleNamespace(hf_config=own, multimodal_config=limits, max_model_len=8192, dtype=torch.bfloat16)
    facts = model_file("vlm_vllm", "facts").read_facts(SimpleNamespace(model_config=model), 0, None)
    assert facts.layout == tiny.server.layout
    for kind, media in kinds_of(tiny.model).items():
        tensors = tensors_of(tiny.model, media)
        items = model_file("vlm_vllm", "items").read_items(tensors, check_prompt(tensors, facts.layout), facts)
        counts = [item.token_count if item.placeholders is None else item.placeholders.sum() for item in items]
        assert counts == [token_count(tensors, item) for item in range(len(media))], kind
        if media:
            with pytest.raises(InvalidPrompt, match=f"item {len(media) - 1} has .* spans; its grid has"):
                check_prompt(tensors | {"item_spans": tensors["item_spans"][:-1]}, facts.layout)


@pytest.mark.parametrize("name", WRITERS)
def test_the_models_own_files_agree_with_what_prompts_are_prepared_for(name: str, tinies: Mapping[str, Tiny]) -> None:
    tiny = tinies[name]
    compared = Fingerprint(fingerprint_parts(tiny.model)).compare(tiny.server.info.parameters)
    assert compared.refused == ()
    assert set(compared.not_compared) <= EXACT_PARTS - {"family", "tokenizer_sha256", "patch_size", "merge_size"}


@pytest.mark.parametrize(
    ("name", "changed", "complaint"),
    [
        (
            "mistral3",
            {"grid_thw": np.array([[1, 16, 12]], np.int64)},
            "6 runs of placeholders; by its grid it must have 8",
        ),
        ("mistral3", {"grid_thw": np.array([[1, 192, 1]], np.int64)}, "h, w multiples of 2"),
        ("mistral3", {"grid_thw": np.array([[1, 4, 48]], np.int64)}, "has at most 224 px"),
        ("mistral3", {"item_modality": np.array([VIDEO], np.int32)}, "a mistral3 in vLLM takes images alone"),
        ("mistral3", {"tile_counts": np.array([192], np.int64)}, "tile_counts of another processor"),
        ("pixtral", {"pixel_patches": np.zeros((48, 588), np.uint8)}, "takes rows of 768 values"),
        ("gemma3", {"tile_counts": np.array([2], np.int64)}, "tile_counts has 2 rows, pixels 1"),
        ("gemma3", {"tile_counts": None}, "the prompt lacks tile_counts"),
        ("gemma3", {"grid_thw": np.array([[1, 1, 1]], np.int64), "tile_counts": None}, "the prompt lacks tile_counts"),
        ("gemma3", {"item_spans": np.array([[0, 9, 3]], np.int32)}, "it must have 1 of 4"),
        ("internvl", {"item_modality": np.array([VIDEO], np.int32)}, "it must have 5 of 4"),
        ("gemma4", {"grid_thw": np.array([[2, 42, 57]], np.int64)}, "rows, pixels"),
        ("gemma4", {"pixel_std": np.array([1, 1, 0.5], np.float32)}, "differ in mean or deviation"),
        ("glm-4.1v", {"grid_thw": np.array([[2, 12, 9]], np.int64)}, "h, w multiples of 2"),
        ("glm-4.1v", {"grid_thw": np.array([[3, 6, 12]], np.int64)}, "an image has t = 1"),
        ("glm-4.1v", {"item_hash": None}, "the prompt lacks item_hash"),
    ],
)
def test_what_would_end_vllms_core_is_rejected(
    name: str, changed: dict[str, Array | None], complaint: str, tinies: Mapping[str, Tiny]
) -> None:
    tensors: dict[str, Any] = tensors_of(tinies[name].model, (picture(),)) | changed
    given = {key: array for key, array in tensors.items() if array is not None}
    with pytest.raises(EngineRejected, match=complaint):
        batches(tinies[name], given)


@pytest.mark.parametrize("name", WRITERS)
def test_odd_prompts_are_rejected_or_sent_and_nothing_else_happens(name: str, tinies: Mapping[str, Tiny]) -> None:
    tiny, chance = tinies[name], random.Random(24)
    whole = [tensors_of(tiny.model, media) for media in kinds_of(tiny.model).values() if media]
    rejected = 0
    for _ in range(60):
        try:
            encode_prompt("engine", EngineRequest("odd", broken(chance.choice(whole), chance)), tiny.server)
        except EngineRejected:
            rejected += 1
    assert 20 < rejected < 60


@pytest.mark.parametrize("name", sorted(ONE_SIZE))
def test_images_of_several_sizes_are_rejected_where_a_message_cannot_carry_them(
    name: str, tinies: Mapping[str, Tiny]
) -> None:
    tiny = tinies[name]
    with pytest.raises(EngineRejected, match="its images differ in size"):
        batches(tiny, tensors_of(tiny.model, (picture(), TALL)))


@pytest.mark.parametrize("model_type", [*REFUSED, "llava_onevision"])
def test_a_family_that_is_not_served_is_refused_by_name_and_reason(model_type: str) -> None:
    model = pb.GetModelInfoResponse(model_type=model_type)
    with pytest.raises(EngineMismatch) as raised:
        read_server("engine", model, pb.GetServerInfoResponse(multimodal_encoder_dtype="bfloat16"), {})
    assert f"of the type {model_type}; {REFUSED.get(model_type, 'served are qwen2_vl, ')}" in str(raised.value)


@pytest.mark.parametrize("model_type", [name for name, family in FAMILIES.items() if family.needs_layout])
def test_a_model_whose_files_do_not_tell_its_sizes_is_refused(model_type: str) -> None:
    bundle = {"config.json": {"image_token_id": 7, "vision_config": {"model_type": "clip"}}}
    model = pb.GetModelInfoResponse(model_type=model_type)
    with pytest.raises(EngineMismatch, match=f"of the type {model_type}, and its config.json does not tell"):
        read_server("engine", model, pb.GetServerInfoResponse(multimodal_encoder_dtype="bfloat16"), bundle)


def test_a_model_whose_server_sends_no_files_has_the_sizes_that_this_side_knows(tinies: Mapping[str, Tiny]) -> None:
    for tiny in tinies.values():
        files = read_model_files(str(tiny.folder))
        model = pb.GetModelInfoResponse(
            model_type=files["config.json"]["model_type"], vocab_size=1000, max_context_length=8192
        )
        said = pb.GetServerInfoResponse(multimodal_encoder_dtype="bfloat16")
        alone = read_server("engine", model, said, {}, files)
        assert alone.pad_ids
        assert sorted(alone.parameters) == ["fingerprint.contract_version", "fingerprint.family"]
