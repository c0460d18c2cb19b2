"""What each model family decides, in small numbers written out. Equality with transformers is tested in tests/golden."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from preprocessor.config import Limits
from preprocessor.media.sampling import choose_frames
from preprocessor.models import gemma4, internvl, qwen2_5_vl, qwen2_vl, qwen3_vl
from preprocessor.models.family import Family, Model
from preprocessor.models.registry import FAMILIES
from preprocessor.pipeline import plan, prepare
from preprocessor.types.plan import ExpandedPrompt, Grid, ItemPlan, ItemRows
from preprocessor.types.request import Media, Modality, PreparationRequest, Sampling, SamplingBasis, TextPrompt
from preprocessor.types.source import ClipInfo, FrameChoice
from preprocessor.vision.spec import PixelSpec, VideoSpec
from tests.media import moving_shapes_clip, photo

MEAN = STD = (0.5, 0.5, 0.5)
PIXELS = PixelSpec(14, 2, 2, 3_136, 100_000, MEAN, STD)
SPEC = VideoSpec(PIXELS, fps=2, min_frames=4, max_frames=768)
BUILT_IN = {"qwen2-vl": qwen2_vl.FAMILY, "qwen2.5-vl": qwen2_5_vl.FAMILY, "qwen3-vl": qwen3_vl.FAMILY}
OF_VIDEO = [
    *BUILT_IN.values(),
    internvl.FAMILY,
    gemma4.FAMILY,
]  # the others have settings of their own: their tests sample, too
LoadModel = Callable[[str], Model]


def item(grid: Grid, *, sampled_fps: float | None = None, times: tuple[float, ...] = ()) -> ItemPlan:
    """A planned medium: a video where it has a sampled_fps, else an image."""
    shown = np.array(times, np.float64)
    frames = None
    if sampled_fps is not None:
        frames = FrameChoice(np.arange(len(shown)), shown, shown, sampled_fps, SamplingBasis.INDEX)
    return ItemPlan(
        key="m",
        modality=Modality.IMAGE if frames is None else Modality.VIDEO,
        source=None,  # type: ignore[arg-type]  # no family looks at it
        decoder="",
        frames=frames,
        content_sha256=b"",
        digest=b"",
        rows=ItemRows(grid.t, grid.h * grid.w, 2, 28, 28, grid),
        token_count=grid.patch_count // 4,
    )


# -- sampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "rate", "sampling", "expected"),
    [
        (8, 30, Sampling(frame_count=4), [0, 2, 4, 6]),
        (8, 30, Sampling(frame_count=5), [0, 2, 4, 6]),  # 2.5 pairs round to the even 2
        (8, 30, Sampling(frame_count=7), [0, 1, 2, 3, 4, 5, 6, 7]),  # 3.5 pairs round to the even 4
        (10, 30, Sampling(frame_count=32), list(range(10))),
        (7, 30, Sampling(frame_count=7), [0, 1, 2, 3, 4, 5]),  # whole pairs, where transformers raises
        (9, 30, Sampling(frame_count=1), [0]),  # where transformers divides by zero
        (1, 30, Sampling(), [0]),
        (900, 30, Sampling(fps=0.1), [0, 225, 450, 675]),  # 3 frames, raised to the least
        (90, 30, Sampling(fps=1.8), [0, 22, 45, 67]),  # 5.4 frames make two whole pairs
    ],
)
@pytest.mark.parametrize("family", [qwen2_vl, qwen2_5_vl], ids=["qwen2_vl", "qwen2_5_vl"])
def test_qwen2_takes_whole_pairs_in_equal_steps(
    family: ModuleType, total: int, rate: float, sampling: Sampling, expected: list[int]
) -> None:
    assert family.FAMILY.sample_indices(total, rate, sampling, SPEC).tolist() == expected


@pytest.mark.parametrize(
    ("total", "rate", "sampling", "expected"),
    [
        (8, 30, Sampling(frame_count=4), [0, 2, 5, 7]),
        (8, 30, Sampling(frame_count=5), [0, 2, 4, 5, 7]),  # 3.5 rounds to the even 4
        (10, 30, Sampling(frame_count=32), list(range(10))),
        (9, 30, Sampling(frame_count=1), [0]),
        (1, 30, Sampling(), [0]),
        (900, 30, Sampling(fps=0.1), [0, 300, 599, 899]),
        (90, 30, Sampling(fps=1.8), [0, 22, 44, 67, 89]),
    ],
)
def test_qwen3_takes_evenly_spaced_frames_from_first_to_last(
    total: int, rate: float, sampling: Sampling, expected: list[int]
) -> None:
    assert qwen3_vl.sample_indices(total, rate, sampling, SPEC).tolist() == expected


@pytest.mark.parametrize("sampling", [Sampling(frame_count=5), Sampling(frame_count=6), Sampling(fps=1)], ids=str)
@pytest.mark.parametrize("family", [qwen2_vl, qwen3_vl])
def test_whole_pairs_alone_drop_no_frame_of_a_rate_that_varies(family: ModuleType, sampling: Sampling) -> None:
    uneven = ClipInfo("h264", 64, 64, 0.25, 20, 1, np.array([0, 1, 5, 6, 17]))
    chosen = choose_frames(uneven, sampling, lambda n, rate: family.sample_indices(n, rate, sampling, SPEC), "clip")
    assert chosen.indices.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("family", BUILT_IN.values(), ids=BUILT_IN)
def test_a_family_samples_as_its_settings_say_unless_asked(family: Family) -> None:
    spec = dataclasses.replace(SPEC, fps=4, max_frames=10)
    assert len(family.sample_indices(60, 30, Sampling(), spec)) == 8
    assert len(family.sample_indices(900, 30, Sampling(), spec)) == 10


@pytest.mark.parametrize("family", OF_VIDEO, ids=lambda family: family.name)
def test_frames_of_every_family_ascend_within_the_clip(family: Family) -> None:
    random = np.random.default_rng(2)
    for _ in range(3_000):
        total = int(random.integers(1, 400))
        count = int(random.integers(1, 500)) if random.random() < 0.5 else None
        sampling = Sampling(frame_count=count, fps=None if count else float(random.uniform(0.01, 60)))
        indices = family.sample_indices(total, float(random.uniform(1, 60)), sampling, SPEC)
        assert 1 <= len(indices) <= total and indices[0] >= 0 and indices[-1] < total
        assert (np.diff(indices) > 0).all()


# -- sizes ---------------------------------------------------------------------------------------------------------


def test_qwen2_bounds_the_pixels_of_one_frame() -> None:
    assert qwen2_vl.fit_video(2, 600, 600, SPEC) == qwen2_vl.fit_video(200, 600, 600, SPEC) == (308, 308)


def test_qwen3_bounds_the_pixels_of_all_frames() -> None:
    sizes = [qwen3_vl.fit_video(count, 600, 600, SPEC) for count in (2, 8, 32)]
    assert sizes == [(196, 196), (84, 84), (28, 28)]


def test_qwen2_under_its_cap_shares_a_budget_among_frames() -> None:
    capped = dataclasses.replace(SPEC, cap_pixels_per_frame=True, max_video_tokens=1_000)
    # 1000 tokens x 28 x 28 px x 0.9 x 2 frames a patch / 64 frames = 22050 px a frame.
    assert qwen2_vl.fit_video(64, 600, 600, capped) == (140, 140)


def test_qwen3_under_its_cap_bounds_the_tokens_of_a_frame() -> None:
    pixels = dataclasses.replace(PIXELS, max_pixels=10_000_000)
    capped = dataclasses.replace(SPEC, pixels=pixels, cap_pixels_per_frame=True, max_video_tokens=25)
    assert qwen3_vl.fit_video(4, 600, 600, capped) == (140, 140)


def test_qwen3_counts_a_single_frame_as_a_whole_temporal_patch() -> None:
    assert qwen3_vl.fit_video(1, 600, 600, SPEC) == qwen3_vl.fit_video(2, 600, 600, SPEC)


# -- time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0.0, 0.5, 1.0, 1.5], [0.25, 1.25]),
        ([0.0, 0.5, 1.0], [0.25, 1.0]),  # the last frame is repeated
        ([3.0], [3.0]),
    ],
)
def test_a_pairs_time_is_the_mean_of_its_first_and_last(times: list[float], expected: list[float]) -> None:
    assert qwen3_vl.pair_times(np.array(times), 2) == expected


def test_pair_times_leaves_an_odd_list_as_it_was() -> None:
    times = np.array([0.0, 0.5, 1.0])
    qwen3_vl.pair_times(times, 2)
    assert times.tolist() == [0.0, 0.5, 1.0]


def test_qwen2_5_seconds_per_grid_come_from_the_sampled_rate(load: LoadModel) -> None:
    items = [item(Grid(1, 4, 4)), item(Grid(2, 4, 4), sampled_fps=0.8), item(Grid(2, 4, 4), sampled_fps=3)]
    seconds = [qwen2_5_vl.seconds_per_grid(one.frames, load("qwen2.5-vl")) for one in items]
    assert seconds == [0, 2.5, np.float32(2 / 3)]


@pytest.mark.parametrize(("name", "expected"), [("qwen2-vl", False), ("qwen2.5-vl", True), ("qwen3-vl", False)])
def test_only_qwen2_5_sends_seconds_per_grid_and_only_with_media(load: LoadModel, name: str, expected: bool) -> None:
    image = Media("i", Modality.IMAGE, photo(64, 64, "PNG"))
    tensors = prepare(load(name), PreparationRequest(TextPrompt("<|image_pad|>"), (image,))).tensors
    assert ("second_per_grid_ts" in tensors) is expected
    assert "second_per_grid_ts" not in prepare(load(name), PreparationRequest(TextPrompt("words"))).tensors


# -- placeholders --------------------------------------------------------------------------------------------------


def video_ids(model: Model) -> list[str]:
    """The tokens of a prompt that is one video of four frames, two pairs of 2 x 2 tokens, runs written once."""
    clip = moving_shapes_clip(0.4, 10, 64, 64)
    video = Media("v", Modality.VIDEO, clip, Sampling(every_frame=True), 3_136, 4 * 64 * 64)
    planned = plan(model, PreparationRequest(TextPrompt("a<|video_pad|>b"), (video,)), Limits())
    tokens = model.tokenizer.convert_ids_to_tokens(planned.token_ids.tolist())
    runs: list[str] = []
    for token in tokens:
        if token != "<|video_pad|>":
            runs.append(token)
        elif runs and runs[-1].startswith("<|video_pad|>"):
            runs[-1] = f"<|video_pad|> x {int(runs[-1].split()[-1]) + 1}"
        else:
            runs.append("<|video_pad|> x 1")
    return runs


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen2.5-vl"])
def test_qwen2_writes_a_video_as_one_run(load: LoadModel, name: str) -> None:
    assert video_ids(load(name)) == ["a", "<|video_pad|> x 8", "b"]


def test_qwen3_writes_a_video_pair_by_pair_behind_its_time(load: LoadModel) -> None:
    first = ["<", "0", ".", "1", "Ġseconds", ">", "<|vision_start|>", "<|video_pad|> x 4", "<|vision_end|>"]
    second = ["<", "0", ".", "2", "Ġseconds", ">", "<|vision_start|>", "<|video_pad|> x 4", "<|vision_end|>"]
    assert video_ids(load("qwen3-vl")) == ["a", *first, *second, "b"]


def test_qwen3_writes_the_models_own_vision_markers() -> None:
    assert qwen3_vl.video_text([0.5], "<|video_pad|>", ("[", "]")) == "<0.5 seconds>[<|video_pad|>]"


# -- positions -----------------------------------------------------------------------------------------------------


def time_axis(
    family: ModuleType, model: Model, items: list[ItemPlan], spans: list[list[int]], length: int
) -> list[int]:
    prompt = ExpandedPrompt(np.zeros(length, np.int32), np.array(spans, np.int32))
    positions = family.FAMILY.prompt_tensors(prompt, items, model)["mrope_position_ids"]
    return positions[0].tolist()


def test_qwen2_steps_one_position_a_frame_pair(load: LoadModel) -> None:
    video = item(Grid(3, 2, 2), sampled_fps=0.1, times=(0.0,) * 6)
    assert time_axis(qwen2_vl, load("qwen2-vl"), [video], [[0, 1, 3]], 5) == [0, 1, 2, 3, 2]


def test_qwen2_5_steps_by_seconds_and_truncates(load: LoadModel) -> None:
    # 2 positions a second x 2 frames / 3.2 fps = 1.25 positions a pair.
    video = item(Grid(5, 2, 2), sampled_fps=3.2, times=(0.0,) * 10)
    assert time_axis(qwen2_5_vl, load("qwen2.5-vl"), [video], [[0, 1, 5]], 6) == [0, 1, 2, 3, 4, 6]


def test_qwen2_5_multiplies_in_float32(load: LoadModel) -> None:
    # Step 69 lies at 69 x 4 / 2.3 = 120; in float32 at 119.99999, which is truncated.
    video = item(Grid(70, 2, 2), sampled_fps=2.3, times=(0.0,) * 140)
    assert time_axis(qwen2_5_vl, load("qwen2.5-vl"), [video], [[0, 0, 70]], 70)[69] == 119


def test_qwen2_5_gives_an_image_one_step(load: LoadModel) -> None:
    items = [item(Grid(1, 4, 2)), item(Grid(2, 2, 2), sampled_fps=0.5, times=(0.0,) * 4)]
    assert time_axis(qwen2_5_vl, load("qwen2.5-vl"), items, [[0, 0, 2], [1, 2, 2]], 4) == [0, 0, 2, 10]


def test_qwen3_counts_every_pair_as_an_image(load: LoadModel) -> None:
    video = item(Grid(2, 2, 4), sampled_fps=1, times=(0.0,) * 4)
    assert time_axis(qwen3_vl, load("qwen3-vl"), [video], [[0, 1, 2], [0, 4, 2]], 7) == [0, 1, 1, 3, 4, 4, 6]


# -- which models belong to a family -------------------------------------------------------------------------------


def test_no_model_type_belongs_to_two_families() -> None:
    types = [model_type for family in FAMILIES for model_type in family.model_types]
    assert len(types) == len(set(types))


@pytest.mark.parametrize(("name", "family"), BUILT_IN.items(), ids=BUILT_IN)
def test_each_built_in_loads_its_family(load: LoadModel, name: str, family: Family) -> None:
    assert load(name).family is family


def test_qwen2_heeds_the_number_of_frames_in_a_configuration_where_the_caller_says_nothing(load: LoadModel) -> None:
    model = load("qwen2-vl")
    spec = dataclasses.replace(model.video, frame_count=6)
    assert len(model.family.sample_indices(100, 25.0, Sampling(), spec)) == 6
    assert len(model.family.sample_indices(100, 25.0, Sampling(fps=1), spec)) == 4
    assert len(model.family.sample_indices(100, 25.0, Sampling(frame_count=8), spec)) == 8
