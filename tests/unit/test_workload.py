"""What a plan is expected to cost, and that work cut in parts makes the same pixels."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.media.image_formats import ACCEPTED_FORMATS
from preprocessor.models.family import Model
from preprocessor.pipeline.cost import estimate
from preprocessor.pipeline.division import cut
from preprocessor.types.plan import Plan
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    OnDamage,
    PixelForm,
    PreparationRequest,
    Sampling,
)
from tests.media import moving_shapes_clip, photo
from tests.plans import pixels_of

GROUPED = (("g", "12"),)
CLIPS = {
    "h264": moving_shapes_clip(seconds=4, width=96, height=64, options=GROUPED),
    "hevc": moving_shapes_clip(
        seconds=4, width=96, height=64, codec="libx265", options=(("x265-params", "keyint=12:log-level=none"),)
    ),
    "vp9": moving_shapes_clip(
        seconds=2, width=96, height=64, codec="libvpx-vp9", container="webm", options=(("g", "12"), ("cpu-used", "8"))
    ),
}


def planned(model: Model, *media: Media, form: PixelForm = PixelForm.UINT8) -> tuple[PreparationRequest, Plan]:
    prompt = ChatPrompt((Message("user", tuple(MediaPart(medium.key) for medium in media)),))
    request = PreparationRequest(prompt, media, pixel_form=form)
    plan = pipeline.plan(model, request, Limits())
    assert isinstance(plan, Plan)
    return request, plan


def video(data: bytes, key: str = "clip", **fields: object) -> Media:
    return Media(key, Modality.VIDEO, data, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", CLIPS)
@pytest.mark.parametrize("sampling", [Sampling(fps=5), Sampling(every_frame=True), Sampling(frame_count=7)], ids=str)
@pytest.mark.parametrize("part_count", [2, 3, 8])
def test_parts_make_the_pixels_of_the_whole(model: Model, codec: str, sampling: Sampling, part_count: int) -> None:
    request, plan = planned(model, video(CLIPS[codec], sampling=sampling))
    whole = pipeline.allocate_pixels(pixels_of(plan))
    pipeline.write_pixels(model, request.media, pixels_of(plan), whole)
    parts = cut(pixels_of(plan), request.media, part_count)
    assert 2 <= len(parts) <= part_count
    assert [row for part in parts for row in part] == list(range(pixels_of(plan).row_count))
    pieces = np.zeros_like(whole)
    for part in reversed(parts):
        announced: list[tuple[int, int]] = []
        pipeline.write_pixels(
            model, request.media, pixels_of(plan), pieces, lambda *rows, to=announced: to.append(rows), rows=part
        )
        assert announced[0][0] == part.start
        assert sum(count for _, count in announced) == len(part)
    assert np.array_equal(pieces, whole)


def test_a_prompt_of_several_files_is_cut_between_them(model: Model) -> None:
    media = [Media(f"photo{n}", Modality.IMAGE, photo(64 + 32 * n, 64)) for n in range(5)]
    request, plan = planned(model, *media, video(CLIPS["h264"]), form=PixelForm.BF16)
    starts = {item.row_start for item in plan.items}
    assert starts & {part.start for part in cut(pixels_of(plan), request.media, 4)} > {0}
    whole = pipeline.allocate_pixels(pixels_of(plan))
    pipeline.write_pixels(model, request.media, pixels_of(plan), whole)
    pieces = np.zeros_like(whole)
    for part in cut(pixels_of(plan), request.media, 4):
        pipeline.write_pixels(model, request.media, pixels_of(plan), pieces, rows=part)
    assert pieces.tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    "medium",
    [
        video(moving_shapes_clip(seconds=2, width=96, height=64, options=(("g", "1000"),))),
        video(CLIPS["h264"], on_damage=OnDamage.REPEAT),
        Media("photo", Modality.IMAGE, photo(200, 100)),
    ],
    ids=["one group of pictures", "damage covered by earlier frames", "one image"],
)
def test_what_cannot_be_divided_stays_whole(model: Model, medium: Media) -> None:
    request, plan = planned(model, medium)
    assert cut(pixels_of(plan), request.media, 4) == [range(pixels_of(plan).row_count)]


def test_more_to_decode_is_expected_to_take_longer(model: Model) -> None:
    long = moving_shapes_clip(seconds=8, width=96, height=64, options=GROUPED)
    workloads = [
        estimate(pixels_of(plan), request.media)
        for request, plan in (
            planned(model, Media("photo", Modality.IMAGE, photo(64, 64))),
            planned(model, video(CLIPS["h264"], sampling=Sampling(fps=1))),
            planned(model, video(CLIPS["h264"], sampling=Sampling(fps=10))),
            planned(model, video(long, sampling=Sampling(fps=10))),
            planned(model, video(long, sampling=Sampling(fps=10)), video(long, "again", sampling=Sampling(fps=10))),
        )
    ]
    seconds = [workload.cpu_seconds for workload in workloads]
    assert all(shorter < longer for shorter, longer in itertools.pairwise(seconds))
    assert all(workload.working_bytes > 1 << 20 for workload in workloads)


@pytest.mark.skipif("JPEG2000" not in ACCEPTED_FORMATS, reason="this Pillow does not read it")
def test_a_jpeg_2000_is_expected_to_take_longer_and_more_memory_than_a_png(model: Model) -> None:
    png, jpeg2000 = (
        estimate(pixels_of(plan), request.media)
        for request, plan in (
            planned(model, Media("photo", Modality.IMAGE, photo(640, 480, image_format)))
            for image_format in ("PNG", "JPEG2000")
        )
    )
    assert jpeg2000.cpu_seconds > png.cpu_seconds
    assert jpeg2000.working_bytes > png.working_bytes


def test_groups_without_a_chosen_frame_are_not_expected_to_cost(model: Model) -> None:
    estimates = [
        estimate(pixels_of(plan), request.media).cpu_seconds
        for request, plan in (
            planned(model, video(CLIPS["h264"], sampling=Sampling(indices=indices)))
            for indices in ((0, 1), (0, 71), (10, 11))
        )
    ]
    assert estimates[0] < min(estimates[1:])


def test_a_decoder_that_is_checked_by_another_costs_what_both_take(model: Model) -> None:
    request, plan = planned(model, video(CLIPS["h264"], sampling=Sampling(indices=(70, 71))))
    alone, checked = (
        estimate(dataclasses.replace(pixels_of(plan), video_decoder=name), request.media) for name in ("pyav", "opencv")
    )
    assert checked.cpu_seconds > alone.cpu_seconds
    assert checked.working_bytes > alone.working_bytes
