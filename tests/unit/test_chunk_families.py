"""What Kimi K2.5 and MiniMax-M3 decide, in small numbers written out. Equality with transformers is tested in tests/golden."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest
from preprocessor.media.image import decode_image
from preprocessor.models import kimi_k25, minimax_m3_vl
from preprocessor.models.family import Model
from preprocessor.models.loaded import ModelPath
from preprocessor.models.registry import load_model
from preprocessor.pipeline import plan, prepare
from preprocessor.types.plan import Plan
from preprocessor.types.request import Media, Modality, PixelForm, PreparationRequest, Sampling, TextPrompt
from preprocessor.vision.spec import PixelSpec, VideoSpec
from tests.loading import load_family_model
from tests.media import moving_shapes_clip, photo
from tests.parity.small_models import SMALL_MODELS

KIMI_VIDEO, MINIMAX_VIDEO = "<|kimi_k25_video_placeholder|>", "]<]video[>["
SIDE = kimi_k25.SidePixelSpec(14, 2, 1, 1, 16_384 * 196, (0.5,) * 3, (0.5,) * 3, max_side_px=512 * 14)


@pytest.fixture(scope="module")
def kimi(model_folder: Path) -> Model:
    return load_family_model(str(model_folder / "kimi-k2.5"))


@pytest.fixture(scope="module")
def minimax(model_folder: Path) -> Model:
    return load_family_model(str(model_folder / "minimax-m3"))


def planned(model: Model, text: str, *media: Media) -> Plan:
    return plan(model, PreparationRequest(TextPrompt(text), media), Limits())


def text_of(model: Model, made: Plan) -> str:
    text: str = model.tokenizer.decode(made.token_ids, skip_special_tokens=False)
    return text


def clip(*indices: int, side: int = 112) -> Media:
    return Media("v", Modality.VIDEO, moving_shapes_clip(4, 4, side, side), Sampling(indices=indices))


@pytest.mark.parametrize(
    ("total", "rate", "sampling", "expected"),
    [
        (10, 5, Sampling(), [0, 2, 5, 7]),
        (10, 5, Sampling(fps=1), [0, 5]),
        (10, 5, Sampling(fps=1e300), [*range(10)]),  # where transformers raises
        (10, 5, Sampling(frame_count=3), [0, 3, 6]),
        (2, 5, Sampling(frame_count=3), [0, 1]),
        (1, 5, Sampling(), [0]),
    ],
)
def test_frames_are_equal_steps_from_the_first(
    total: int, rate: float, sampling: Sampling, expected: list[int]
) -> None:
    spec = VideoSpec(SIDE, fps=2, min_frames=1, max_frames=9)
    assert kimi_k25.FAMILY.sample_indices(total, rate, sampling, spec).tolist() == expected
    assert minimax_m3_vl.FAMILY.sample_indices(total, rate, sampling, spec).tolist() == expected


def test_a_number_of_frames_in_the_configuration_counts_where_the_caller_says_nothing() -> None:
    spec = VideoSpec(SIDE, fps=2, min_frames=1, max_frames=9, frame_count=3)
    assert kimi_k25.sample_indices(9, 1, Sampling(), spec).tolist() == [0, 3, 6]
    assert kimi_k25.sample_indices(9, 1, Sampling(fps=0.2), spec).tolist() == [0]


@pytest.mark.parametrize(
    ("pixels", "size", "expected"),
    [
        (SIDE, (100, 200), ((100, 200), (112, 224))),  # never enlarged, padded to whole tokens
        (SIDE, (28, 28), ((28, 28), (28, 28))),
        (SIDE, (3, 10_000), ((2, 7_168), (28, 7_168))),  # the longer side has 512 patches at most
        (dataclasses.replace(SIDE, max_pixels=16 * 196), (112, 112), ((56, 56), (56, 56))),
        (dataclasses.replace(SIDE, max_pixels=17 * 196 - 1), (112, 112), ((56, 56), (56, 56))),  # 16 patches
    ],
)
def test_kimi_shrinks_to_a_number_of_patches(
    pixels: kimi_k25.SidePixelSpec, size: tuple[int, int], expected: object
) -> None:
    assert kimi_k25.fit(*size, pixels) == expected


@pytest.mark.parametrize(
    ("second", "expected"),
    [(0.0, "00:00:00.000"), (1.5, "00:00:01.500"), (3_725.9999, "01:02:05.999"), (90_000.0, "01:00:00.000")],
)
def test_kimi_writes_the_time_of_a_chunk_as_a_clock_of_a_day(second: float, expected: str) -> None:
    assert kimi_k25.clock(second) == expected


def test_kimi_writes_four_frames_in_the_tokens_of_one(kimi: Model) -> None:
    made = planned(kimi, f"{KIMI_VIDEO}!", clip(0, 2, 4, 6, 8, 10))
    chunks = (
        f"00:00:0{second}.000<|media_begin|>video<|media_content|>{KIMI_VIDEO * 16}<|media_end|>" for second in (0, 2)
    )
    assert text_of(kimi, made) == "<bos>" + "".join(chunks) + "!"
    assert made.tensors["chunk_grid_thw"].tolist() == [[4, 8, 8], [2, 8, 8]]
    assert made.tensors["grid_thw"].tolist() == [[6, 8, 8]]
    assert made.pixels is not None and (made.pixels.row_count, made.pixels.feature_count) == (6 * 64, 3 * 14 * 14)


def test_kimi_rows_are_patches_line_by_line_on_black(kimi: Model) -> None:
    picture = photo(50, 30, "PNG")
    request = PreparationRequest(TextPrompt("<|media_pad|>"), (Media("i", Modality.IMAGE, picture),), PixelForm.UINT8)
    rows = prepare(kimi, request).tensors["pixel_patches"]
    canvas = np.zeros((56, 56, 3), np.uint8)
    canvas[:30, :50] = decode_image(picture)
    expected = [
        canvas[y : y + 14, x : x + 14].transpose(2, 0, 1).ravel() for y in range(0, 56, 14) for x in range(0, 56, 14)
    ]
    assert np.array_equal(rows, np.stack(expected))


def test_minimax_writes_each_pair_of_frames_behind_its_time_in_segments_of_four(minimax: Model) -> None:
    made = planned(minimax, f"{MINIMAX_VIDEO}!", clip(*range(9), side=56))
    times = ("0.0", "0.5", "1.0", "1.5", "2.0")
    pairs = (f"]<]{time} seconds[>[]<]start of image[>[{MINIMAX_VIDEO * 4}]<]end of image[>[" for time in times)
    assert text_of(minimax, made) == "<bos>" + "".join(pairs) + "!"
    assert made.tensors["chunk_grid_thw"].tolist() == [[4, 4, 4], [1, 4, 4]]
    assert made.tensors["grid_thw"].tolist() == [[5, 4, 4]]


def test_minimax_writes_the_marks_around_an_image(minimax: Model) -> None:
    made = planned(minimax, "]<]image[>[", Media("i", Modality.IMAGE, photo(56, 56, "PNG")))
    assert text_of(minimax, made) == f"<bos>]<]start of image[>[{']<]image[>[' * 4}]<]end of image[>["


def test_minimax_reads_the_names_and_sizes_of_its_repository(tmp_path: Path) -> None:
    SMALL_MODELS["minimax-m3"].save(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({name.replace("_token_id", "_token_index"): value for name, value in config.items()}))
    settings = tmp_path / "processor_config.json"
    processors = json.loads(settings.read_text())
    processors["video_processor"]["vision_segment_max_frames"] = None
    settings.write_text(json.dumps(processors))
    model = load_family_model(str(tmp_path))
    assert (model.image.min_pixels, model.image.max_pixels) == (3_136, 451_584)
    made = planned(model, MINIMAX_VIDEO, clip(*range(10), side=56))
    assert made.tensors["chunk_grid_thw"].tolist() == [[5, 4, 4]]


def test_both_have_plain_positions(kimi: Model, minimax: Model) -> None:
    image = Media("i", Modality.IMAGE, photo(56, 56, "PNG"))
    for model, text in ((kimi, "<|media_pad|>"), (minimax, "]<]image[>[")):
        assert not [name for name in planned(model, text, image).tensors if "rope" in name or "position" in name]


def test_pixel_specs_of_images_and_videos_are_of_one_kind(kimi: Model, minimax: Model) -> None:
    assert isinstance(kimi.image, kimi_k25.SidePixelSpec) and isinstance(kimi.video.pixels, kimi_k25.SidePixelSpec)
    assert type(minimax.image) is type(minimax.video.pixels) is PixelSpec


@pytest.mark.parametrize(
    ("model", "setting", "value"),
    [
        ("kimi-k2.5", "size", {"shortest_edge": 28, "longest_edge": 9_999}),
        ("kimi-k2.5", "max_patches", "many"),
        ("glm-5.3", "max_image_tokens", 0),
        ("glm-4.1v", "resample", 2),
    ],
)
def test_settings_that_the_fast_path_does_not_read_leave_the_model_to_the_generic_path(
    model: str, setting: str, value: object, tmp_path: Path
) -> None:
    SMALL_MODELS[model].save(tmp_path)
    path = tmp_path / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"][setting] = value
    path.write_text(json.dumps(settings))
    assert load_model(str(tmp_path)).describe().path is ModelPath.GENERIC


@pytest.mark.parametrize("modality", [Modality.IMAGE, Modality.VIDEO])
@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("kimi-k2.5", {"min_pixels": 9}),
        *((name, {"cap_pixels_per_frame": True}) for name in SMALL_MODELS if "omni" not in name),
    ],
)
def test_a_bound_that_the_family_has_no_place_for_is_refused(
    model_folder: Path, name: str, bounds: dict[str, Any], modality: Modality
) -> None:
    """Before the file is read: a file of nothing has another fault."""
    model = load_family_model(str(model_folder / name))
    text = model.placeholders.tokens[modality]
    with pytest.raises(InvalidRequest, match="takes no") as refused:
        planned(model, text, Media("a", modality, b"", **bounds))
    assert refused.value.reason == "INVALID_PIXEL_BUDGET"


@pytest.mark.parametrize("name", ["qwen3.5", "qwen3-omni", "qwen2.5-omni"])
def test_the_cap_of_a_frame_is_heeded_in_videos_alone(model_folder: Path, name: str) -> None:
    model = load_family_model(str(model_folder / name))
    video, image = (model.placeholders.tokens[modality] for modality in (Modality.VIDEO, Modality.IMAGE))
    assert planned(model, video, dataclasses.replace(clip(0, 1), cap_pixels_per_frame=True)).items
    with pytest.raises(InvalidRequest, match="takes no cap_pixels_per_frame for its images"):
        planned(model, image, Media("i", Modality.IMAGE, photo(90, 60), cap_pixels_per_frame=True))
