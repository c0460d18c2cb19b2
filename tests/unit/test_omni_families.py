"""Qwen-Omni: positions in small numbers written out, and which prompt takes which path. tests/parity compares whole requests."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest
from preprocessor.models.family.item import frames_by_family
from preprocessor.models.generic import prepare_generic
from preprocessor.models.loaded import ModelPath
from preprocessor.models.registry import load_model
from preprocessor.models.with_sound import WithSound
from preprocessor.pipeline import plan, prepare
from preprocessor.types.plan import Grid
from preprocessor.types.request import Media, Modality, PixelForm, PreparationRequest, Sampling, TextPrompt
from preprocessor.vision.positions import clock_mrope_tensors
from tests.golden import oracle  # noqa: F401  # makes torchvision importable
from tests.tiny_omni_processors import save_qwen3_omni
from tests.tiny_processors import save_qwen2_5_omni
from tests.unit.generic.cases import LIMITS, chat, clip, image, sound, sounding_clip, video
from tests.unit.generic.test_parity import answer_of, assert_equal, frame_indices, metadata

from transformers import AutoProcessor  # isort: skip

MAKERS = {"qwen3_omni": save_qwen3_omni, "qwen2_5_omni": save_qwen2_5_omni}
CHOSEN = Sampling(indices=tuple(frame_indices(clip()).tolist()))


@pytest.fixture(scope="module", params=MAKERS)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("omni") / str(request.param)
    MAKERS[request.param](folder)
    return folder


@pytest.fixture(scope="module")
def model(directory: Path) -> WithSound:
    loaded = load_model(str(directory))
    assert isinstance(loaded, WithSound)
    return loaded


# A marker, a video of three steps of 1 x 2 tokens, a marker, two words, a marker, an image of 2 x 2 tokens, a marker, a word.
SPANS = np.array([(0, 1, 6), (1, 11, 4)], np.int32)
GRIDS = (Grid(3, 1, 2), Grid(1, 2, 2))


def test_positions_follow_the_clock_and_text_follows_the_last_of_them() -> None:
    steps = [np.array([0, 1.5, 3], np.float32), np.zeros(1, np.float32)]
    tensors = clock_mrope_tensors(17, SPANS, GRIDS, steps)
    assert tensors["mrope_position_ids"].dtype == np.float32
    assert tensors["mrope_position_ids"].tolist() == [
        [0, 1, 1, 2.5, 2.5, 4, 4, 5, 6, 7, 8, 9, 9, 9, 9, 11, 12],
        [0, 1, 1, 1, 1, 1, 1, 5, 6, 7, 8, 9, 9, 10, 10, 11, 12],
        [0, 1, 2, 1, 2, 1, 2, 5, 6, 7, 8, 9, 10, 9, 10, 11, 12],
    ]
    assert tensors["mrope_position_delta"].tolist() == [-4]


def test_whole_positions_are_int32() -> None:
    steps = [np.array([0, 1, 3], np.int32), np.zeros(1, np.int32)]
    tensors = clock_mrope_tensors(17, SPANS, GRIDS, steps, np.int32)
    assert tensors["mrope_position_ids"].dtype == tensors["mrope_position_delta"].dtype == np.int32
    assert tensors["mrope_position_ids"][0].tolist() == [0, 1, 1, 2, 2, 4, 4, 5, 6, 7, 8, 9, 9, 9, 9, 11, 12]


def test_positions_of_text_alone_count_its_tokens() -> None:
    tensors = clock_mrope_tensors(3, np.empty((0, 3), np.int32), (), ())
    assert tensors["mrope_position_ids"].tolist() == [[0, 1, 2]] * 3
    assert tensors["mrope_position_delta"].tolist() == [0]


def test_the_model_is_on_the_fast_path_and_takes_sound(model: WithSound) -> None:
    description = model.describe()
    assert description.path is ModelPath.FAST and description.family == Path(model.name).name
    assert model.modalities == description.placeholders.keys() == set(Modality)


def test_a_pickled_model_plans_the_same(model: WithSound) -> None:
    request = chat(video("v"), image("i"))
    assert (
        plan(pickle.loads(pickle.dumps(model)), request, Limits()).items[0].digest
        == plan(model, request, Limits()).items[0].digest
    )


@pytest.mark.parametrize(
    "media",
    [
        (),
        (image("i"), image("j")),
        (video("v"),),
        (video("v", sampling=Sampling(fps=4)), image("i")),
        (video("v", sampling=Sampling(indices=(0, 1, 9))),),
        (video("v", max_pixels=90_000),),
        (image("i", min_pixels=9_000),),
    ],
    ids=["text", "images", "video", "video at 4 fps and image", "named frames", "video budget", "image budget"],
)
def test_both_paths_make_the_same_of_a_prompt_without_sound(model: WithSound, media: tuple[Media, ...]) -> None:
    request = chat(*media, pixel_form=PixelForm.FP32)
    fast = prepare(model, request)
    assert fast.plan.pixels is not None or not media
    slow = prepare_generic(model.sounds, request, LIMITS, choose=frames_by_family(model.pictures))
    assert fast.plan.token_ids.tolist() == slow.token_ids.tolist()
    for modality, pixels, grid in (
        (Modality.IMAGE, "pixel_values", "image_grid_thw"),
        (Modality.VIDEO, "pixel_values_videos", "video_grid_thw"),
    ):
        chosen = [index for index, item in enumerate(fast.plan.items) if item.modality is modality]
        if not chosen:
            continue
        assert fast.tensors["grid_thw"][chosen].tolist() == slow.tensors[grid].tolist()
        rows = [(item := fast.plan.items[index]).row_start + np.arange(item.rows.row_count) for index in chosen]
        ours = fast.tensors["pixel_values"][np.concatenate(rows)]
        assert ours.tobytes() == slow.tensors[pixels].tobytes()
        if modality is Modality.VIDEO:
            seconds = fast.tensors["second_per_grid_ts"][chosen]
            assert seconds.tobytes() == slow.tensors["video_second_per_grid"].tobytes()
            frames = [(one.items[index].frames) for one in (fast.plan, slow) for index in chosen]
            assert len({tuple(choice.indices.tolist()) for choice in frames if choice is not None}) == 1


@pytest.mark.parametrize(
    "media",
    [
        (sound("a"),),
        (image("i"), sound("a")),
        (video("v", sampling=CHOSEN), sound("a", sounding_clip())),
    ],
    ids=["sound", "image and sound", "video and sound"],
)
def test_a_prompt_with_sound_comes_out_as_transformers_makes_it(
    model: WithSound, directory: Path, media: tuple[Media, ...]
) -> None:
    request = chat(*media)
    assert not model.plans_from_headers(request)
    of_videos: dict[str, Any] = {}
    if any(medium.modality is Modality.VIDEO for medium in media):
        frames = {"do_sample_frames": False, "video_metadata": [metadata(clip())], "fps": 4 / 1.5}
        of_videos = {"videos_kwargs": frames}
    expected = answer_of(AutoProcessor.from_pretrained(directory), request, **of_videos)
    assert_equal(plan(model, request, Limits()).tensors, expected)


def test_a_video_has_the_same_frames_with_and_without_a_sound(model: WithSound) -> None:
    medium = video("v", clip(3))
    alone, beside = (plan(model, chat(*media), Limits()).items[0] for media in ((medium,), (medium, sound("a"))))
    assert alone.frames is not None and beside.frames is not None
    assert alone.frames.indices.tolist() == beside.frames.indices.tolist() == [0, 5, 10, 15, 20, 25]


def test_the_sound_between_the_frames_of_a_video_is_of_the_generic_path(model: WithSound) -> None:
    request = chat(video("v", sounding_clip()), processor_arguments={"load_audio_from_video": True})
    tensors = plan(model, request, Limits()).tensors
    assert {"input_features", "video_second_per_grid", "pixel_values_videos"} <= tensors.keys()
    assert len(tensors["input_ids"]) > plan(model, chat(video("v", sounding_clip())), Limits()).token_count


def test_the_token_of_a_sound_without_a_sound_is_refused(model: WithSound) -> None:
    token = model.describe().placeholders[Modality.AUDIO]
    with pytest.raises(InvalidRequest) as caught:
        plan(model, PreparationRequest(TextPrompt(f"Hear {token}!")), Limits())
    assert caught.value.reason == "PLACEHOLDER_MISMATCH"
