"""The benchmark's paths make the same pixels, and a path that does not is found. Nothing is timed here."""

from __future__ import annotations

import dataclasses

import pytest

from preprocessor.models.family import Model
from tests.bench.compare import compare_paths
from tests.bench.paths import PATHS, Disagreement, Job, Result, make_job
from tests.media import moving_shapes_clip


@pytest.fixture(scope="module")
def job(model: Model) -> Job:
    return _job(model, fps=2)


@pytest.mark.parametrize("fps", [2, 2.5, 8])
def test_all_paths_agree_on_a_small_clip(model: Model, fps: float) -> None:
    compare_paths(_job(model, fps))


def test_a_before_that_took_other_frames_is_found(job: Job) -> None:
    def late(job: Job) -> Result:
        return PATHS["before"](dataclasses.replace(job, indices=job.indices - (job.indices > 0) * 4))

    with pytest.raises(Disagreement, match="before is"):
        compare_paths(job, PATHS | {"before": late})


@pytest.mark.parametrize("name", ["ours", "ours FP32"])
def test_one_wrong_value_of_ours_is_found(job: Job, name: str) -> None:
    def wrong(job: Job) -> Result:
        result = PATHS[name](job)
        result.pixels[-1, -1] += 1
        return result

    with pytest.raises(Disagreement, match="not exactly what seed makes"):
        compare_paths(job, PATHS | {name: wrong})


def test_a_bound_that_decoded_too_little_is_found(job: Job) -> None:
    def lazy(job: Job) -> Result:
        return dataclasses.replace(PATHS["bound"](job), frame_count=len(job.indices) - 1)

    with pytest.raises(Disagreement, match="decoded were"):
        compare_paths(job, PATHS | {"bound": lazy})


def _job(model: Model, fps: float) -> Job:
    """Two seconds of 214x180, a size that is resized: 4 to 16 frames."""
    return make_job(model, moving_shapes_clip(seconds=2, width=214, height=180), fps, "What moves?")
