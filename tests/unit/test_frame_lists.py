"""Frames that the caller has chosen: what is refused, what a damaged one becomes, and where the work is cut."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from preprocessor.config import Limits
from preprocessor.errors import PreprocessorError
from preprocessor.models.family import Model
from preprocessor.pipeline import allocate_pixels, plan, prepare, write_pixels
from preprocessor.pipeline.cost import estimate
from preprocessor.pipeline.division import cut
from preprocessor.service.reading import check_counts, read_spec
from preprocessor.types.plan import Substitution
from preprocessor.types.request import FrameEncoding, FrameList, Media, Modality, OnDamage, Sampling
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.frame_lists import asked, at_times, image_files, listed, raw, sized
from tests.media import photo

LIMITS = Limits()
FOUR = image_files(4)
RGB24 = FrameEncoding.RGB24


def refusal(model: Model, medium: Media, limits: Limits = LIMITS) -> PreprocessorError:
    with pytest.raises(PreprocessorError) as caught:
        plan(model, asked(medium), limits)
    assert caught.value.metadata.get("media_key") == (None if caught.value.reason == "PIXELS_TOO_LARGE" else medium.key)
    return caught.value


def refused(model: Model, medium: Media, limits: Limits = LIMITS) -> tuple[str, str]:
    error = refusal(model, medium, limits)
    return error.reason, error.field


@pytest.mark.parametrize(
    ("frames", "field"),
    [
        (FrameList((), fps=4.0), ".sizes_bytes"),
        (sized(FOUR, FrameList(())), ""),
        (sized(FOUR, FrameList((), fps=4.0, times_seconds=(0.0, 1.0, 2.0, 3.0))), ""),
        (sized(FOUR, FrameList((), fps=0.0)), ".fps"),
        (sized(FOUR, FrameList((), fps=float("nan"))), ".fps"),
        (sized(FOUR, FrameList((), fps=float("inf"))), ".fps"),
        (sized(FOUR, at_times(0, 1, 2)), ".times_seconds"),
        (sized(FOUR, at_times(0, 1, 2, 3, 4)), ".times_seconds"),
        (sized(FOUR, at_times(0, 1, 1, 2)), ".times_seconds"),
        (sized(FOUR, at_times(0, 2, 1, 3)), ".times_seconds"),
        (sized(FOUR, at_times(-1, 0, 1, 2)), ".times_seconds"),
        (sized(FOUR, at_times(0, 1, 2, float("inf"))), ".times_seconds"),
        (sized(FOUR, at_times(0, 1, 2, 3, duration_seconds=3)), ".duration_seconds"),
        (sized(FOUR, at_times(0, 1, 2, 3, duration_seconds=float("nan"))), ".duration_seconds"),
        (sized(FOUR, FrameList((), fps=4.0, duration_seconds=1.0)), ".duration_seconds"),
        (sized(FOUR, FrameList((), fps=4.0, width_px=90)), ".width_px"),
        (sized(FOUR, FrameList((), fps=4.0, height_px=60)), ".height_px"),
        (FrameList((5, -5), fps=4.0), ".sizes_bytes"),
        (FrameList((12, 12), fps=4.0, encoding=RGB24, height_px=2), ".width_px"),
        (FrameList((12, 12), fps=4.0, encoding=RGB24, width_px=2, height_px=-2), ".height_px"),
        (FrameList((12, 11), fps=4.0, encoding=RGB24, width_px=2, height_px=2), ".sizes_bytes"),
    ],
)
def test_a_list_that_contradicts_itself_is_refused(model: Model, frames: FrameList, field: str) -> None:
    medium = Media("v", Modality.VIDEO, b"".join(FOUR), frames=frames)
    assert refused(model, medium) == ("INVALID_FRAMES", f"media[].frames{field}")


def test_only_a_video_takes_frames(model: Model) -> None:
    medium = dataclasses.replace(listed(FOUR), modality=Modality.IMAGE)
    assert refused(model, medium) == ("INVALID_FRAMES", "media[].frames")


def test_frames_are_not_sampled_again(model: Model) -> None:
    assert refused(model, listed(FOUR, sampling=Sampling(fps=1)))[0] == "SAMPLING_CONFLICT"
    assert refused(model, listed(FOUR, background="#ffffff"))[0] == "INVALID_BACKGROUND"


@pytest.mark.parametrize("extra", [b"\0", b""])
def test_sizes_are_those_of_the_file(model: Model, extra: bytes) -> None:
    medium = listed(FOUR)
    medium = dataclasses.replace(medium, data=medium.content + extra if extra else medium.content[:-1])
    assert refused(model, medium) == ("SIZE_MISMATCH", "media[].frames.sizes_bytes")


@pytest.mark.parametrize("on_damage", OnDamage)
def test_frames_of_two_sizes_are_refused(model: Model, on_damage: OnDamage) -> None:
    error = refusal(model, listed([*FOUR, photo(60, 90)], on_damage=on_damage))
    assert error.reason == "RESOLUTION_CHANGE"
    assert error.message.startswith("v, frame 4 is 60x90, and frame 0 90x60;")


def test_upright_sizes_are_compared(model: Model) -> None:
    turned = photo(60, 90, orientation=6)
    item = plan(model, asked(listed([*FOUR, turned])), LIMITS).items[0]
    assert (item.picture.width_px, item.picture.height_px) == (90, 60)


def test_only_three_formats_are_frames(model: Model) -> None:
    error = refusal(model, listed([photo(90, 60, "GIF", mode="P")], on_damage=OnDamage.REPEAT))
    assert error.reason == "UNSUPPORTED_FORMAT"


@pytest.mark.parametrize("on_damage", OnDamage)
def test_the_formats_of_frames_are_named_where_none_is_one(model: Model, on_damage: OnDamage) -> None:
    error = refusal(model, listed([b"garbage" * 9], on_damage=on_damage))
    assert error.message == "v, frame 0: not an image that can be read; frames are JPEG, PNG or WebP, or RGB24"
    assert (error.reason, error.metadata["media_key"]) == ("NOT_MEDIA", "v")


@pytest.mark.parametrize(
    ("limits", "medium", "reason"),
    [
        (Limits(max_clip_frames=3), listed(FOUR), "TOO_MANY_FRAMES"),
        (Limits(max_clip_seconds=1), listed(FOUR, frames=FrameList((), fps=3.9)), "VIDEO_TOO_LONG"),
        (Limits(max_clip_seconds=9), listed(FOUR, frames=at_times(6, 7, 8, 9)), "VIDEO_TOO_LONG"),
        (Limits(max_clip_seconds=9), listed(FOUR, frames=at_times(1, 2, 3, 4, duration_seconds=10)), "VIDEO_TOO_LONG"),
        (Limits(max_frame_pixels=5399), listed(FOUR), "FRAME_TOO_LARGE"),
        (Limits(max_frame_pixels=5399), raw(2), "FRAME_TOO_LARGE"),
        (Limits(max_side_px=89), listed(FOUR), "SIDE_TOO_LONG"),
        (Limits(max_side_px=89), raw(2), "SIDE_TOO_LONG"),
        (Limits(max_image_bytes=max(map(len, FOUR)) - 1), listed(FOUR), "MEDIA_TOO_LARGE"),
        (Limits(max_media_bytes=sum(map(len, FOUR)) - 1), listed(FOUR), "MEDIA_TOO_LARGE"),
        (Limits(max_pixel_bytes=1000), listed(FOUR), "PIXELS_TOO_LARGE"),
    ],
)
def test_a_videos_limits_hold(model: Model, limits: Limits, medium: Media, reason: str) -> None:
    assert refusal(model, medium, limits).reason == reason


@pytest.mark.parametrize(
    "frames",
    [
        FrameList((), fps=1e308),
        at_times(0, 5e-324, 1e-323, 1.5e-323),
        at_times(0, 1e-320, 1e-319, 2e-319, duration_seconds=1e-318),
        at_times(1, 2, 3, 60_000),
    ],
)
def test_extreme_times_are_times(model: Model, frames: FrameList) -> None:
    item = plan(model, asked(listed(FOUR, frames=frames)), LIMITS).items[0]
    assert item.frames is not None and len(item.frames.prompt_times_seconds) == 4


@pytest.mark.parametrize("frames", [FrameList((), fps=2.0), at_times(7.5)], ids=["rate", "time"])
def test_one_frame_is_a_video(model: Model, frames: FrameList) -> None:
    """Padded, as a clip of one frame."""
    done = prepare(model, asked(listed(FOUR[:1], frames=frames)))
    (item,) = done.plan.items
    assert (item.frame_count, item.padded_frame_count) == (1, 1)
    assert f"<{frames.times_seconds[0] if frames.times_seconds else 0:.1f} seconds>" in model.tokenizer.decode(
        done.tensors["input_ids"].tolist()
    )


def test_a_rate_near_zero_is_a_long_video(model: Model) -> None:
    assert refusal(model, listed(FOUR, frames=FrameList((), fps=5e-324))).reason == "VIDEO_TOO_LONG"


@pytest.mark.parametrize("medium", [listed(FOUR), raw(3)], ids=["images", "raw"])
def test_the_decoder_of_video_files_makes_no_difference(model: Model, medium: Media) -> None:
    ours, theirs = (prepare(model, asked(medium, video_decoder=name)) for name in ("pyav", "opencv"))
    for name, tensor in ours.tensors.items():
        assert np.array_equal(tensor, theirs.tensors[name]), name


def test_what_is_allowed_is_taken_to_the_last_frame_and_second(model: Model) -> None:
    limits = Limits(max_clip_frames=4, max_clip_seconds=1, max_frame_pixels=5400, max_side_px=90)
    item = plan(model, asked(listed(FOUR)), limits).items[0]
    assert item.frames is not None
    assert item.frames.times_seconds.tolist() == item.frames.prompt_times_seconds.tolist() == [0, 0.25, 0.5, 0.75]


# -- damage ------------------------------------------------------------------------------------------------------------


def broken(*places: int, how: str = "pixels", count: int = 5) -> list[bytes]:
    """PNG files of which some have sound headers and no pixels, or nothing sound at all."""
    pictures = image_files(count, image_format="PNG")
    for place in places:
        pictures[place] = {"pixels": pictures[place][:60], "header": b"\x89PNG\r\n\x1a\n" + bytes(40), "all": b""}[how]
    return pictures


def test_a_frame_that_cannot_be_decoded_fails_the_call_and_its_time_is_named(model: Model) -> None:
    with pytest.raises(PreprocessorError, match=r"v: the frame at 0\.500 s cannot be decoded") as caught:
        prepare(model, asked(listed(broken(2, 3))))
    assert caught.value.reason == "UNDECODABLE_FRAME"


@pytest.mark.parametrize(("how", "reason"), [("header", "NOT_MEDIA"), ("all", "EMPTY_MEDIA")])
def test_a_damaged_header_is_found_before_anything_is_decoded(model: Model, how: str, reason: str) -> None:
    error = refusal(model, listed(broken(2, how=how)))
    assert (error.reason, error.message[:11]) == (reason, "v, frame 2:")


@pytest.mark.parametrize("how", ["pixels", "header", "all"])
def test_the_last_good_frame_stands_in_its_place_and_both_are_reported(model: Model, how: str) -> None:
    pictures = broken(0, 2, 3, how=how)
    done = prepare(model, asked(listed(pictures, on_damage=OnDamage.REPEAT)))
    assert done.substitutions == (Substitution(0, 0, 1), Substitution(0, 2, 1), Substitution(0, 3, 1))
    medium = listed(pictures, on_damage=OnDamage.REPEAT)
    again = prepare(model, asked(medium, dataclasses.replace(medium, key="again")))
    assert again.substitutions == tuple(
        dataclasses.replace(one, item_index=index) for index in (0, 1) for one in done.substitutions
    )
    repaired = prepare(model, asked(listed([pictures[place] for place in (1, 1, 1, 1, 4)])))
    assert done.tensors["input_ids"].tobytes() == repaired.tensors["input_ids"].tobytes()
    assert done.tensors["pixel_patches"].tobytes() == repaired.tensors["pixel_patches"].tobytes()


def test_nothing_stands_in_the_place_of_all_frames(model: Model) -> None:
    with pytest.raises(PreprocessorError) as caught:
        prepare(model, asked(listed(broken(0, 1, count=2), on_damage=OnDamage.REPEAT)))
    assert caught.value.reason == "UNDECODABLE_FRAME"
    assert refusal(model, listed(broken(0, 1, how="all", count=2), on_damage=OnDamage.REPEAT)).reason == "EMPTY_MEDIA"


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("medium", [listed(image_files(9)), raw(9)], ids=["images", "raw"])
def test_parts_make_what_the_whole_makes(model: Model, medium: Media) -> None:
    request = asked(medium)
    planned = plan(model, request, LIMITS).pixels
    assert planned is not None
    whole, in_parts = allocate_pixels(planned), allocate_pixels(planned)
    report = write_pixels(model, request.media, planned, whole)
    assert report.decoded_frame_count == 9
    parts = cut(planned, request.media, 3)
    assert len(parts) == 3
    for rows in parts:
        write_pixels(model, request.media, planned, in_parts, rows=rows)
    assert np.array_equal(whole, in_parts)
    assert len(cut(planned, [dataclasses.replace(medium, on_damage=OnDamage.REPEAT)], 3)) == 1


def test_a_frame_more_costs_time_and_no_memory(model: Model) -> None:
    def load(medium: Media) -> tuple[float, int]:
        work = estimate(plan(model, asked(medium), LIMITS).pixels, [medium])
        return work.cpu_seconds, work.working_bytes - len(medium.data)

    few, many = load(raw(4, 320, 320)), load(raw(40, 320, 320))
    assert many[0] == pytest.approx(10 * few[0])
    assert many[1] == few[1]
    assert load(listed(image_files(4, 320, 320)))[0] > few[0]


# -- messages ----------------------------------------------------------------------------------------------------------


def spec_of(**medium: Any) -> pb.PrepareSpec:
    return pb.PrepareSpec(text="<|video_pad|>", media=[pb.Media(key="v", modality=pb.MODALITY_VIDEO, **medium)])


def test_pictures_in_the_spec_are_one_file() -> None:
    inline = pb.InlineFrames(pictures=[b"one", b"three"])
    request, sources = read_spec(spec_of(frames=pb.FrameList(fps=2), inline_frames=inline))
    assert request.media[0].data == b"onethree"
    assert request.media[0].frames == FrameList((3, 5), fps=2)
    assert sources.sizes == {"v": 8}


def test_the_sizes_of_frames_are_the_size_of_the_file() -> None:
    frames = pb.FrameList(sizes_bytes=[3, 5], times_seconds=pb.FrameTimes(values=[1, 2]), duration_seconds=9)
    request, sources = read_spec(spec_of(frames=frames, chunked={}))
    assert request.media[0].frames == FrameList((3, 5), times_seconds=(1, 2), duration_seconds=9)
    assert sources.sizes == {"v": 8}


@pytest.mark.parametrize(
    ("medium", "reason"),
    [
        ({"frames": pb.FrameList(sizes_bytes=[3, 5], fps=1), "chunked": {}, "size_bytes": 9}, "SIZE_MISMATCH"),
        ({"inline_frames": pb.InlineFrames(pictures=[b"x"])}, "INVALID_FRAMES"),
        (
            {"frames": pb.FrameList(sizes_bytes=[1], fps=1), "inline_frames": pb.InlineFrames(pictures=[b"x"])},
            "INVALID_FRAMES",
        ),
        (
            {"frames": pb.FrameList(fps=1), "inline_frames": pb.InlineFrames(pictures=[bytes(1 << 20)] * 5)},
            "INLINE_TOO_LARGE",
        ),
        ({"frames": pb.FrameList(fps=1, encoding=7), "chunked": {}}, "INVALID_ENUM"),  # type: ignore[arg-type]
    ],
)
def test_messages_that_contradict_themselves_are_refused(medium: dict[str, Any], reason: str) -> None:
    with pytest.raises(PreprocessorError) as caught:
        read_spec(spec_of(**medium))
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "medium",
    [
        {"frames": pb.FrameList(sizes_bytes=[1] * 6)},
        {"frames": pb.FrameList(times_seconds=pb.FrameTimes(values=[1] * 6))},
        {"inline_frames": pb.InlineFrames(pictures=[b""] * 6)},
    ],
)
def test_lists_are_counted_before_they_are_converted_over_all_media(medium: dict[str, Any]) -> None:
    check_counts(spec_of(**medium), Limits(max_clip_frames=6), 100)
    twice = spec_of(**medium)
    twice.media.add().CopyFrom(twice.media[0])
    with pytest.raises(PreprocessorError) as caught:
        check_counts(twice, Limits(max_clip_frames=11), 100)
    assert caught.value.reason == "TOO_MANY_FRAMES"
