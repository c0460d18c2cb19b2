"""Arguments of a caller reach the model's own processor, or are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest
from preprocessor.models.family import Model
from preprocessor.models.generic import GenericModel, prepare_generic
from preprocessor.models.registry import load_model
from tests.media import photo
from tests.unit.generic.cases import LIMITS, chat, clip, image, refusal, sound, video
from tests.unit.generic.test_parity import answer_of, assert_equal, metadata

WIDE = photo(300, 150, "PNG")
REASON = "INVALID_PROCESSOR_ARGUMENTS"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (
            "gemma3",
            {
                "do_pan_and_scan": True,
                "pan_and_scan_min_crop_size": 8,
                "pan_and_scan_max_num_crops": 3,
                "pan_and_scan_min_ratio_to_activate": 1.1,
            },
        ),
        ("internvl", {"max_patches": 1}),
        ("internvl", {"images_kwargs": {"crop_to_patches": False}}),
        ("glm46v", {"size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}}),
        ("pixtral", {"images_kwargs": {"size": {"longest_edge": 32}}}),
        ("idefics3", {"do_image_splitting": False}),
        ("llava_next", {"image_grid_pinpoints": [[56, 28]]}),
        ("gemma4", {"max_soft_tokens": 140}),
        ("phi4_multimodal", {"dynamic_hd": 1}),
        ("kimi_k25", {"max_patches": 16}),
        ("llava_onevision", {"do_rescale": False, "image_mean": [0.5, 0.5, 0.5]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_arguments_for_images_do_what_they_do_in_transformers(
    loaded: dict[str, GenericModel], processors: dict[str, Any], name: str, arguments: dict[str, Any]
) -> None:
    request = chat(image("i", WIDE), processor_arguments=arguments)
    prepared = prepare_generic(loaded[name], request, LIMITS)
    assert_equal(prepared.tensors, answer_of(processors[name], request, **arguments))
    plain = prepare_generic(loaded[name], chat(image("i", WIDE)), LIMITS)
    assert any(tensor.tobytes() != plain.tensors[key].tobytes() for key, tensor in prepared.tensors.items())
    assert prepared.items[0].digest != plain.items[0].digest


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("internvl", {"size": {"height": 56, "width": 56}}),
        ("gemma4", {"videos_kwargs": {"max_soft_tokens": 140}}),
        ("video_llama_3", {"use_token_compression": False}),
        ("minimax_m3_vl", {"videos_kwargs": {"do_resize": True, "size": {"height": 56, "width": 84}}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_arguments_for_videos_do_what_they_do_in_transformers(
    loaded: dict[str, GenericModel], processors: dict[str, Any], name: str, arguments: dict[str, Any]
) -> None:
    prepared = prepare_generic(loaded[name], chat(video("v"), processor_arguments=arguments), LIMITS)
    of_videos = {"do_sample_frames": False, "video_metadata": [metadata(clip())], **arguments.get("videos_kwargs", {})}
    flat = {key: value for key, value in arguments.items() if key != "videos_kwargs"}
    expected = answer_of(processors[name], chat(video("v")), videos_kwargs=of_videos, **flat)
    assert_equal(prepared.tensors, expected)


def test_arguments_for_sounds_do_what_they_do_in_transformers(
    loaded: dict[str, GenericModel], processors: dict[str, Any]
) -> None:
    arguments: dict[str, Any] = {"audio_kwargs": {"padding": "max_length", "max_length": 12_000, "truncation": True}}
    request = chat(sound("a"), processor_arguments=arguments)
    expected = answer_of(processors["gemma3n"], request, **arguments)
    assert_equal(prepare_generic(loaded["gemma3n"], request, LIMITS).tensors, expected)


@pytest.mark.parametrize(
    "arguments",
    [
        {"device": "cuda"},
        {"images_kwargs": {"device": "cuda"}},
        {"return_tensors": "np"},
        {"images_kwargs": {"return_tensors": "np"}},
        {"return_mm_token_type_ids": True},
        {"data_format": "channels_last"},
        {"videos_kwargs": {"video_metadata": []}},
        {"do_sample_frames": True},
        {"fps": 1},
        {"num_frames": 4},
        {"text_kwargs": {"truncation": True}},
        {"common_kwargs": {"device": "cuda"}},
        {"add_special_tokens": False},
        {"padding": True},
        {"chat_template": "x"},
        {"images": "https://example.org/photo.png"},
        {"text": "another"},
        {"audio_kwargs": {"padding": True}},
        {"images_kwargs": [1]},
        {"images_kwargs": {"video_metadata": []}},
        {"max_piksels": 3},
        {"images_kwargs": {"max_num_tiles": 3}},
        {"do_resize": "yes"},
        {"size": {"height": "large"}},
        {"do_resize": False, "images_kwargs": {"do_resize": True}},
    ],
    ids=str,
)
def test_what_a_processor_does_not_declare_or_the_service_decides_is_refused_by_name(
    loaded: dict[str, GenericModel], arguments: dict[str, Any]
) -> None:
    error = refusal(loaded["glm46v"], chat(image("i"), processor_arguments=arguments))
    assert (type(error), error.reason, error.field) == (InvalidRequest, REASON, "processor_arguments_json")
    assert any(name in error.message for name in _names(arguments))


def _names(arguments: Any) -> list[str]:
    """Names at every depth, outermost first."""
    if not isinstance(arguments, dict):
        return []
    return [name for key, value in arguments.items() for name in (key, *(_names(value) if "kwargs" in key else ()))]


def test_a_value_that_breaks_the_processor_is_the_callers_fault(loaded: dict[str, GenericModel]) -> None:
    error = refusal(loaded["glm46v"], chat(image("i"), processor_arguments={"patch_size": 0}))
    assert (error.reason, "ZeroDivisionError" in error.message, bool(error.trace)) == (REASON, True, True)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("gemma3", {"size": {"height": 100_000, "width": 100_000}}),
        ("llava_next", {"size": {"shortest_edge": 100_000}}),
        ("llava_next", {"size": 100_000}),
        ("llava_next", {"image_grid_pinpoints": [[28, 28], [100_000, 28]]}),
        ("glm46v", {"size": {"shortest_edge": 10**12, "longest_edge": 10**13}}),
        ("gemma3n", {"audio_kwargs": {"padding": "max_length", "max_length": 10**12}}),
    ],
)
def test_sizes_beyond_a_requests_pixels_are_refused_before_the_processor_runs(
    loaded: dict[str, GenericModel], monkeypatch: pytest.MonkeyPatch, name: str, arguments: dict[str, Any]
) -> None:
    monkeypatch.delattr("preprocessor.models.generic.prepare.call_processor")
    error = refusal(loaded[name], chat(image("i"), processor_arguments=arguments))
    assert error.reason == "PIXELS_TOO_LARGE"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("internvl", {"max_patches": 100_000}),
        ("gemma4", {"max_soft_tokens": 10**9}),
        ("idefics3", {"image_seq_len": 10**9}),
    ],
)
def test_counts_that_no_model_is_served_with_are_refused(
    loaded: dict[str, GenericModel], name: str, arguments: dict[str, Any]
) -> None:
    error = refusal(loaded[name], chat(image("i"), processor_arguments=arguments))
    assert (error.reason, "at most" in error.message) == (REASON, True)


def test_the_limit_of_pixels_holds_for_what_comes_out(loaded: dict[str, GenericModel]) -> None:
    request = chat(image("i", WIDE), processor_arguments={"images_kwargs": {"size": {"height": 112, "width": 112}}})
    assert refusal(loaded["internvl"], request, Limits(max_pixel_bytes=200_000)).reason == "PIXELS_TOO_LARGE"


def test_a_budget_is_given_once(loaded: dict[str, GenericModel]) -> None:
    size = {"shortest_edge": 56 * 56, "longest_edge": 84 * 84}
    request = chat(image("i", max_pixels=84 * 84), processor_arguments={"images_kwargs": {"size": size}})
    assert refusal(loaded["glm46v"], request).reason == "INVALID_PIXEL_BUDGET"


def test_a_model_of_the_fast_path_takes_none() -> None:
    model = load_model("qwen3-vl")
    assert isinstance(model, Model)
    model.check_arguments({})
    with pytest.raises(InvalidRequest, match=r"own pipeline.*max_pixels") as caught:
        model.check_arguments({"max_pixels": 3})
    assert caught.value.reason == REASON
