"""plan, write_pixels and prepare: what they promise to each other and to the caller."""

from __future__ import annotations

import dataclasses
import pickle
import re
from typing import Any

import numpy as np
import pytest

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest, LimitExceeded, PreprocessorError, UnsupportedMedia
from preprocessor.models.family import Model
from preprocessor.pipeline import allocate_pixels, decode_item, plan, prepare, write_pixels
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PixelForm,
    PreparationRequest,
    Sampling,
    TextPart,
    TextPrompt,
    TokenPrompt,
)
from preprocessor.vision.patches import PIXEL_DTYPES
from tests.media import moving_shapes_clip, photo
from tests.plans import grid_of, pixels_of

LIMITS = Limits()
FLOAT_FORMS = [PixelForm.FP32, PixelForm.BF16, PixelForm.FP16]


def image(key: str = "i", **settings: Any) -> Media:
    return Media(key, Modality.IMAGE, photo(100, 60, "PNG"), **settings)


def video(key: str = "v", frame_count: int | None = 5, **settings: Any) -> Media:
    data = moving_shapes_clip(1, 10, 96, 64)
    return Media(key, Modality.VIDEO, data, Sampling(frame_count=frame_count), **settings)


def ask(*media: Media, form: PixelForm = PixelForm.UINT8, **settings: Any) -> PreparationRequest:
    parts: tuple[MediaPart | TextPart, ...] = (*(MediaPart(medium.key) for medium in media), TextPart("Well?"))
    return PreparationRequest(ChatPrompt((Message("user", parts),)), media, form, **settings)


def refusal(model: Model, request: PreparationRequest, limits: Limits = LIMITS) -> PreprocessorError:
    with pytest.raises(PreprocessorError) as caught:
        plan(model, request, limits)
    return caught.value


# -- tensors -----------------------------------------------------------------------------------------------------------


def test_a_uint8_prompt_holds_the_contracts_tensors(model: Model) -> None:
    tensors = prepare(model, ask(image(), video())).tensors
    length, rows = len(tensors["input_ids"]), len(tensors["pixel_patches"])
    assert {name: (str(array.dtype), array.shape) for name, array in tensors.items()} == {
        "input_ids": ("int32", (length,)),
        "mrope_position_ids": ("int32", (3, length)),
        "mrope_position_delta": ("int32", (1,)),
        "grid_thw": ("int64", (2, 3)),
        "item_modality": ("int32", (2,)),
        "item_spans": ("int32", (4, 3)),  # an image, and three frame pairs
        "item_hash": ("uint8", (2, 32)),
        "pixel_mean": ("float32", (3,)),
        "pixel_std": ("float32", (3,)),
        "pixel_patches": ("uint8", (rows, 1536)),
    }


@pytest.mark.parametrize("form", FLOAT_FORMS)
def test_a_float_prompt_holds_pixel_values_in_its_dtype(model: Model, form: PixelForm) -> None:
    assert prepare(model, ask(image(), form=form)).tensors["pixel_values"].dtype == PIXEL_DTYPES[form]


@pytest.mark.parametrize("form", FLOAT_FORMS)
def test_a_float_prompt_needs_no_mean_and_std(model: Model, form: PixelForm) -> None:
    assert not prepare(model, ask(image(), form=form)).tensors.keys() & {"pixel_mean", "pixel_std", "pixel_patches"}


def test_a_prompt_of_text_alone_has_no_tensors_of_media(model: Model) -> None:
    assert prepare(model, ask()).tensors.keys() == {"input_ids", "mrope_position_ids", "mrope_position_delta"}


def test_fp32_pixels_are_the_uint8_ones_normalized(model: Model) -> None:
    uint8 = prepare(model, ask(video())).tensors["pixel_patches"]
    fp32 = prepare(model, ask(video(), form=PixelForm.FP32)).tensors["pixel_values"]
    assert np.allclose(fp32, (uint8 / 255.0 - 0.5) / 0.5, atol=1e-6)


def test_an_images_two_temporal_rows_are_equal(model: Model) -> None:
    rows = prepare(model, ask(image())).tensors["pixel_patches"].reshape(-1, 3, 2, 256)
    assert np.array_equal(rows[:, :, 0], rows[:, :, 1])


def test_an_odd_last_frame_is_repeated(model: Model) -> None:
    prepared = prepare(model, ask(video(frame_count=5)))
    (item,) = prepared.plan.items
    last = prepared.tensors["pixel_patches"][-grid_of(item).h * grid_of(item).w :].reshape(-1, 3, 2, 256)
    assert np.array_equal(last[:, :, 0], last[:, :, 1])


def test_a_padded_frame_is_reported(model: Model) -> None:
    assert [plan(model, ask(video(frame_count=n)), LIMITS).items[0].padded_frame_count for n in (4, 5)] == [0, 1]


