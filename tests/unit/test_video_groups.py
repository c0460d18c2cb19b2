"""What no chosen frame needs is not decoded, shown by damaging it: only what is decoded can fail."""

from __future__ import annotations

import numpy as np
import pytest

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia
from preprocessor.media.frames import Choice
from preprocessor.media.video import decode_frames, probe_video
from tests.media import damaged, decoded_frames, moving_shapes_clip

LIMITS = Limits()
SMALL = {"seconds": 2, "rate": 30, "width": 96, "height": 64, "grain": 10}
OPEN = "keyint=10:min-keyint=10:open-gop=1:bframes=3:b-adapt=0:scenecut=0"
SKIPPING = {
    "h264": {"options": (("g", "10"),)},
    "h264 without times": {"options": (("g", "10"),), "container": "avi"},
    "hevc, open groups": {"codec": "libx265", "options": (("x265-params", f"log-level=none:{OPEN}"),)},
    "vp9": {"codec": "libvpx-vp9", "container": "webm", "options": (("g", "10"),)},
    "av1": {"codec": "libsvtav1", "options": (("preset", "12"), ("g", "10"), ("svtav1-params", "lp=1"))},
    "mpeg4": {"codec": "mpeg4", "options": (("g", "10"), ("bf", "2"))},
    "mjpeg": {"codec": "mjpeg", "container": "mov", "pixel_format": "yuvj420p"},
}


def clip_of(settings: object) -> bytes:
    return moving_shapes_clip(**{**SMALL, **settings})  # type: ignore[dict-item]


@pytest.mark.parametrize("name", SKIPPING)
def test_groups_without_a_chosen_frame_are_not_decoded(name: str) -> None:
    data = clip_of(SKIPPING[name])
    whole = decoded_frames(data)
    facts = probe_video(data, LIMITS)
    group = int(np.searchsorted(facts.random_access_frames, 41, "right")) - 1
    first_packet = int(facts.random_access_packets[group])
    broken = damaged(data, *range(1, first_packet))
    assert np.array_equal(next(decode_frames(broken, facts, Choice(np.array([41])))), whole[41])


@pytest.mark.parametrize("name", ["h264", "vp9", "mpeg4", "hevc, open groups"])
def test_a_group_is_decoded_no_further_than_its_last_chosen_frame(name: str) -> None:
    data = clip_of(SKIPPING[name])
    whole = decoded_frames(data)
    facts = probe_video(data, LIMITS)
    chosen = [int(facts.random_access_frames[1]), int(facts.random_access_frames[3])]
    broken = damaged(data, *range(int(facts.random_access_packets[1]) + 1, int(facts.random_access_packets[2])))
    found = [frame.copy() for frame in decode_frames(broken, facts, Choice(np.array(chosen)))]
    assert np.array_equal(found, [whole[index] for index in chosen])


def test_a_chosen_frame_of_an_open_group_needs_the_group_before_and_its_own_keyframe() -> None:
    data = clip_of(SKIPPING["hevc, open groups"])
    facts = probe_video(data, LIMITS)
    point, keyframe = int(facts.random_access_packets[2]), int(facts.random_access_frames[2])
    leading = keyframe - 1
    packet = int(np.flatnonzero(facts.frame_of_packet == leading)[0])
    assert packet > point
    for needed in (int(facts.random_access_packets[1]), point):
        with pytest.raises(CorruptMedia):
            list(decode_frames(damaged(data, needed), facts, Choice(np.array([leading]))))


def test_recovery_points_of_h264_that_are_no_idr_are_no_random_access_points() -> None:
    options = (("g", "10"), ("x264-params", "intra-refresh=1"))
    facts = probe_video(clip_of({"options": options, "container": "matroska"}), LIMITS)
    assert facts.random_access_packets.tolist() == [0]
