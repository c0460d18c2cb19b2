"""The benchmark's paths make the same pixels, and a path that does not is found. Nothing is timed here."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from preprocessor.models.family import Model
from tests.bench.compare import compare_paths
from tests.bench.contest import CannotDo, Disagreement, Result
from tests.bench.image_paths import IMAGE_PATHS, ImageJob, compare_image_paths, make_image_job
from tests.bench.paths import PATHS, Job, make_job, needed_packets
from tests.media import moving_shapes_clip, photo


@pytest.fixture(scope="module")
def job(model: Model) -> Job:
    return _job(model, fps=2)


@pytest.fixture(scope="module")
def image_job(model: Model) -> ImageJob:
    return make_image_job(model, (photo(160, 120), photo(333, 207, "PNG")), "What is it?")


@pytest.mark.parametrize("fps", [2, 2.5, 8])
def test_all_paths_agree_on_a_small_clip(model: Model, fps: float) -> None:
    assert compare_paths(_job(model, fps)).cannot == {}


def test_all_paths_agree_on_images(image_job: ImageJob) -> None:
    compare_image_paths(image_job)


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


@pytest.mark.parametrize("name", ["hf", "ours", "ours FP32"])
def test_one_wrong_value_of_an_image_is_found(image_job: ImageJob, name: str) -> None:
    def wrong(job: ImageJob) -> Result:
        result = IMAGE_PATHS[name](job)
        pixels = result.pixels.copy()
        pixels[0, 0] += 1
        return dataclasses.replace(result, pixels=pixels)

    with pytest.raises(Disagreement, match=f"the pixels of {name} are not"):
        compare_image_paths(image_job, IMAGE_PATHS | {name: wrong})


def test_a_bound_that_decoded_too_little_is_found(job: Job) -> None:
    def lazy(job: Job) -> Result:
        return dataclasses.replace(PATHS["bound"](job), frame_count=len(job.indices) - 1)

    with pytest.raises(Disagreement, match="decoded were"):
        compare_paths(job, PATHS | {"bound": lazy})


def test_a_path_that_cannot_do_a_clip_is_left_out_and_says_why(job: Job) -> None:
    def unable(job: Job) -> Result:
        raise CannotDo("no such decoder")

    comparison = compare_paths(job, PATHS | {"before": unable, "seed": unable})
    assert comparison.cannot == {"before": "no such decoder", "seed": "no such decoder"}
    assert comparison.before_off == {}


def test_without_seed_ours_is_still_compared_with_hugging_face(job: Job) -> None:
    def unable(job: Job) -> Result:
        raise CannotDo("no such decoder")

    def wrong(job: Job) -> Result:
        result = PATHS["ours"](job)
        return dataclasses.replace(result, pixels=np.zeros_like(result.pixels))

    with pytest.raises(Disagreement, match="not exactly what hf makes"):
        compare_paths(job, PATHS | {"seed": unable, "ours": wrong})


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9"])
def test_the_bound_leaves_groups_out_that_hold_no_wanted_frame_and_still_finds_all(model: Model, codec: str) -> None:
    data = moving_shapes_clip(
        4, width=128, height=96, codec=codec, options=(("g", "15"), ("x265-params", "log-level=none"))
    )
    sparse = make_job(model, data, 0.5, "What moves?")
    assert len(sparse.needed_packets) < 100
    assert PATHS["bound"](sparse).frame_count == len(sparse.indices)


def test_needed_packets_end_with_the_last_wanted_frame() -> None:
    data = moving_shapes_clip(1, width=96, height=64, options=(("bf", "0"), ("g", "10")))
    pts = sorted(make_times(data))
    assert needed_packets(data, frozenset({pts[0]})) == {0}
    assert needed_packets(data, frozenset({pts[12]})) == {10, 11, 12}
    assert needed_packets(data, frozenset(pts)) == set(range(30))


def make_times(data: bytes) -> list[int]:
    import io

    import av

    with av.open(io.BytesIO(data), "r") as container:
        return [packet.pts for packet in container.demux(video=0) if packet.size and packet.pts is not None]


def _job(model: Model, fps: float) -> Job:
    """Two seconds of 214x180, a size that is resized: 4 to 16 frames."""
    return make_job(model, moving_shapes_clip(seconds=2, width=214, height=180), fps, "What moves?")
