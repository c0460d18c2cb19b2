"""Several threads make of a video what one makes: rows, announcements, substitutions and errors; and none outlives it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from preprocessor import pipeline
from preprocessor.config import Limits
from preprocessor.errors import Cancelled, LimitExceeded, PreprocessorError
from preprocessor.models.family import Model
from preprocessor.pipeline import write_item
from preprocessor.types.plan import PixelPlan, Substitution
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
from preprocessor.types.source import ClipInfo
from preprocessor.vision.patches import PIXEL_DTYPES
from tests.media import animation, damaged, moving_shapes_clip, truncated_clip
from tests.odd_clips import open_group_start, packed_avi
from tests.unit.test_video_formats import FILES

SMALL = {"seconds": 2, "rate": 20, "width": 96, "height": 64, "grain": 10}


def clip(**changes: Any) -> Callable[[], bytes]:
    return lambda: moving_shapes_clip(**{**SMALL, **changes})


CLIPS: dict[str, Callable[[], bytes]] = {
    **FILES,
    "h264, one group": clip(options=(("g", "1000"), ("bf", "3"))),
    "h264, no times": clip(container="avi", options=(("g", "10"), ("bf", "2"))),
    "turned": clip(turn_degrees=90),
    "mirrored": clip(turn_degrees=180, is_mirrored=True),
    "begins in an open group": lambda: open_group_start("libx264", "matroska"),
    "packed": packed_avi,
    "webp": animation,
}
# Each clip of x265 is made by a process of its own, which takes a second.
_FAST_HEVC = ("hevc", "hevc, open groups", "10 bits, hevc")
_NAMES = [pytest.param(name, marks=[pytest.mark.slow] * ("hevc" in name and name not in _FAST_HEVC)) for name in CLIPS]
DAMAGED: dict[str, Callable[[], bytes]] = {
    "in the middle": lambda: damaged(CLIPS["h264, one group"](), 21, keep_bytes=8),
    "at the start": lambda: damaged(CLIPS["h264, one group"](), 0),
    "in two of many groups": lambda: damaged(clip(options=(("g", "5"),))(), 6, 22),
    "without times": lambda: damaged(CLIPS["h264, no times"](), 15),
    "vp9": lambda: damaged(CLIPS["vp9"](), 12, 13),
    "hevc": lambda: damaged(CLIPS["hevc"](), 15),
    "cut short": truncated_clip,
}


def planned(model: Model, data: bytes, form: PixelForm = PixelForm.UINT8, **fields: object) -> tuple[Media, PixelPlan]:
    medium = Media("clip", Modality.VIDEO, data, **fields)  # type: ignore[arg-type]
    request = PreparationRequest(ChatPrompt((Message("user", (MediaPart("clip"),)),)), (medium,), pixel_form=form)
    plan = pipeline.plan(model, request, Limits()).pixels
    assert plan is not None
    return medium, plan


def made(
    model: Model, medium: Media, plan: PixelPlan, thread_count: int
) -> tuple[bytes, int, tuple[Substitution, ...] | tuple[type, str, str], int | None]:
    """The rows up to the last announced one, how many these are, and the substitutions and decoded frames, or the error."""
    out, stop, before = pipeline.allocate_pixels(plan), 0, threading.active_count()
    out.view(np.uint8)[:] = 0

    def announce(first_row: int, row_count: int) -> None:
        nonlocal stop
        assert first_row == stop
        stop += row_count

    try:
        report = pipeline.write_pixels(model, (medium,), plan, out, announce, thread_count=thread_count)
    except PreprocessorError as error:
        return b"", 0, (type(error), error.reason, error.message), None
    finally:
        assert threading.active_count() == before
    return out.tobytes(), stop, report.substitutions, report.decoded_frame_count


@pytest.mark.parametrize("name", _NAMES)
def test_threads_make_the_rows_of_one(model: Model, name: str) -> None:
    medium, plan = planned(model, CLIPS[name](), sampling=Sampling(every_frame=True))
    one = made(model, medium, plan, 1)
    assert one[1] == plan.row_count
    assert made(model, medium, plan, 3) == one


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("on_damage", OnDamage)
def test_threads_make_the_same_of_damage(model: Model, name: str, on_damage: OnDamage) -> None:
    fields: dict[str, Any] = {"sampling": Sampling(every_frame=True), "on_damage": on_damage}
    try:
        medium, plan = planned(model, DAMAGED[name](), **fields)
    except PreprocessorError as error:
        assert error.reason in ("TRUNCATED_MEDIA", "CORRUPT_MEDIA")
        return
    one = made(model, medium, plan, 1)
    source = plan.items[0].source
    assert one[2] or (isinstance(source, ClipInfo) and source.is_truncated), "it is damaged"
    assert made(model, medium, plan, 3) == one


@pytest.mark.parametrize("form", [form for form in PixelForm if form in PIXEL_DTYPES])
@pytest.mark.parametrize("indices", [(0, 0, 0, 1, 1, 1, 2, 9, 9, 9, 9, 39), (3, 4, 5)], ids=str)
def test_repeated_frames_odd_counts_and_floats_are_the_same(
    model: Model, form: PixelForm, indices: tuple[int, ...]
) -> None:
    medium, plan = planned(model, CLIPS["turned"](), form, sampling=Sampling(indices=indices))
    assert made(model, medium, plan, 3) == made(model, medium, plan, 1)


def test_work_that_is_stopped_leaves_no_thread_and_writes_no_more(model: Model) -> None:
    medium, plan = planned(model, CLIPS["h264, one group"](), sampling=Sampling(every_frame=True))
    out, calls, before = pipeline.allocate_pixels(plan), 0, threading.active_count()

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 25:
            raise Cancelled("the caller went away")

    with pytest.raises(Cancelled):
        pipeline.write_pixels(model, (medium,), plan, out, check=check, thread_count=3)
    assert threading.active_count() == before
    assert calls == 26


def test_an_error_of_any_thread_ends_the_work(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    medium, plan = planned(model, CLIPS["h264, one group"](), sampling=Sampling(every_frame=True))
    write, before = write_item.ItemWriter.write, threading.active_count()
    announced: list[int] = []

    def fail_at_20(self: write_item.ItemWriter, number: int, *rest: object) -> int | None:
        if number == 20:
            raise MemoryError("no memory for the frame")
        return write(self, number, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(write_item.ItemWriter, "write", fail_at_20)
    with pytest.raises(MemoryError, match="no memory for the frame"):
        pipeline.write_pixels(
            model,
            (medium,),
            plan,
            pipeline.allocate_pixels(plan),
            lambda first_row, row_count: announced.append(first_row),
            thread_count=3,
        )
    assert len(announced) <= 10
    assert threading.active_count() == before


def test_without_more_threads_one_does_the_work(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    medium, plan = planned(model, CLIPS["vp9"](), sampling=Sampling(every_frame=True))
    one = made(model, medium, plan, 1)

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert made(model, medium, plan, 3) == one


def test_the_cpu_of_all_threads_counts(model: Model) -> None:
    data = moving_shapes_clip(seconds=4, width=374, height=374)
    request = PreparationRequest(
        ChatPrompt((Message("user", (MediaPart("clip"),)),)),
        (Media("clip", Modality.VIDEO, data, sampling=Sampling(every_frame=True)),),
    )
    plan = pipeline.plan(model, request, Limits(max_file_cpu_seconds=0.02)).pixels
    assert plan is not None
    with pytest.raises(LimitExceeded) as raised:
        pipeline.write_pixels(model, request.media, plan, pipeline.allocate_pixels(plan), thread_count=3)
    assert raised.value.reason == "FILE_CPU_SECONDS_EXCEEDED"