def test_a_video_of_one_frame_is_padded_to_a_pair(model: Model) -> None:
    """transformers 5.23 refuses it; a clip of one frame is a clip all the same."""
    assert grid_of(plan(model, ask(video(frame_count=1)), LIMITS).items[0]).t == 1


def test_more_frames_than_the_clip_has_give_each_once(model: Model) -> None:
    """transformers 5.23 repeats frames."""
    (item,) = plan(model, ask(video(frame_count=50)), LIMITS).items
    assert item.frames is not None
    assert item.frames.indices.tolist() == list(range(10))


def test_a_spans_length_is_its_share_of_the_tokens(model: Model) -> None:
    planned = plan(model, ask(image(), video()), LIMITS)
    spans = planned.tensors["item_spans"]
    lengths = [int(spans[spans[:, 0] == index, 2].sum()) for index in range(2)]
    assert lengths == [item.token_count for item in planned.items]


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [PixelForm.UINT8, PixelForm.BF16])
def test_rows_are_announced_in_order_without_gap_or_overlap(model: Model, form: PixelForm) -> None:
    request = ask(image(), video(), form=form)
    planned = plan(model, request, LIMITS)
    announced: list[tuple[int, int]] = []
    write_pixels(
        model,
        request.media,
        pixels_of(planned),
        allocate_pixels(pixels_of(planned)),
        lambda row, count: announced.append((row, count)),
    )
    ends = [row + count for row, count in announced]
    assert [row for row, _ in announced] == [0, *ends[:-1]]
    assert ends[-1] == pixels_of(planned).row_count


def test_an_announced_row_is_final(model: Model) -> None:
    request = ask(image(), video())
    planned = plan(model, request, LIMITS)
    out = allocate_pixels(pixels_of(planned))
    seen: list[bytes] = []
    write_pixels(
        model, request.media, pixels_of(planned), out, lambda row, count: seen.append(out[row : row + count].tobytes())
    )
    assert b"".join(seen) == out.tobytes()


@pytest.mark.parametrize("fill", [0, 255])
def test_every_byte_of_the_callers_memory_is_written(model: Model, fill: int) -> None:
    request = ask(image(), video())
    planned = plan(model, request, LIMITS)
    out = allocate_pixels(pixels_of(planned))
    out[:] = fill
    write_pixels(model, request.media, pixels_of(planned), out)
    assert np.array_equal(out, prepare(model, request).tensors["pixel_patches"])


def test_an_item_has_the_same_rows_alone_and_in_company(model: Model) -> None:
    together = prepare(model, ask(image(), video()))
    alone = prepare(model, ask(video())).tensors["pixel_patches"]
    assert np.array_equal(together.tensors["pixel_patches"][together.plan.items[1].row_start :], alone)


@pytest.mark.parametrize("form", [PixelForm.UINT8, PixelForm.BF16])
def test_an_item_that_comes_again_is_made_once(model: Model, form: PixelForm) -> None:
    twice = prepare(model, ask(video(), image(), dataclasses.replace(video(), key="again"), form=form))
    alone = prepare(model, ask(video(), form=form))
    name = pixels_of(alone.plan).name
    for item in (twice.plan.items[0], twice.plan.items[2]):
        assert item.rows_of(twice.tensors[name]).tobytes() == alone.tensors[name].tobytes()
    assert twice.decoded_frame_count == alone.decoded_frame_count > 0


class Stopped(Exception):
    pass


def test_a_check_stops_the_pixels(model: Model) -> None:
    request = ask(video())
    planned = plan(model, request, LIMITS)
    rows: list[int] = []

    def check() -> None:
        if rows:
            raise Stopped

    with pytest.raises(Stopped):
        write_pixels(
            model,
            request.media,
            pixels_of(planned),
            allocate_pixels(pixels_of(planned)),
            lambda row, _: rows.append(row),
            check,
        )
    assert len(rows) == 1


def test_a_check_stops_the_plan(model: Model) -> None:
    def check() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        plan(model, ask(video()), LIMITS, check)


