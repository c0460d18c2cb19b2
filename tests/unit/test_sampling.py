"""Which frames of a clip are used, when they are said to be shown, and how many a second that makes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest

from preprocessor.errors import InvalidRequest
from preprocessor.media.sampling import Spread, choose_frames
from preprocessor.media.spreads import count_for_fps, spread_evenly
from preprocessor.types.request import Sampling, SamplingBasis
from preprocessor.types.source import ClipInfo, FrameChoice

INDEX, TIME = SamplingBasis.INDEX, SamplingBasis.TIME
MILLISECOND = Fraction(1, 1000)
NTSC_RATES = [Fraction(24_000, 1001), Fraction(30_000, 1001), Fraction(60_000, 1001)]


def clip_of(times: Sequence[Fraction | float], *, rate: float) -> ClipInfo:
    """A clip whose frames are shown at `times`, in seconds, on a clock of milliseconds."""
    return clip_at([round(time * 1000) for time in times], rate=rate, time_base=MILLISECOND)


def clip_at(pts: list[int], *, rate: float, time_base: Fraction) -> ClipInfo:
    return ClipInfo("h264", 64, 64, rate, len(pts) / rate, float(time_base), np.array(pts, np.int64))


def constant(
    count: int, rate: Fraction | int, time_base: Fraction | None = None, start: Fraction | int = 0
) -> ClipInfo:
    """A clip at `rate`, each time rounded to the clock; by default one that every frame meets, as in an mp4."""
    rate = Fraction(rate)
    clock = time_base or Fraction(1, rate.numerator * 512)
    first, step = start / clock, 1 / rate / clock
    return clip_at([round(first + step * i) for i in range(count)], rate=float(rate), time_base=clock)


# Five seconds at 10 frames a second, then five at 30: 200 frames whose container says 20 a second.
CHANGING = clip_of([i / 10 for i in range(50)] + [5 + i / 30 for i in range(150)], rate=20)
# Four pictures: shown for 2, 6, 1 and 3 seconds.
SLIDESHOW = clip_of([0, 2, 8, 9], rate=1 / 3)


def evenly(sampling: Sampling) -> Spread:
    """A family's rule, with no bounds on what fps makes."""

    def spread(total: int, rate: float) -> np.ndarray:
        count = sampling.frame_count
        return spread_evenly(
            total, count_for_fps(total, rate, sampling.fps or 2, least=1, most=768) if count is None else count
        )

    return spread


def choose(clip: ClipInfo, **sampling: object) -> FrameChoice:
    asked = Sampling(**sampling)  # type: ignore[arg-type]
    return choose_frames(clip, asked, evenly(asked), "clip")


def refusal(clip: ClipInfo, **sampling: object) -> InvalidRequest:
    with pytest.raises(InvalidRequest, match="clip") as refused:
        choose(clip, **sampling)
    return refused.value


# -- what the caller names -----------------------------------------------------------------------------------------


def test_indices_are_taken_as_they_are() -> None:
    assert choose(constant(100, 25), indices=(3, 3, 70)).indices.tolist() == [3, 3, 70]


def test_every_frame_is_every_frame() -> None:
    assert choose(constant(37, 25), every_frame=True).indices.tolist() == list(range(37))


def test_a_count_above_the_clips_is_a_cap() -> None:
    assert choose(constant(10, 25), frame_count=32).indices.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0, 0), (1.999, 0), (2, 1), (7.999, 1), (8.5, 2), (9, 3), (11.9, 3)], ids=str
)
def test_at_a_time_the_frame_on_screen_is_taken(seconds: float, expected: int) -> None:
    assert choose(SLIDESHOW, times_seconds=(seconds,)).indices.tolist() == [expected]


def test_the_prompt_states_the_times_that_were_asked() -> None:
    assert choose(SLIDESHOW, times_seconds=(1, 4, 5)).prompt_times_seconds.tolist() == [1, 4, 5]


def test_a_frame_on_screen_at_two_asked_times_is_taken_twice() -> None:
    assert choose(SLIDESHOW, times_seconds=(3, 4)).indices.tolist() == [1, 1]


@pytest.mark.parametrize("time_base", [None, MILLISECOND], ids=["exact clock", "milliseconds"])
@pytest.mark.parametrize("rate", [24, 25, 30, *NTSC_RATES], ids=str)
def test_a_time_computed_from_a_frames_number_names_that_frame(
    rate: Fraction | int, time_base: Fraction | None
) -> None:
    times = tuple(i / float(rate) for i in range(300))
    assert choose(constant(300, rate, time_base), times_seconds=times).indices.tolist() == list(range(300))


