"""What InternVL, Mistral 3, Gemma 3 and Gemma 4 decide, in small numbers written out. Equality is tested in tests/golden."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest, UnsupportedMedia
from preprocessor.models import gemma3, gemma4, internvl, mistral3
from preprocessor.models.family import Model
from preprocessor.models.loaded import ModelPath
from preprocessor.models.registry import load_model
from preprocessor.pipeline import allocate_pixels, plan, prepare, write_pixels
from preprocessor.pipeline.division import cut
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
from preprocessor.vision.patches import normalization_table
from preprocessor.vision.spec import PixelSpec, VideoSpec
from tests.golden.tile_cases import MODELS
from tests.media import moving_shapes_clip, photo

NAMES = ("internvl", "mistral3", "gemma3", "gemma4")
IMAGE_TOKENS = {"internvl": "<IMG_CONTEXT>", "mistral3": "[IMG]", "gemma3": "<start_of_image>", "gemma4": "<|image|>"}
LoadModel = Callable[[str], Model]
SPEC = VideoSpec(PixelSpec(16, 1, 1, 1, 1, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), fps=0, min_frames=1, max_frames=99)


def image(width: int, height: int, **bounds: Any) -> Media:
    return Media("i", Modality.IMAGE, photo(width, height), Sampling(), **bounds)


def ask(*media: Media) -> PreparationRequest:
    parts: tuple[MediaPart | TextPart, ...] = (*(MediaPart(medium.key) for medium in media), TextPart("Well?"))
    return PreparationRequest(ChatPrompt((Message("user", parts),)), media)


def named(load: LoadModel, name: str) -> Model:
    return load(str(MODELS / name))


# -- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "least", "most", "expected"),
    [
        ((448, 448), 1, 12, (1, 1)),
        ((900, 900), 1, 12, (2, 2)),  # of equally square grids the one that the image fills by half
        ((100, 100), 1, 12, (1, 1)),
        ((600, 800), 1, 12, (4, 3)),
        ((100, 5000), 1, 12, (12, 1)),
        ((5000, 100), 1, 12, (1, 12)),
        ((600, 800), 1, 1, (1, 1)),
        ((448, 448), 2, 4, (2, 2)),
        ((448, 448), 9, 4, (1, 1)),  # as transformers: no grid is between the bounds
    ],
)
def test_internvl_cuts_an_image_into_the_grid_of_its_shape(
    size: tuple[int, int], least: int, most: int, expected: tuple[int, int]
) -> None:
    assert internvl.tile_grid(*size, 448, least, most) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 200), (112, 224)), ((3000, 1500), (1540, 784)), ((1, 5000), (0, 1540)), ((28, 28), (28, 28))],
)
def test_mistral3_fits_an_image_into_a_square(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert mistral3.fit_image(*size, factor=28, longest_edge=1540) == expected


@pytest.mark.parametrize(
    ("size", "most", "expected"),
    [
        ((1000, 1000), 4, 0),
        ((1000, 1200), 4, 2),
        ((400, 1600), 4, 4),
        ((400, 1600), 3, 3),
        ((400, 1600), 1, 0),
        ((200, 1600), 4, 0),  # crops would be smaller than 256 px
        ((1600, 300), 9, 5),
    ],
)
def test_gemma3_crops_a_long_image(size: tuple[int, int], most: int, expected: int) -> None:
    boxes = gemma3.crop_boxes(*size, most)
    assert len(boxes) == expected
    covered = np.zeros(size, int)
    for box in boxes:
        covered[box] += 1
    assert (covered == (1 if expected else 0)).all()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 480), (768, 768)),
        ((10, 10), (768, 768)),
        ((1, 1000), (48, 13_440)),
        ((1000, 1), (13_440, 48)),
        ((1, 200), (48, 11_328)),
    ],
)
def test_gemma4_fills_its_soft_tokens(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert gemma4.fit_image(*size, patch=16, pooling=3, most_patches=280 * 9) == expected


# -- frames --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampling", "own", "of_internvl", "of_gemma4"),
    [
        (Sampling(), None, list(range(8)), list(range(8))),
        (Sampling(), 4, [1, 3, 5, 7], [0, 2, 4, 6]),
        (Sampling(), 99, list(range(8)), list(range(8))),
        (Sampling(frame_count=3), 4, [1, 4, 6], [0, 2, 5]),
        (Sampling(fps=5), 4, [1, 3, 5, 7], [0, 2, 4, 6]),
        (Sampling(fps=0.1), 4, [4], [0]),
        (Sampling(fps=1e9), 4, list(range(8)), list(range(8))),
    ],
)
def test_frames_are_the_middle_or_the_first_of_equal_parts(
    sampling: Sampling, own: int | None, of_internvl: list[int], of_gemma4: list[int]
) -> None:
    spec = dataclasses.replace(SPEC, frame_count=own)
    assert internvl.sample_indices(8, 10, sampling, spec).tolist() == of_internvl
    assert gemma4.sample_indices(8, 10, sampling, spec).tolist() == of_gemma4


def test_internvl_numbers_its_frames_and_gemma4_says_when_they_are_shown(load: LoadModel) -> None:
    clip = Media("v", Modality.VIDEO, moving_shapes_clip(3, 10, 64, 64), Sampling(indices=(0, 25)))
    texts = []
    for name in ("internvl", "gemma4"):
        model = named(load, name)
        planned = plan(model, ask(clip), Limits())
        ids = planned.token_ids.tolist()
        lengths = {id(model): [length for _, _, length in planned.tensors["item_spans"].tolist()]}
        assert lengths[id(model)] == ([256, 256] if name == "internvl" else [64, 64])
        pads = set(model.placeholders.repeated_ids)
        texts.append(
            model.tokenizer.decode([one for n, one in enumerate(ids) if n == 0 or one not in pads or ids[n - 1] != one])
        )
    assert "Frame1: <img><IMG_CONTEXT></img>\nFrame2: <img><IMG_CONTEXT></img>\nWell?" in texts[0]
    assert "00:00 <|image><|video|><image|> 00:02 <|image><|video|><image|>Well?" in texts[1]


# -- budgets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "bounds", "expected"),
    [
        ("internvl", {}, {"tile_counts": [4]}),
        ("internvl", {"max_pixels": 2 * 448**2}, {"tile_counts": [3]}),
        ("internvl", {"max_pixels": 448**2}, {"tile_counts": [1]}),
        ("mistral3", {}, {"grid_thw": [[1, 30, 88]], "image_sizes": [[420, 1232]]}),
        ("mistral3", {"max_pixels": 200_000}, {"grid_thw": [[1, 10, 30]], "image_sizes": [[140, 420]]}),
        ("gemma3", {}, {"tile_counts": [1]}),
        ("gemma3", {"max_pixels": 2 * 896**2}, {"tile_counts": [1]}),
        ("gemma3", {"max_pixels": 3 * 896**2}, {"tile_counts": [3]}),
        ("gemma4", {}, {"grid_thw": [[1, 27, 87]]}),
        ("gemma4", {"max_pixels": 70 * 48**2}, {"grid_thw": [[1, 12, 42]]}),
    ],
)
def test_a_callers_most_pixels_bound_an_image(
    name: str, bounds: dict[str, int], expected: dict[str, Any], load: LoadModel
) -> None:
    tensors = plan(named(load, name), ask(image(1232, 400, **bounds)), Limits()).tensors
    assert {key: tensors[key].tolist() for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("mistral3", {"min_pixels": 9}),
        ("gemma3", {"min_pixels": 9}),
        ("gemma4", {"min_pixels": 9}),
        *((name, {"cap_pixels_per_frame": True}) for name in NAMES),
        ("internvl", {"max_pixels": 448**2 - 1}),
        ("mistral3", {"max_pixels": 28**2 - 1}),
        ("gemma3", {"max_pixels": 896**2 - 1}),
        ("gemma4", {"max_pixels": 70 * 48**2 - 1}),
    ],
)
def test_a_bound_that_a_family_cannot_heed_is_refused(name: str, bounds: dict[str, int], load: LoadModel) -> None:
    with pytest.raises(InvalidRequest) as refused:
        plan(named(load, name), ask(image(64, 64, **bounds)), Limits())
    assert refused.value.reason == "INVALID_PIXEL_BUDGET"
    fields = {"min_pixels": "min_pixel_count", "max_pixels": "max_pixel_count"}
    (bound,) = bounds
    assert refused.value.field == f"media[].{fields.get(bound, bound)}"


def test_frames_of_internvl_have_one_size_whatever_is_asked(load: LoadModel) -> None:
    clip = Media("v", Modality.VIDEO, moving_shapes_clip(1, 10, 64, 64), max_pixels=9999)
    with pytest.raises(InvalidRequest, match="max_pixel_count"):
        plan(named(load, "internvl"), ask(clip), Limits())


def test_an_image_too_long_for_its_square_is_refused(load: LoadModel) -> None:
    with pytest.raises(UnsupportedMedia) as refused:
        plan(named(load, "mistral3"), ask(image(4000, 1)), Limits())
    assert refused.value.reason == "EXTREME_ASPECT_RATIO"


# -- prompts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_token_ids_come_out_as_their_text_does(name: str, load: LoadModel) -> None:
    model, photos = named(load, name), (image(300, 500), dataclasses.replace(image(64, 64), key="j"))
    text = f"a {IMAGE_TOKENS[name]} b {IMAGE_TOKENS[name]} c"
    of_text = plan(model, PreparationRequest(TextPrompt(text), photos), Limits())
    ids = tuple(model.tokenizer(text)["input_ids"])
    of_ids = plan(model, PreparationRequest(TokenPrompt(ids), photos), Limits())
    assert of_text.token_ids.tolist() == of_ids.token_ids.tolist()
    assert of_text.token_ids.tolist().count(model.tokenizer.bos_token_id) == (model.tokenizer.bos_token is not None)


def test_a_text_that_begins_with_bos_gets_no_other(load: LoadModel) -> None:
    ids = plan(named(load, "gemma3"), PreparationRequest(TextPrompt("<bos>x")), Limits()).token_ids.tolist()
    assert ids == plan(named(load, "gemma3"), PreparationRequest(TextPrompt("x")), Limits()).token_ids.tolist()


@pytest.mark.parametrize("as_ids", [False, True])
def test_a_soft_token_in_the_prompt_is_refused(as_ids: bool, load: LoadModel) -> None:
    model, text = named(load, "gemma3"), "<image_soft_token>"
    prompt = TokenPrompt(tuple(model.tokenizer(text)["input_ids"])) if as_ids else TextPrompt(text)
    with pytest.raises(InvalidRequest, match="only the service may write") as refused:
        plan(model, PreparationRequest(prompt), Limits())
    assert refused.value.reason == "PLACEHOLDER_MISMATCH"


@pytest.mark.parametrize("name", ["mistral3", "gemma3"])
def test_a_model_without_video_says_so(name: str, load: LoadModel) -> None:
    model = named(load, name)
    assert model.modalities == {Modality.IMAGE} and model.describe().video is None
    with pytest.raises(UnsupportedMedia) as refused:
        plan(model, ask(Media("v", Modality.VIDEO, moving_shapes_clip(1, 10, 64, 64))), Limits())
    assert refused.value.reason == "UNSUPPORTED_MODALITY"


# -- pixels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["internvl", "gemma4"])
def test_parts_of_a_video_make_the_whole(name: str, load: LoadModel) -> None:
    model = named(load, name)
    clip = Media("v", Modality.VIDEO, moving_shapes_clip(2, 10, 96, 64, options=(("g", "5"),)), Sampling(frame_count=6))
    request = ask(clip, image(500, 300))
    planned = plan(model, request, Limits()).pixels
    assert planned is not None
    whole, pieces = allocate_pixels(planned), allocate_pixels(planned)
    write_pixels(model, request.media, planned, whole)
    parts = cut(planned, request.media, 3)
    assert len(parts) == 3
    for part in parts:
        write_pixels(model, request.media, planned, pieces, rows=part)
    assert np.array_equal(pieces, whole)


def test_a_row_of_mistral3_is_a_patch_of_the_picture(load: LoadModel) -> None:
    made = prepare(named(load, "mistral3"), dataclasses.replace(ask(image(84, 56)), pixel_form=PixelForm.UINT8)).tensors
    _, h, w = made["grid_thw"][0].tolist()
    picture = made["pixel_patches"].reshape(h, w, 3, 14, 14).transpose(2, 0, 3, 1, 4).reshape(3, h * 14, w * 14)
    assert np.array_equal(made["image_sizes"], [picture.shape[1:]])
    smooth = np.abs(np.diff(picture.astype(int), axis=2)).mean()
    assert smooth < np.abs(np.diff(made["pixel_patches"].reshape(3, h * 14, w * 14).astype(int), axis=2)).mean()


def test_pixels_that_are_not_normalized_are_multiplied() -> None:
    spec = PixelSpec(16, 3, 1, 1, 1, (0.0,) * 3, (1.0,) * 3, normalizes=False)
    table = normalization_table(spec, PixelForm.FP32)
    assert np.array_equal(table, np.tile(np.arange(256, dtype=np.float32) * np.float32(1 / 255), (3, 1)))
    assert not np.array_equal(table, normalization_table(dataclasses.replace(spec, normalizes=True), PixelForm.FP32))


# -- which models belong to a family -------------------------------------------------------------------------------


def changed(directory: Path, name: str, file: str, **settings: Any) -> str:
    """A copy of a model's directory, with other settings at the top of one file."""
    shutil.copytree(MODELS / name, directory)
    content = json.loads((directory / file).read_text())
    for key, value in settings.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) and key in content else value
    (directory / file).write_text(json.dumps(content))
    return str(directory)


