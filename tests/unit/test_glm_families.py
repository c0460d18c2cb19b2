"""What the GLM families decide, in small numbers written out. Equality with transformers is tested in tests/golden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest
from preprocessor.models import glm4v, glm5_next, glm46v
from preprocessor.models.family import Family
from preprocessor.pipeline import plan
from preprocessor.types.request import Media, Modality, PreparationRequest, Sampling, TextPrompt
from preprocessor.vision.spec import PixelSpec
from tests.loading import load_family_model
from tests.media import moving_shapes_clip
from tests.parity.small_models import SMALL_MODELS

FAMILIES = (glm4v.FAMILY, glm46v.FAMILY, glm5_next.FAMILY)
PIXELS = PixelSpec(14, 2, 2, 12_544, 11_760_000, (0.5,) * 3, (0.5,) * 3)
CANVAS = glm5_next.CanvasSpec(14, 2, 2, 16 * 1_568, 8_000 * 1_568, (0.5,) * 3, (0.5,) * 3)


def spec(most: int, seconds: float) -> glm4v.GlmVideoSpec:
    return glm4v.GlmVideoSpec(PIXELS, fps=2, min_frames=1, max_frames=most, max_duration_seconds=seconds)


@pytest.mark.parametrize(
    ("family", "settings", "total", "rate", "sampling", "expected"),
    [
        (glm4v.FAMILY, spec(600, 300), 30, 10, Sampling(), [0, 5, 10, 15, 20, 25]),
        (glm4v.FAMILY, spec(600, 300), 25, 10, Sampling(), [0, 5, 10, 15, 20, 20]),  # the last again: whole pairs
        (glm4v.FAMILY, spec(600, 300), 30, 10, Sampling(fps=3), [0, 4, 7, 10, 14, 17, 20, 24, 27, 27]),
        (glm4v.FAMILY, spec(600, 300), 3, 10, Sampling(fps=1e300), [0, 1, 2, 2]),
        (glm4v.FAMILY, spec(600, 300), 3, 10, Sampling(), [0, 0]),  # where transformers, too, takes at least one
        (glm4v.FAMILY, spec(6, 3), 1_000, 10, Sampling(), [0, 200, 400, 600, 800, 999]),  # longer than max_duration
        (glm46v.FAMILY, spec(640, 2_400), 10, 5, Sampling(), [*range(10)]),
        (glm46v.FAMILY, spec(640, 2_400), 20, 10, Sampling(fps=2), [0, 5, 10, 15]),
        (glm46v.FAMILY, spec(640, 2_400), 1, 10, Sampling(), [0, 0]),  # 0.1 s: transformers takes none
        (glm5_next.FAMILY, spec(2_048, 1e9), 20, 10, Sampling(), [0, 5, 10, 15]),
        (glm5_next.FAMILY, spec(4, 1e9), 100, 10, Sampling(), [0, 33, 66, 99]),
        *((family, spec(640, 300), 10, 5, Sampling(frame_count=4), [0, 3, 6, 9]) for family in FAMILIES),
        *((family, spec(640, 300), 3, 5, Sampling(frame_count=9), [0, 1, 2, 2]) for family in FAMILIES),
    ],
)
def test_frames(
    family: Family,
    settings: glm4v.GlmVideoSpec,
    total: int,
    rate: float,
    sampling: Sampling,
    expected: list[int],
) -> None:
    assert family.sample_indices(total, rate, sampling, settings).tolist() == expected


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_frames_ascend_within_the_clip_in_whole_pairs(family: Family) -> None:
    random = np.random.default_rng(2)
    for _ in range(1_000):
        total = int(random.integers(1, 400))
        count = int(random.integers(1, 500)) if random.random() < 0.5 else None
        sampling = Sampling(frame_count=count, fps=None if count else float(random.uniform(0.01, 60)))
        indices = family.sample_indices(total, float(random.uniform(0.5, 60)), sampling, spec(640, 300))
        assert indices[0] == 0 and indices[-1] < total and len(indices) % 2 == 0
        assert (np.diff(indices)[:-1] > 0).all() and indices[-1] >= indices[-2]


def test_glm5_pads_a_picture_within_its_budget_and_enlarges_none() -> None:
    assert glm5_next.fit(2, 300, 500, CANVAS) == ((300, 500), (308, 504))


def test_glm5_enlarges_a_picture_below_its_budget_as_far_as_its_shape_allows() -> None:
    # 16 tokens x 28 x 28 px: 50 x 100 becomes 80 x 159, on a canvas of whole tokens.
    assert glm5_next.fit(2, 50, 100, CANVAS) == ((84, 168), (84, 168))


def test_glm5_shrinks_a_picture_above_its_budget() -> None:
    budget = glm5_next.CanvasSpec(14, 2, 2, 1_568, 10 * 1_568, (0.5,) * 3, (0.5,) * 3)
    (height, width), canvas = glm5_next.fit(2, 1_000, 1_000, budget)
    assert (height, width) == (84, 84) and canvas == (84, 84)


def test_glm5_refuses_a_budget_that_holds_no_token_of_each_pair() -> None:
    budget = glm5_next.CanvasSpec(14, 2, 2, 1_568, 10 * 1_568, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(InvalidRequest) as caught:
        glm5_next.fit(22, 100, 100, budget)
    assert caught.value.reason == "INVALID_PIXEL_BUDGET"


@pytest.mark.parametrize(
    ("name", "stamps"),
    [
        ("glm-4.1v", ("0", "1")),
        ("glm-4.6v", ("0.0 seconds", "1.0 seconds")),
        ("glm-5.3", ("0.0 seconds", "1.0 seconds")),
    ],
)
def test_a_video_is_written_pair_by_pair_in_image_tokens_before_its_time(
    name: str, stamps: tuple[str, str], model_folder: Path
) -> None:
    model = load_family_model(str(model_folder / name))
    video = Media("v", Modality.VIDEO, moving_shapes_clip(2, 4, 112, 112), Sampling(indices=(0, 2, 4, 6)))
    planned = plan(model, PreparationRequest(TextPrompt("<|video|>!"), (video,)), Limits())
    text = model.tokenizer.decode(planned.token_ids, skip_special_tokens=False)
    pairs = (f"<|begin_of_image|>{'<|image|>' * 16}<|end_of_image|>{stamp}" for stamp in stamps)
    assert text == "<bos>" + "".join(pairs) + "!"


def test_the_named_class_of_a_processor_decides_between_families_of_one_type(tmp_path: Path) -> None:
    small = SMALL_MODELS["glm-4.6v"]
    small.save(tmp_path)
    assert load_family_model(str(tmp_path)).family is glm46v.FAMILY
    settings = tmp_path / "processor_config.json"
    named = settings.read_text()
    settings.write_text(named.replace('"processor_class": "Glm46VProcessor", ', ""))
    assert load_family_model(str(tmp_path)).family is glm4v.FAMILY