@pytest.mark.parametrize(
    "sampling", [{"indices": (0, 100)}, {"times_seconds": (0.0, 4.0)}, {"times_seconds": (1e308,)}]
)
def test_a_frame_beyond_the_clip_is_refused(sampling: dict[str, object]) -> None:
    assert refusal(constant(100, 25), **sampling).reason == "FRAME_OUT_OF_RANGE"


# -- start and end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "first", "last"),
    [
        (None, None, 0, 99),
        (1, None, 25, 99),
        (None, 2, 0, 49),
        (1, 2, 25, 49),
        (0.01, None, 0, 99),  # frame 0 is still on screen
        (0.045, 0.05, 1, 1),  # none begins there
        (0.07, 0.09, 1, 2),
        (3.96, 1000, 99, 99),
        (3.999, None, 99, 99),
    ],
)
def test_frames_on_screen_between_start_and_end_are_used(
    start: float | None, end: float | None, first: int, last: int
) -> None:
    indices = choose(constant(100, 25), every_frame=True, start_seconds=start, end_seconds=end).indices
    assert indices.tolist() == list(range(first, last + 1))


@pytest.mark.parametrize("shift", [0, Fraction(7, 5)], ids=["from 0 s", "from 1.4 s"])
@pytest.mark.parametrize("time_base", [None, Fraction(1, 90_000)], ids=["exact clock", "90 kHz"])
@pytest.mark.parametrize("rate", [10, 24, 25, 30, 60])
def test_a_frame_shown_exactly_at_start_is_used_and_one_at_end_is_not(
    rate: int, time_base: Fraction | None, shift: Fraction | int
) -> None:
    clip = constant(100, rate, time_base, shift)
    windows = [choose(clip, every_frame=True, start_seconds=i / rate, end_seconds=(i + 2) / rate) for i in range(98)]
    assert [window.indices.tolist() for window in windows] == [[i, i + 1] for i in range(98)]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"fps": 5}, [25, 31, 37, 43, 49]),
        ({"frame_count": 3}, [25, 37, 49]),
    ],
)
def test_frames_are_spread_between_start_and_end(sampling: dict[str, object], expected: list[int]) -> None:
    assert choose(constant(100, 25), start_seconds=1, end_seconds=2, **sampling).indices.tolist() == expected


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (3, 7, [1]),
        (3, 8, [1]),
        (1, 2, [0]),
        (1, 2.5, [0, 1]),
        (8, 9, [2]),
        (8.5, None, [2, 3]),
        (10, None, [3]),
        (11.9, 500, [3]),
    ],
)
def test_a_window_has_what_is_on_screen_though_no_frame_begins_in_it(
    start: float, end: float | None, expected: list[int]
) -> None:
    assert choose(SLIDESHOW, every_frame=True, start_seconds=start, end_seconds=end).indices.tolist() == expected


@pytest.mark.parametrize("end", [0.5, 1.0, 1e-9])
def test_frames_at_one_time_are_all_in_a_window_that_begins_there(end: float) -> None:
    twice = clip_of([0, 0, 1, 1], rate=2)
    assert choose(twice, every_frame=True, start_seconds=0, end_seconds=end).indices.tolist() == [0, 1]


@pytest.mark.parametrize(("start", "end"), [(9.9999, 10.0), (9.9, 9.99999), (10.0, 10.00001)])
def test_a_window_shorter_than_a_tick_has_one_frame_and_a_finite_rate(start: float, end: float) -> None:
    chosen = choose(clip_of([0, 10, 20], rate=0.1), frame_count=2, start_seconds=start, end_seconds=end, basis=TIME)
    assert (len(chosen.indices), np.isfinite(chosen.sampled_fps)) == (1, True)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [({"fps": 0.2}, [3]), ({"frame_count": 1}, [3]), ({"frame_count": 2}, [3, 8]), ({"every_frame": True}, [3, 8])],
    ids=str,
)
def test_the_prompts_times_lie_within_the_window(sampling: dict[str, object], expected: list[int]) -> None:
    chosen = choose(SLIDESHOW, start_seconds=3, end_seconds=8.5, **sampling)
    assert chosen.prompt_times_seconds.tolist() == expected


@pytest.mark.parametrize(("start", "end"), [(4, None), (1e308, None), (4.0000001, None), (4, 9)])
def test_a_window_beyond_the_end_is_refused(start: float, end: float | None) -> None:
    error = refusal(constant(100, 25), start_seconds=start, end_seconds=end)
    assert (error.reason, "ends at 4.000 s" in error.message) == ("NO_FRAMES_IN_RANGE", True)