@pytest.mark.parametrize(
    ("name", "file", "settings"),
    [
        ("internvl", "processor_config.json", {"video_processor": {"size": {"height": 224, "width": 224}}}),
        ("mistral3", "processor_config.json", {"image_processor": {"size": {"height": 64, "width": 64}}}),
        ("gemma3", "processor_config.json", {"image_processor": {"resample": 1}}),
        ("gemma4", "config.json", {"audio_config": {"hidden_size": 8}}),
    ],
)
def test_what_a_family_does_not_do_is_left_to_the_generic_path(
    name: str, file: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("tests.golden.huggingface")
    model = load_model(changed(tmp_path / name, name, file, **settings))
    assert model.describe().path is ModelPath.GENERIC


@pytest.mark.parametrize(
    ("name", "file", "settings"),
    [
        ("internvl", "processor_config.json", {"image_seq_length": 64}),
        ("mistral3", "processor_config.json", {"spatial_merge_size": 1}),
        ("gemma3", "processor_config.json", {"image_processor": {"resample": 3}}),
        ("gemma4", "processor_config.json", {"image_processor": {"do_normalize": True}}),
    ],
)
def test_a_setting_that_changes_the_result_changes_the_fingerprint(
    name: str, file: str, settings: dict[str, Any], tmp_path: Path, load: LoadModel
) -> None:
    assert load_model(changed(tmp_path / name, name, file, **settings)).fingerprint != named(load, name).fingerprint


@pytest.mark.parametrize("name", ["internvl", "gemma3"])
def test_a_model_takes_the_generic_path_where_that_is_asked_for(name: str) -> None:
    paths = [load_model(str(MODELS / name), preparation=one).describe().path for one in ("auto", "generic")]
    assert paths == [ModelPath.FAST, ModelPath.GENERIC]
