"""How long a clip lasts and at what rate: by a table of what files may say, then in files of each container."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest, PreprocessorError
from preprocessor.media.clock import StatedEnd, clock_of, places_missing
from preprocessor.media.sampling import choose_frames
from preprocessor.media.spreads import count_for_fps, spread_evenly
from preprocessor.media.video import probe_video
from preprocessor.types.request import OnDamage, Sampling, SamplingBasis
from preprocessor.types.source import FrameChoice
from tests.media import animation, truncated_clip
from tests.odd_clips import boxes, encode, held, hidden_sample, patched, remux, run_of, segment

LIMITS = Limits()
INDEX, TIME = SamplingBasis.INDEX, SamplingBasis.TIME
MS = 0.001

# -- what a file may say, in milliseconds ------------------------------------------------------------------------------

SLIDES = (0, 10_000, 20_000)
EVEN = tuple(range(0, 3000, 100))
UNEVEN = (0, 1000, 5000)
LATE = (50_000, 60_000, 70_000)
DOUBLED = (0, 0, 100, 100, 200, 200)
RECORDING = tuple(33 * index for index in range(60))
STAYS = {"states_stays": True}


@pytest.mark.parametrize(
    ("pts", "stated_rate", "last_stay", "stated", "seconds"),
    [
        # the track's own end
        (SLIDES, 0.05, 0, {"track_seconds": 60.0}, 60),
        (SLIDES, 0.05, 40_000, {"track_seconds": 25.0, **STAYS}, 25),  # an edit list ends it early
        (LATE, 10, 0, {"track_seconds": 110.0}, 60),
        (RECORDING, 30, 0, {"track_seconds": 60.0}, 60),
        (EVEN, 10, 0, {"track_seconds": 3.0, "file_seconds": 5.0, "is_alone": False}, 3),
        ((0,), 10, 0, {"track_seconds": 60.0}, 60),
        (EVEN, 10, 0, {"track_seconds": 2.901}, 2.901),
        # an end at or before the last frame is none
        (EVEN, 10, 0, {"track_seconds": 2.9}, 3),
        (SLIDES, 10, 5000, {"track_seconds": 3.0, **STAYS}, 25),
        # the last frame's own duration
        (SLIDES, 10, 40_000, STAYS, 60),
        (SLIDES, 10, 40_000, {}, 30),  # made up by FFmpeg
        (SLIDES, 10, 40_000, {"file_seconds": 70.0, "is_alone": False, **STAYS}, 60),
        (DOUBLED, 10, 100, STAYS, 0.3),
        # the whole file's end
        (SLIDES, 10, 0, {"file_seconds": 60.0}, 60),
        (SLIDES, 10, 100, {"file_seconds": 60.0, **STAYS}, 60),  # the track's default duration is not this frame's
        (EVEN, 10, 0, {"file_seconds": 5.0, "is_alone": False}, 3),  # sound goes on
        (UNEVEN, 10, 0, {"file_seconds": 9.0, "is_alone": False}, 9),
        # nothing
        (SLIDES, 10, 0, {}, 30),
        (UNEVEN, 10, 0, {}, 7.5),
        ((0,), 4, 0, {}, 0.25),
        ((7, 7), 4, 0, {}, 0.25),
    ],
    ids=str,
)
def test_a_clip_lasts_as_long_as_its_file_says(
    pts: tuple[int, ...], stated_rate: float, last_stay: int, stated: dict[str, object], seconds: float
) -> None:
    clock = clock_of(np.array(pts), MS, stated_rate, last_stay, StatedEnd(**stated))  # type: ignore[arg-type]
    assert clock.duration_seconds == pytest.approx(seconds)
    assert clock.rate * clock.duration_seconds == pytest.approx(len(pts))


@pytest.mark.parametrize("rate", [24_000 / 1001, 24, 25, 30_000 / 1001, 30, 50, 60_000 / 1001, 60, 240])
def test_a_stated_rate_goes_before_one_reckoned_from_rounded_times(rate: float) -> None:
    pts = np.array([round(index * 1000 / rate) for index in range(300)])
    clock = clock_of(pts, MS, rate, round(1000 / rate), StatedEnd(states_stays=True))
    assert (clock.rate, clock.duration_seconds) == (rate, 300 / rate)


@pytest.mark.parametrize("stated_rate", [10, 25, 30.5])
def test_a_stated_rate_that_is_not_the_clips_does_not(stated_rate: float) -> None:
    pts = np.array([round(index * 1000 / 30) for index in range(300)])
    assert clock_of(pts, MS, stated_rate).rate == pytest.approx(30, rel=1e-4)


@pytest.mark.parametrize(
    ("times", "missing"),
    [
        ((0,), 0),
        ((0, 3), 0),
        ((0, 1, 2, 3), 0),
        ((0, 1.4, 2, 3), 0),
        ((0, 1.6, 2, 3), None),
        ((0, 2, 8, 9), None),
        ((0, 2, 3, 4, 5), None),  # of so few it is no gap
        ((0, 0), None),
        ((0, 0, 1, 1, 2, 2), None),
        (tuple(time for time in range(50) if time != 1), 1),
        (tuple(time for time in range(50) if time != 20), 1),
        (tuple(time for time in range(50) if time != 48), 1),
        (tuple(time for time in range(50) if time not in (20, 21)), None),
        (tuple(time for time in range(50) if time not in (1, 47)), None),
        (tuple(time * (1 + time / 200) for time in range(50)), None),
    ],
    ids=str,
)
def test_a_constant_rate_has_each_frame_in_its_place_and_at_most_one_of_many_missing(
    times: tuple[float, ...], missing: int | None
) -> None:
    assert places_missing(np.array(times, np.float64)) == missing


# -- files -------------------------------------------------------------------------------------------------------------

VPX = "libvpx"
HOLDING = {
    "mp4": lambda: held(SLIDES, 40_000),
    "mp4 in fragments": lambda: fragmented(),
    "mov": lambda: held(SLIDES, 40_000, "mov"),
    "mkv": lambda: held(SLIDES, 40_000, "matroska"),
    "webm": lambda: held(SLIDES, 40_000, "webm", VPX),
    "flv": lambda: held(SLIDES, 40_000, "flv"),
    "avi": lambda: held(SLIDES, 40_000, "avi", "mpeg4"),
    "avi, h264": lambda: held(SLIDES, 40_000, "avi"),
    "asf": lambda: held(SLIDES, 40_000, "asf", "mpeg4"),
    "gif": lambda: animation("GIF", (10_000, 10_000, 40_000)),
    "apng": lambda: animation("PNG", (10_000, 10_000, 40_000)),
    "webp": lambda: animation("WEBP", (10_000, 10_000, 40_000)),
}


def fragmented() -> bytes:
    stays = (10_000, 10_000, 40_000)
    flags = {"movflags": "frag_every_frame+empty_moov"}
    source = encode(run_of(3), options={"bf": "0"})
    return remux(source, "mp4", times=lambda i: SLIDES[i], durations=lambda i: stays[i], mux=flags)


def choose(data: bytes, on_damage: OnDamage = OnDamage.FAIL, **asked: Any) -> FrameChoice:
    sampling = Sampling(**asked)

    def spread(total: int, rate: float) -> np.ndarray:
        count = sampling.frame_count or count_for_fps(total, rate, sampling.fps or 2, least=1, most=768)
        return spread_evenly(total, count)

    return choose_frames(probe_video(data, LIMITS, on_damage=on_damage), sampling, spread, "clip")


def refusal(data: bytes, **asked: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        choose(data, **asked)
    return refused.value


@pytest.mark.parametrize("name", HOLDING)
def test_a_held_frame_makes_the_clip_longer_and_its_rate_lower(name: str) -> None:
    clip = probe_video(HOLDING[name](), LIMITS)
    assert (clip.duration_seconds, clip.rate) == (pytest.approx(60, abs=0.01), pytest.approx(0.05, rel=1e-3))


@pytest.mark.parametrize("name", HOLDING)
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"times_seconds": (9.9, 15, 45, 59.9)}, [0, 1, 2, 2]),
        ({"every_frame": True, "start_seconds": 12, "end_seconds": 18}, [1]),
        ({"every_frame": True, "start_seconds": 35}, [2]),
        ({"every_frame": True, "start_seconds": 8, "end_seconds": 11}, [0, 1]),
        ({"frame_count": 2, "basis": TIME}, [0, 2]),
        ({"fps": 2}, [0, 1, 2]),
    ],
    ids=str,
)
def test_a_held_frame_is_found_while_it_is_on_screen(name: str, asked: dict[str, Any], expected: list[int]) -> None:
    assert choose(HOLDING[name](), **asked).indices.tolist() == expected


@pytest.mark.parametrize("name", HOLDING)
def test_beyond_the_true_end_nothing_is_found_and_the_end_is_named(name: str) -> None:
    data = HOLDING[name]()
    by_time, by_window = refusal(data, times_seconds=(61,)), refusal(data, start_seconds=60.5)
    assert (by_time.reason, by_window.reason) == ("FRAME_OUT_OF_RANGE", "NO_FRAMES_IN_RANGE")
    assert ("ends at 60.000 s" in by_time.message, "ends at 60.000 s" in by_window.message) == (True, True)


def test_a_transport_stream_says_nothing_and_holds_its_last_frame_for_the_mean_interval() -> None:
    clip = probe_video(held(SLIDES, 40_000, "mpegts"), LIMITS)
    assert (clip.duration_seconds, clip.rate) == (pytest.approx(30), pytest.approx(0.1))


@pytest.mark.parametrize("container", ["mp4", "matroska", "flv"])
def test_a_still_lasts_as_long_as_it_is_shown(container: str) -> None:
    clip = probe_video(held((0,), 60_000, container), LIMITS)
    assert (clip.duration_seconds, clip.rate) == (pytest.approx(60, abs=0.01), pytest.approx(1 / 60, rel=1e-3))


@pytest.mark.parametrize("container", ["mp4", "matroska", "flv"])
def test_a_recording_in_which_nothing_moves_at_last_is_sampled_by_time(container: str) -> None:
    chosen = choose(held(RECORDING, 58_000, container), frame_count=4)
    assert (chosen.basis, chosen.indices.tolist()) == (TIME, [0, 59, 59, 59])


def test_a_time_given_twice_does_not_lengthen_the_clip() -> None:
    clip = probe_video(remux(encode(run_of(60), options={"bf": "0"}), "matroska", times=lambda i: i // 2 * 100), LIMITS)
    assert (clip.duration_seconds, clip.rate) == (pytest.approx(3), pytest.approx(20))


@pytest.mark.parametrize("container", ["mp4", "matroska", "flv", "mpegts"])
def test_sound_that_goes_on_does_not_lengthen_the_picture(container: str) -> None:
    clip = probe_video(encode(run_of(30), container=container, sound=True), LIMITS)
    assert (clip.duration_seconds, clip.rate) == (3.0, 10.0)


@pytest.mark.parametrize(
    "make",
    [
        lambda: held([100 * index for index in range(60)], 1),
        lambda: held([100 * index for index in range(10)], 1),
        lambda: held([40 * index for index in range(60)], 1, "mov"),
        lambda: hidden_sample(),
        lambda: hidden_sample(hidden=3),
        *(lambda i=i: held([100 * index for index in range(60) if index != i], 100) for i in (1, 20, 58)),
        lambda: held([100 * index for index in range(59)], 200),
        lambda: held([100 * index for index in range(60) if index != 20], 100, "avi"),
    ],
    ids=[
        *("last duration unknown", "of few frames", "mov", "first sample hidden", "three hidden"),
        *("second dropped", "one dropped", "last but one dropped", "last dropped", "one dropped, avi"),
    ],
)
def test_a_stated_average_that_is_a_frame_off_leaves_a_constant_rate_constant(make: Callable[[], bytes]) -> None:
    data = make()
    by_default, by_index = choose(data, fps=4), choose(data, fps=4, basis=INDEX)
    assert by_default.basis is INDEX
    assert by_default.prompt_times_seconds.tolist() == by_index.prompt_times_seconds.tolist()


def test_by_index_numbers_stand_for_times_at_the_stated_average() -> None:
    clip = probe_video(data := held([100 * index for index in range(60)], 1), LIMITS)
    chosen = choose(data, frame_count=5)
    assert clip.stated_rate == pytest.approx(60 / 5.901, rel=1e-4)
    assert chosen.prompt_times_seconds.tolist() == (chosen.indices / clip.stated_rate).tolist()


def test_an_edit_list_that_ends_within_the_last_frame_ends_the_clip() -> None:
    data = held(SLIDES, 40_000)
    assert int.from_bytes(data[(at := boxes(data, b"elst")[0] + 8) : at + 4], "big") == 60_000
    assert probe_video(patched(data, (at, (35_000).to_bytes(4, "big"))), LIMITS).duration_seconds == pytest.approx(35)


def test_a_file_that_was_cut_off_does_not_claim_the_end_it_states() -> None:
    clip = probe_video(truncated_clip(), LIMITS, on_damage=OnDamage.REPEAT)
    assert clip.is_truncated
    assert (clip.duration_seconds, clip.rate) == (pytest.approx(clip.frame_count / 30), pytest.approx(30))


def test_a_clock_that_starts_anew_leaves_the_stated_rate() -> None:
    clip = probe_video(segment(0, 40) + segment(40, 40), LIMITS)
    assert (clip.frame_count, clip.rate, clip.duration_seconds) == (80, 10.0, 8.0)


def test_the_stay_of_the_last_frame_counts_for_how_long_a_video_may_be() -> None:
    with pytest.raises(PreprocessorError) as refused:
        probe_video(held((0,), 60_000), Limits(max_clip_seconds=59))
    assert (refused.value.reason, "lasts 60 s" in refused.value.message) == ("VIDEO_TOO_LONG", True)


SPARSE = (0, 2560, 5000, 7560, 10_000, 12_560, 14_960)


@pytest.mark.parametrize("container", ["mp4", "matroska", "flv"])
@pytest.mark.parametrize("asked", [{"frame_count": 7}, {"frame_count": 8}, {"fps": 1}, {"fps": 100}], ids=str)
def test_a_sparse_clip_gives_each_frame_once_to_who_asks_for_more(container: str, asked: dict[str, Any]) -> None:
    assert choose(held(SPARSE, 2_540, container), **asked).indices.tolist() == list(range(7))