def test_the_end_that_a_refusal_names_is_not_beyond_what_is_asked() -> None:
    """Neither of them rounded up."""
    error = refusal(clip_at([0, 1], rate=2 / 3.9996, time_base=Fraction(1)), times_seconds=(3.9998,))
    assert ("3.999 s" in error.message, "3.9998 s" in error.message) == (True, True)


# -- constant and changing rates -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [10, 24, 25, 30, 60, *NTSC_RATES], ids=str)
def test_a_constant_rate_on_a_clock_of_milliseconds_goes_by_index(rate: Fraction | int) -> None:
    assert choose(constant(5_000, rate, MILLISECOND), fps=0.01).basis is INDEX


@pytest.mark.parametrize("clip", [CHANGING, SLIDESHOW], ids=["changing", "slideshow"])
def test_a_changing_rate_goes_by_time(clip: ClipInfo) -> None:
    assert choose(clip, fps=1).basis is TIME


@pytest.mark.parametrize(
    ("missing", "basis"), [((20,), INDEX), ((1,), INDEX), ((20, 21), TIME), ((5, 45), TIME)], ids=str
)
def test_one_missing_frame_leaves_a_rate_constant_and_two_do_not(
    missing: tuple[int, ...], basis: SamplingBasis
) -> None:
    assert choose(clip_of([i / 25 for i in range(50) if i not in missing], rate=25), fps=1).basis is basis


def test_by_time_frames_are_evenly_spaced_in_seconds() -> None:
    chosen = choose(CHANGING, frame_count=11)
    assert np.allclose(np.diff(chosen.times_seconds), 1, atol=0.11)


def test_by_index_on_request_frames_are_evenly_spaced_in_number() -> None:
    chosen = choose(CHANGING, frame_count=11, basis=INDEX)
    assert chosen.indices.tolist() == spread_evenly(200, 11).tolist()


def test_by_index_the_prompt_states_number_over_average_rate() -> None:
    chosen = choose(CHANGING, frame_count=5, basis=INDEX)
    assert chosen.prompt_times_seconds.tolist() == (chosen.indices / 20).tolist()


@pytest.mark.parametrize("sampling", [{"every_frame": True}, {"indices": (0, 30, 49, 50, 120, 199)}], ids=str)
def test_named_frames_of_a_changing_rate_are_said_to_be_shown_when_they_are(sampling: dict[str, object]) -> None:
    chosen = choose(CHANGING, **sampling)
    assert chosen.prompt_times_seconds.tolist() == chosen.times_seconds.tolist()


def test_by_time_a_prompt_time_lies_while_its_frame_is_on_screen() -> None:
    chosen = choose(CHANGING, fps=3)
    ends = np.append(CHANGING.times_seconds[1:], np.inf)
    shown_from, shown_until = chosen.times_seconds - 1e-6, ends[chosen.indices]
    assert ((shown_from <= chosen.prompt_times_seconds) & (chosen.prompt_times_seconds < shown_until)).all()


def test_a_slide_is_repeated_while_it_is_on_screen() -> None:
    slides = clip_of([0, 1, 2, 3, 4], rate=5 / 40)  # the last one stays for 36 s
    assert choose(slides, frame_count=4).indices.tolist() == [0, 4, 4, 4]


@pytest.mark.parametrize("sampling", [{"frame_count": 4}, {"frame_count": 9}, {"fps": 0.34}, {"fps": 30}], ids=str)
def test_asked_for_at_least_as_many_as_there_are_each_frame_comes_once_at_its_time(
    sampling: dict[str, object],
) -> None:
    chosen = choose(SLIDESHOW, **sampling)
    assert chosen.indices.tolist() == [0, 1, 2, 3]
    assert chosen.prompt_times_seconds.tolist() == [0, 2, 8, 9]
    assert chosen.sampled_fps == pytest.approx(1 / 3)


def test_a_models_own_maximum_holds_though_more_frames_are_asked_than_there_are() -> None:
    random = np.random.default_rng(3)
    many = clip_of(np.cumsum(random.choice([0.01, 0.05, 0.2], 900)).tolist(), rate=10)
    assert len(choose(many, fps=1000).indices) == 768


