"""How rows are divided among idle cores: by what it is expected to save, within the memory that is free."""

from __future__ import annotations

import dataclasses

import pytest

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.models.family import Model
from preprocessor.pipeline.cost import estimate, thread_bytes
from preprocessor.pipeline.division import MOST_THREADS, Division, IdleCores, divide
from preprocessor.types.plan import PixelPlan
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    OnDamage,
    PreparationRequest,
    Sampling,
)
from tests.media import moving_shapes_clip, photo

GIB = 1 << 30
GROUPED = moving_shapes_clip(seconds=8, width=512, height=384, options=(("g", "30"),))
ONE_GROUP = moving_shapes_clip(seconds=6, width=320, height=240, options=(("g", "1000"),))


def clip(data: bytes, fps: float, **fields: object) -> Media:
    return Media("clip", Modality.VIDEO, data, sampling=Sampling(fps=fps), **fields)  # type: ignore[arg-type]


def idle(cores: int, **changes: int) -> IdleCores:
    return dataclasses.replace(IdleCores(cores, cores, cores, GIB), **changes)


def planned(model: Model, *media: Media) -> PixelPlan:
    prompt = ChatPrompt((Message("user", tuple(MediaPart(medium.key) for medium in media)),))
    plan = pipeline.plan(model, PreparationRequest(prompt, media), Limits()).pixels
    assert plan is not None
    return plan


def divided(model: Model, idle_cores: IdleCores, *media: Media) -> Division:
    plan = planned(model, *media)
    division = divide(plan, media, idle_cores, estimate(plan, media).working_bytes)
    assert [row for part in division.parts for row in part] == list(range(plan.row_count))
    assert len(division.parts) * division.thread_count <= idle_cores.core_count
    return division


def test_a_clip_of_many_groups_is_cut_over_workers(model: Model) -> None:
    for cores in (4, 8):
        assert len(divided(model, idle(cores), clip(GROUPED, 1)).parts) > 1


def test_a_clip_of_one_group_is_made_by_threads(model: Model) -> None:
    for cores in (2, 16):
        division = divided(model, idle(cores), clip(ONE_GROUP, 15))
        assert len(division.parts) == 1
        assert 1 < division.thread_count <= MOST_THREADS


def test_what_would_save_little_is_not_divided(model: Model) -> None:
    assert divided(model, idle(16), clip(ONE_GROUP, 0.5)) == Division(
        (range(planned(model, clip(ONE_GROUP, 0.5)).row_count),)
    )
    small = moving_shapes_clip(seconds=2, width=96, height=64, options=(("g", "10"),))
    assert len(divided(model, idle(16), clip(small, 2)).parts) == 1
    one_image = divided(model, idle(16), Media("photo", Modality.IMAGE, photo(2000, 1500)))
    assert (len(one_image.parts), one_image.thread_count) == (1, 1)


def test_what_may_not_be_cut_can_be_made_by_threads(model: Model) -> None:
    division = divided(model, idle(4), clip(GROUPED, 15, on_damage=OnDamage.REPEAT))
    assert len(division.parts) == 1 < division.thread_count


def test_workers_that_must_be_forked_first_are_used_for_long_tasks_alone(model: Model) -> None:
    medium = clip(GROUPED, 15)
    assert len(divided(model, idle(8), medium).parts) > 1
    assert len(divided(model, idle(8, ready_count=1), medium).parts) == 1


def test_parts_and_threads_have_the_memory_that_is_free(model: Model) -> None:
    medium = clip(GROUPED, 15)
    plan = planned(model, medium)
    working_bytes = estimate(plan, (medium,)).working_bytes
    for free_bytes in (0, working_bytes, working_bytes + thread_bytes(plan) - 1):
        division = divide(plan, (medium,), idle(8, free_bytes=free_bytes), working_bytes)
        assert (len(division.parts), division.thread_count) == (1, 1)
    division = divide(plan, (medium,), idle(8, free_bytes=working_bytes + thread_bytes(plan)), working_bytes)
    assert (len(division.parts), division.thread_count) == (1, 2)


@pytest.mark.parametrize("cores", [2, 3, 4, 7, 16, 64])
def test_more_cores_are_never_slower_by_the_estimate(model: Model, cores: int) -> None:
    """More are used only where that saves a tenth."""
    for fps in (0.5, 2, 15):
        fewer, more = (divided(model, idle(count), clip(GROUPED, fps)) for count in (cores // 2, cores))
        assert len(more.parts) * more.thread_count >= len(fewer.parts) * fewer.thread_count
