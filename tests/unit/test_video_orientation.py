"""Frames are upright: the display matrix of a file is applied, to sizes and pixels."""

from __future__ import annotations

import numpy as np
import pytest

from preprocessor.config import Limits
from preprocessor.media import orientation, probe, streams
from preprocessor.media.frames import Choice
from preprocessor.media.video import decode_frames, probe_video
from tests.media import decoded_frames, moving_shapes_clip

LIMITS = Limits()
SMALL = {"seconds": 0.5, "rate": 10, "width": 96, "height": 64}


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska"])
@pytest.mark.parametrize("is_mirrored", [False, True])
@pytest.mark.parametrize("counter_clockwise", [0, 90, 180, 270])
def test_a_turned_clip_is_upright(counter_clockwise: int, is_mirrored: bool, container: str) -> None:
    data = moving_shapes_clip(**SMALL, turn_degrees=counter_clockwise, is_mirrored=is_mirrored, container=container)
    facts = probe_video(data, LIMITS)
    stored = decoded_frames(data)
    frames = [frame.copy() for frame in decode_frames(data, facts, Choice(np.arange(5)))]
    expected = [mirror(np.rot90(frame, counter_clockwise // 90), is_mirrored) for frame in stored]
    assert np.array_equal(frames, expected)
    assert (facts.height_px, facts.width_px, 3) == frames[0].shape
    clockwise = counter_clockwise if is_mirrored else -counter_clockwise % 360  # a mirror before turns the sense
    assert facts.rotation_degrees == clockwise
    assert facts.is_mirrored is is_mirrored


def mirror(frame: np.ndarray, is_mirrored: bool) -> np.ndarray:
    return frame[:, ::-1] if is_mirrored else frame


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_an_angle_that_is_no_quarter_turn_is_ignored(container: str) -> None:
    data = moving_shapes_clip(**SMALL, turn_degrees=30, container=container)
    facts = probe_video(data, LIMITS)
    assert (facts.rotation_degrees, facts.width_px, facts.height_px) == (0, 96, 64)
    assert np.array_equal(next(decode_frames(data, facts, Choice(np.array([0])))), decoded_frames(data)[0])


@pytest.mark.parametrize(("turn", "opened"), [(0, 1), (90, 2)])
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_only_a_clip_that_may_be_turned_is_opened_for_a_frame(
    container: str, turn: int, opened: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0
    open_video = streams.open_video

    def counted(*arguments: object, **more: object) -> object:
        nonlocal count
        count += 1
        return open_video(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(probe, "open_video", counted)
    probe_video(moving_shapes_clip(**SMALL, turn_degrees=turn, container=container), LIMITS)
    assert count == opened


def test_a_track_header_that_the_files_end_cuts_off_is_looked_at_no_further() -> None:
    data = moving_shapes_clip(**SMALL)
    end = data.rindex(b"tkhd") + 4
    assert orientation.may_be_turned(data[:end], "mov,mp4")  # what is not there could be anything