@pytest.mark.parametrize(
    ("end", "rate", "basis"),
    [
        (10.0, 10.0, INDEX),
        (10.0, 10.1, INDEX),  # 100 frames over 99 intervals
        (9.901, 100 / 9.901, INDEX),  # how long the last one stays is not known
        (10.0, 10.3, TIME),  # more than a frame off
        (10.0, 20.0, TIME),
        (10.1, 100 / 10.1, INDEX),  # one is missing behind the last
        (12.0, 10.0, TIME),  # the last one stays
        (12.0, 100 / 12, TIME),
    ],
)
def test_a_rate_is_constant_by_the_frames_own_times_and_a_stated_average_next_to_it(
    end: float, rate: float, basis: SamplingBasis
) -> None:
    times = np.arange(100) * 100
    clip = ClipInfo("h264", 64, 64, 100 / end, end, 0.001, times, stated_rate=rate)
    assert choose(clip, fps=2).basis is basis


def test_by_index_frames_are_counted_at_the_stated_average_as_transformers_does() -> None:
    clip = ClipInfo("h264", 64, 64, 10, 10, 0.001, np.arange(100) * 100, stated_rate=10.1)
    chosen = choose(clip, indices=(0, 50, 99))
    assert chosen.prompt_times_seconds.tolist() == [0, 50 / 10.1, 99 / 10.1]


@pytest.mark.parametrize("seconds", [0.5, 1.5, 2.5])
def test_a_clock_as_coarse_as_the_frames_moves_no_frame(seconds: float) -> None:
    coarse = clip_at([0, 1, 2, 3], rate=4 / 60, time_base=Fraction(1))  # a frame a second, and a last one that stays
    assert choose(coarse, times_seconds=(seconds,)).indices.tolist() == [int(seconds)]


@pytest.mark.parametrize("sampling", [{"fps": 2}, {"fps": 7.3}, {"frame_count": 6}, {"start_seconds": 1}], ids=str)
def test_both_bases_agree_on_a_constant_rate(sampling: dict[str, object]) -> None:
    clip = constant(100, 30)
    by_index, by_time = (choose(clip, basis=basis, **sampling) for basis in (INDEX, TIME))
    assert by_index.indices.tolist() == by_time.indices.tolist()
    assert np.allclose(by_index.prompt_times_seconds, by_time.prompt_times_seconds)
    assert by_index.sampled_fps == pytest.approx(by_time.sampled_fps, rel=1e-4)


# -- what is said of the choice ------------------------------------------------------------------------------------


def test_times_are_the_files_and_prompt_times_count_from_the_first_frame() -> None:
    chosen = choose(constant(100, 25, start=Fraction(7, 5)), indices=(0, 50))
    assert chosen.times_seconds.tolist() == pytest.approx([1.4, 3.4])
    assert chosen.prompt_times_seconds.tolist() == [0, 2]


def test_windows_and_times_count_from_the_first_frame() -> None:
    late = constant(100, 25, start=Fraction(7, 5))
    assert choose(late, times_seconds=(2,)).indices.tolist() == [50]
    assert choose(late, every_frame=True, start_seconds=2).indices[0] == 50


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"fps": 2}, 2),
        ({"frame_count": 10}, 2.5),
        ({"every_frame": True}, 25),
        ({"indices": (0, 1)}, 0.5),
        ({"every_frame": True, "start_seconds": 2}, 25),
        ({"frame_count": 5, "start_seconds": 2}, 2.5),
        ({"times_seconds": (0, 0.5, 1)}, 2),
    ],
    ids=str,
)
def test_sampled_fps_counts_the_frames_a_second_of_what_was_sampled(
    sampling: dict[str, object], expected: float
) -> None:
    assert choose(constant(100, 25), **sampling).sampled_fps == pytest.approx(expected)


@pytest.mark.parametrize("basis", SamplingBasis)
def test_a_clip_of_one_frame_gives_it(basis: SamplingBasis) -> None:
    chosen = choose(constant(1, 25), fps=2, basis=basis)
    assert (chosen.indices.tolist(), chosen.prompt_times_seconds.tolist()) == ([0], [0])


def test_whatever_is_asked_frames_ascend_within_the_clip_and_are_at_most_as_many_as_asked() -> None:
    random = np.random.default_rng(1)
    for _ in range(500):
        gaps = random.choice([1, 33, 33, 40, 2_000], int(random.integers(1, 60)))
        clip = clip_of((np.cumsum(gaps) / 1000).tolist(), rate=float(random.choice([0.5, 10, 30])))
        count = int(random.integers(1, 80))
        basis = random.choice(list(SamplingBasis))  # type: ignore[arg-type]
        indices = choose(clip, frame_count=count, basis=basis).indices
        assert 1 <= len(indices) <= min(count, clip.frame_count)
        assert (np.diff(indices) >= 0).all() and indices[0] >= 0 and indices[-1] < clip.frame_count