@pytest.mark.parametrize("medium", [image(), video()], ids=["image", "video"])
def test_no_pixels_means_no_decode(model: Model, medium: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something was decoded")

    for name in ("decode_image", "decode_frames"):
        monkeypatch.setattr(decode_item, name, refuse)
    prepared = prepare(model, ask(medium, form=PixelForm.NONE))
    assert (prepared.plan.pixel_bytes, "pixel_patches" in prepared.tensors) == (0, False)


def test_without_pixels_the_prompt_is_the_same(model: Model) -> None:
    with_pixels = plan(model, ask(image(), video()), LIMITS)
    without = plan(model, ask(image(), video(), form=PixelForm.NONE), LIMITS)
    assert without.token_ids.tolist() == with_pixels.token_ids.tolist()


@pytest.mark.parametrize(("form", "width"), [(PixelForm.UINT8, 1), (PixelForm.BF16, 2), (PixelForm.FP32, 4)])
def test_planned_bytes_are_those_of_the_tensor(model: Model, form: PixelForm, width: int) -> None:
    planned = plan(model, ask(video(), form=form), LIMITS)
    assert (
        planned.pixel_bytes == pixels_of(planned).row_count * 1536 * width == allocate_pixels(pixels_of(planned)).nbytes
    )


# -- pickling ----------------------------------------------------------------------------------------------------------


def test_a_request_survives_pickling() -> None:
    request = ask(image(), video(), cache_salt="tenant")
    assert pickle.loads(pickle.dumps(request)) == request


def test_a_pickled_model_plans_the_same_prompt(model: Model) -> None:
    copy = pickle.loads(pickle.dumps(model))
    ours = plan(copy, ask(image(), video()), LIMITS).token_ids
    assert ours.tolist() == plan(model, ask(image(), video()), LIMITS).token_ids.tolist()


def test_a_pickled_plan_gives_the_same_pixels(model: Model) -> None:
    request = ask(image(), video())
    planned = pickle.loads(pickle.dumps(plan(model, request, LIMITS)))
    out = allocate_pixels(pixels_of(planned))
    write_pixels(model, request.media, pixels_of(planned), out)
    assert np.array_equal(out, prepare(model, request).tensors["pixel_patches"])


def test_prepared_tensors_survive_pickling(model: Model) -> None:
    prepared = prepare(model, ask(video(), form=PixelForm.BF16))
    copy = pickle.loads(pickle.dumps(prepared))
    assert {name: array.tobytes() for name, array in copy.tensors.items()} == {
        name: array.tobytes() for name, array in prepared.tensors.items()
    }


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_two_media_of_one_key_are_refused(model: Model) -> None:
    assert refusal(model, ask(image("same"), image("same"))).reason == "DUPLICATE_MEDIA_KEY"


def test_a_key_that_no_medium_has_is_refused(model: Model) -> None:
    request = dataclasses.replace(ask(image()), media=())
    assert refusal(model, request).reason == "UNKNOWN_MEDIA_KEY"


def test_audio_is_unsupported(model: Model) -> None:
    assert isinstance(refusal(model, ask(Media("a", Modality.AUDIO, b"RIFF"))), UnsupportedMedia)


def test_sampling_of_an_image_is_refused(model: Model) -> None:
    assert refusal(model, ask(image(sampling=Sampling(fps=1)))).reason == "INVALID_SAMPLING"


@pytest.mark.parametrize(
    "budget", [{"min_pixels": 0}, {"max_pixels": 0}, {"max_pixels": -1}, {"min_pixels": 9_000, "max_pixels": 5_000}]
)
def test_an_impossible_pixel_budget_is_refused_by_the_numbers_that_were_given(
    model: Model, budget: dict[str, Any]
) -> None:
    error = refusal(model, ask(video(**budget)))
    assert (type(error), error.reason) == (InvalidRequest, "INVALID_PIXEL_BUDGET")
    assert set(re.findall(r"-?\d+", error.message)) - {"0"} == {str(value) for value in budget.values()} - {"0"}


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_media_count=1),
        Limits(max_media_bytes=1000),
        Limits(max_image_pixels=100),
        Limits(max_frame_pixels=100),
        Limits(max_clip_frames=5),
        Limits(max_pixel_bytes=1000),
        Limits(max_prompt_length=10),
    ],
    ids=lambda limits: next(name for name in Limits.__slots__ if getattr(limits, name) != getattr(LIMITS, name)),
)
def test_more_than_a_limit_allows_is_refused(model: Model, limits: Limits) -> None:
    assert isinstance(refusal(model, ask(image(), video()), limits), LimitExceeded)


@pytest.mark.parametrize(
    ("prompt", "unit"), [(TextPrompt("too long"), "8 characters"), (TokenPrompt((1, 2, 3)), "3 token ids")]
)
def test_a_long_prompt_is_told_its_length_in_its_own_unit(
    model: Model, prompt: TextPrompt | TokenPrompt, unit: str
) -> None:
    error = refusal(model, PreparationRequest(prompt), Limits(max_prompt_length=2))
    assert error.message == f"the prompt is {unit} long; at most 2 are accepted"


def test_a_pixel_tensor_may_be_as_large_as_its_limit(model: Model) -> None:
    size = plan(model, ask(video()), LIMITS).pixel_bytes
    assert plan(model, ask(video()), Limits(max_pixel_bytes=size)).pixel_bytes == size
