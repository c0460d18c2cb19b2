"""What a result holds: the asked form of its tensors, its items, its times."""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from preprocessor.errors import UnsupportedMedia
from preprocessor.models.generic import GenericModel, prepare_generic
from preprocessor.models.generic.media import choose_evenly, metadata_of, probe_media
from preprocessor.models.generic.tensors import CARRIED_DTYPES, to_tensors
from preprocessor.types.request import OnDamage, PixelForm, PreparationRequest, Sampling, SamplingBasis
from preprocessor.wire.tensors import DTYPES
from tests.media import photo
from tests.odd_clips import broken_middle, encode, interlaced, run_of
from tests.unit.generic.cases import LIMITS, chat, image, refusal, sound, video

from transformers.video_utils import VideoMetadata  # isort: skip


@pytest.mark.parametrize(
    ("form", "dtype"),
    [(PixelForm.BF16, torch.bfloat16), (PixelForm.FP16, torch.float16), (PixelForm.FP32, torch.float32)],
)
def test_floats_are_rounded_as_torch_rounds(
    loaded: dict[str, GenericModel], form: PixelForm, dtype: torch.dtype
) -> None:
    request = chat(image("i"))
    own = prepare_generic(loaded["glm46v"], request, LIMITS).tensors["pixel_values"]
    rounded = prepare_generic(loaded["glm46v"], dataclasses.replace(request, pixel_form=form), LIMITS)
    expected = torch.from_numpy(own).to(dtype)
    assert rounded.tensors["pixel_values"].tobytes() == expected.view(torch.uint8).numpy().tobytes()


def test_bfloat16_is_a_dtype_that_numpy_knows_by_name(loaded: dict[str, GenericModel]) -> None:
    prepared = prepare_generic(loaded["glm46v"], chat(image("i"), pixel_form=PixelForm.BF16), LIMITS)
    assert prepared.tensors["pixel_values"].dtype == ml_dtypes.bfloat16


def test_integers_keep_their_dtype_in_every_form(loaded: dict[str, GenericModel]) -> None:
    prepared = prepare_generic(loaded["glm46v"], chat(image("i"), pixel_form=PixelForm.FP16), LIMITS)
    assert prepared.tensors["image_grid_thw"].dtype == np.int64


def test_without_pixels_the_text_is_all_there_is(loaded: dict[str, GenericModel]) -> None:
    with_pixels = prepare_generic(loaded["idefics3"], chat(image("i")), LIMITS)
    without = prepare_generic(loaded["idefics3"], chat(image("i"), pixel_form=PixelForm.NONE), LIMITS)
    assert without.tensors.keys() == {"input_ids", "attention_mask"}
    assert without.token_ids.tolist() == with_pixels.token_ids.tolist()


def test_what_the_api_has_no_type_for_is_carried_without_loss_or_rounded() -> None:
    tensors = to_tensors({"mask": np.array([True, False]), "seconds": [0.1, 0.5]}, None)
    assert (tensors["mask"].dtype, tensors["mask"].tolist()) == (np.uint8, [1, 0])
    assert (tensors["seconds"].dtype, tensors["seconds"].tolist()) == (
        np.float32,
        np.array([0.1, 0.5], np.float32).tolist(),
    )


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.complex64])
def test_numbers_of_a_type_that_the_api_has_not_are_refused(dtype: type) -> None:
    with pytest.raises(UnsupportedMedia, match="returns counts as torch") as caught:
        to_tensors({"counts": np.ones(3, dtype)}, None)
    assert caught.value.reason == "UNKNOWN_TENSOR"


def test_the_generic_path_carries_what_the_wire_does() -> None:
    assert {to_tensors({"one": torch.zeros(1, dtype=dtype)}, None)["one"].dtype for dtype in CARRIED_DTYPES} == set(
        DTYPES.values()
    )


def test_equal_tensors_in_a_list_are_stacked() -> None:
    tensors = to_tensors({"tiles": [torch.zeros(2, 3), torch.ones(2, 3)], "counts": [[1, 2]]}, None)
    assert (tensors["tiles"].shape, tensors["counts"].tolist()) == ((2, 2, 3), [[1, 2]])


@pytest.mark.parametrize("value", [[torch.zeros(2), torch.zeros(3)], [[1, 2], [3]], [np.zeros(2), np.zeros(3)]])
def test_a_list_of_different_shapes_is_refused(value: Any) -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        to_tensors({"tiles": value}, None)
    assert (caught.value.reason, "tiles" in caught.value.message) == ("RAGGED_TENSORS", True)


def test_a_value_that_is_no_tensor_is_refused() -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        to_tensors({"caption": ["a cat"]}, None)
    assert caught.value.reason == "UNKNOWN_TENSOR"


def test_an_item_tells_its_source_and_frames(loaded: dict[str, GenericModel]) -> None:
    still, moving = prepare_generic(loaded["glm46v"], chat(image("i"), video("v")), LIMITS).items
    assert (still.source.width_px, still.source.height_px, still.frames) == (90, 60, None)  # type: ignore[union-attr]
    assert moving.frames is not None and moving.frames.indices.tolist() == [0, 5, 9, 14]


def test_a_sound_tells_its_length(loaded: dict[str, GenericModel]) -> None:
    (item,) = prepare_generic(loaded["qwen2_audio"], chat(sound("a")), LIMITS).items
    assert item.source.duration_seconds == pytest.approx(0.5, abs=0.1)  # type: ignore[union-attr]


def test_equal_requests_have_equal_digests(loaded: dict[str, GenericModel]) -> None:
    first, second = (prepare_generic(loaded["pixtral"], chat(image("i")), LIMITS).items[0] for _ in range(2))
    assert first.digest == second.digest


@pytest.mark.parametrize(
    "other",
    [
        chat(image("i", photo(90, 60, "PNG", seed=5))),
        chat(image("i"), image("j")),  # a neighbour changes the padding
        chat(image("i"), cache_salt="tenant"),
        chat(image("i"), pixel_form=PixelForm.BF16),
    ],
    ids=["content", "neighbour", "salt", "rounded"],
)
def test_whatever_changes_an_item_changes_its_digest(
    loaded: dict[str, GenericModel], other: PreparationRequest
) -> None:
    plain = prepare_generic(loaded["pixtral"], chat(image("i")), LIMITS).items[0]
    assert prepare_generic(loaded["pixtral"], other, LIMITS).items[0].digest != plain.digest


@pytest.mark.parametrize(
    "other",
    [
        chat(video("v", sampling=Sampling(frame_count=3))),
        chat(video("v", on_damage=OnDamage.REPEAT)),
        chat(video("v"), video_decoder="opencv"),
        chat(video("v"), image("i", on_damage=OnDamage.REPEAT)),
    ],
    ids=["frames", "policy", "decoder", "neighbour"],
)
def test_whatever_changes_a_video_changes_its_digest(
    loaded: dict[str, GenericModel], other: PreparationRequest
) -> None:
    plain = prepare_generic(loaded["glm46v"], chat(video("v")), LIMITS).items[0]
    assert prepare_generic(loaded["glm46v"], other, LIMITS).items[0].digest != plain.digest


@pytest.mark.parametrize(
    "other",
    [
        chat(image("another")),
        chat(image("i"), pixel_form=PixelForm.FP32),
        chat(image("i"), pixel_form=PixelForm.NONE),
        chat(image("i", on_damage=OnDamage.REPEAT)),
        chat(image("i"), video_decoder="opencv"),
    ],
    ids=["key", "FP32", "NONE", "policy", "decoder"],
)
def test_what_changes_no_value_of_an_image_leaves_its_digest(
    loaded: dict[str, GenericModel], other: PreparationRequest
) -> None:
    plain = prepare_generic(loaded["pixtral"], chat(image("i")), LIMITS).items[0]
    assert prepare_generic(loaded["pixtral"], other, LIMITS).items[0].digest == plain.digest


def test_a_damaged_frame_is_replaced_and_reported_where_that_is_asked_for(loaded: dict[str, GenericModel]) -> None:
    broken = broken_middle(encode(run_of(30), options={"bf": "0", "g": "10"}), 14)
    tolerant = video("v", broken, on_damage=OnDamage.REPEAT, sampling=Sampling(every_frame=True))
    prepared = prepare_generic(loaded["glm46v"], chat(image("i"), tolerant), LIMITS)
    assert prepared.substitutions
    assert {one.item_index for one in prepared.substitutions} == {1}
    assert all(one.used_frame_index < one.frame_index < 20 for one in prepared.substitutions)


def test_the_deployments_decoder_decodes_here_too(loaded: dict[str, GenericModel]) -> None:
    request = chat(video("v", interlaced()), video_decoder="opencv")
    assert refusal(loaded["glm46v"], request).reason == "DECODER_LIMIT"


def test_two_places_of_one_image_have_two_digests(loaded: dict[str, GenericModel]) -> None:
    first, second = prepare_generic(loaded["pixtral"], chat(image("i"), image("j")), LIMITS).items
    assert (first.content_sha256 == second.content_sha256, first.digest == second.digest) == (True, False)


def test_stages_are_timed(loaded: dict[str, GenericModel]) -> None:
    prepared = prepare_generic(loaded["pixtral"], chat(image("i")), LIMITS)
    assert list(prepared.timings.stages) == ["plan", "decode", "process", "convert"]


def test_frames_chosen_by_time_are_told_by_the_millisecond() -> None:
    sampling = Sampling(frame_count=4, basis=SamplingBasis.TIME)
    (probed,) = probe_media([video("v", sampling=sampling)], LIMITS, lambda: None, choose_evenly)
    assert probed.frames is not None
    shown = np.array([0.0, 0.301, 0.9, 1.2])  # not where index / rate would put them
    told = VideoMetadata(
        **metadata_of(
            dataclasses.replace(probed, frames=dataclasses.replace(probed.frames, prompt_times_seconds=shown))
        )
    )
    assert (told.timestamps, told.sampled_fps) == (shown.tolist(), pytest.approx(4 / 1.5))
