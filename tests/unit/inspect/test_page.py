"""The page as plain data: what is shown of a prompt is what the prompt is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preprocessor.cli import saved
from preprocessor.client import PrepareResult
from preprocessor.config import Limits
from preprocessor.media.frames import Choice
from preprocessor.media.video import decode_frames, probe_video
from preprocessor.models.registry import FAMILIES, load_model
from preprocessor.prompt_page.build import Subject, build_page, frame_marks
from preprocessor.prompt_page.frames import PATCH_FAMILIES, ItemPixels, locate_pixels
from preprocessor.prompt_page.page import Page
from preprocessor.prompt_page.render import render
from preprocessor.prompt_page.tokens import token_texts
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.vision.resize import resizer
from tests.golden import oracle  # noqa: F401  # makes torchvision importable, before transformers looks for it
from tests.golden.tile_cases import MODELS
from tests.media import damaged, moving_shapes_clip
from tests.parity.directories import MODEL_NAMES
from tests.tiny_processors import MAKERS
from tests.unit.inspect.prompts import CLIP, clip_and_photo, subject, write_media


@pytest.fixture(scope="module")
def shown(folder: Path) -> Page:
    return build_page(clip_and_photo(folder), most_frames=64)


def test_frames_are_those_that_were_decoded_and_resized(shown: Page) -> None:
    clip = probe_video(CLIP, Limits())
    frames = shown.items[0].frames
    chosen = [frame for frame in frames if "padding" not in frame.marks]
    indices = np.array([frame.index for frame in chosen])
    pixels = [frame.pixels for frame in chosen]
    assert all(one is not None for one in pixels)
    height, width, _ = pixels[0].shape  # type: ignore[union-attr]
    resize = resizer((120, 160), (height, width), len(indices))
    for one, decoded in zip(pixels, decode_frames(CLIP, clip, Choice(indices)), strict=True):
        np.testing.assert_array_equal(one, resize(decoded).transpose(1, 2, 0))


def test_the_frame_that_fills_the_last_patch_is_marked(shown: Page) -> None:
    frames = shown.items[0].frames
    assert [frame.marks for frame in frames] == [()] * 5 + [("padding",)]
    np.testing.assert_array_equal(frames[5].pixels, frames[4].pixels)
    assert frames[5].index == frames[4].index


def test_an_image_is_shown_once(shown: Page) -> None:
    (frame,) = shown.items[1].frames
    assert frame.index is None and frame.pixels is not None


def test_frames_know_their_rows_and_tokens(shown: Page, folder: Path) -> None:
    tensors = clip_and_photo(folder).prepared.result.tensors
    ids, spans, grids = tensors["input_ids"], tensors["item_spans"], tensors["grid_thw"]
    runs = [frame.token_runs for frame in shown.items[0].frames]
    assert runs == [((offset, length),) for _, offset, length in spans.tolist()[:3] for _ in range(2)]
    assert len({ids[first] for ((first, _),) in runs}) == 1
    assert shown.items[1].frames[0].first_row == grids[0].prod()


def test_a_video_of_one_span_has_its_frames_tokens_one_behind_another(folder: Path) -> None:
    clip, _ = write_media(folder)
    prepared = subject("--model", "qwen2.5-vl", "--video", clip, "--num-frames", "6")
    (span,) = prepared.prepared.result.tensors["item_spans"]
    frames = build_page(prepared, most_frames=64).items[0].frames
    length = span[2] // 3
    assert [frame.token_runs for frame in frames] == [
        ((span[1] + group * length, length),) for group in (0, 0, 1, 1, 2, 2)
    ]
    clip_info = probe_video(CLIP, Limits())
    indices = np.array([frame.index for frame in frames])
    for frame, decoded in zip(frames, decode_frames(CLIP, clip_info, Choice(indices)), strict=True):
        assert frame.pixels is not None
        height, width, _ = frame.pixels.shape
        np.testing.assert_array_equal(frame.pixels, resizer((120, 160), (height, width), 6)(decoded).transpose(1, 2, 0))


def test_the_timeline_tells_sampled_passed_and_skipped_frames(shown: Page) -> None:
    timeline = shown.items[0].timeline
    assert timeline is not None and timeline.frame_count == 120
    indices = [sample.index for sample in timeline.samples]
    assert indices == [0, 30, 60, 89, 119]
    assert timeline.runs == ((0, 1), (30, 31), (60, 90), (90, 120))
    assert dict(shown.items[0].facts)["decoded"].endswith("62 of 120 frames passed by the decoder")


def test_pieces_of_the_token_map_make_the_prompt(shown: Page, folder: Path) -> None:
    prepared = clip_and_photo(folder).prepared
    ids = prepared.result.tensors["input_ids"].tolist()
    again: list[int] = []
    for token in shown.tokens:
        assert token.position == len(again) and token.token_id is not None
        again += [token.token_id] * token.count
    assert again == ids
    media = [token for token in shown.tokens if token.kind == "media"]
    assert [(token.item, token.position, token.count) for token in media] == [
        tuple(span) for span in prepared.result.tensors["item_spans"].tolist()
    ]
    times = "".join(token.text for token in shown.tokens if token.kind == "time")
    assert times == "<0.5 seconds><2.5 seconds><4.0 seconds>"
    assert "What happens?" in "".join(token.text for token in shown.tokens if token.kind == "text")
    assert dict(shown.token_counts)["media"] == str(sum(item.token_count for item in prepared.result.header.items))


def test_settings_say_who_decided_them(shown: Page) -> None:
    settings = {setting.name: (setting.value, setting.source) for setting in shown.settings}
    assert settings["clip.mp4: frames"] == ("5 in all", "request: media[0].sampling.frame_count")
    assert settings["photo.png: min_pixel_count"] == ("65,536", "the model's configuration")
    assert settings["patch"] == ("16 × 16 px", "the model's configuration")


def test_cost_stands_beside_the_estimate(shown: Page, folder: Path) -> None:
    names = [stage.name for stage in shown.stages]
    assert {"plan", "tokenize", "decode", "resize", "patch"} <= set(names)
    pixels = next(one for one in shown.estimates if one.name == "pixels")
    spent = {stage.name: stage.cpu_ms for stage in shown.stages}
    assert pixels.measured_ms == pytest.approx(sum(spent[name] for name in ("decode", "resize", "patch")))
    facts = clip_and_photo(folder).prepared.facts
    assert facts is not None and facts.pixel_seconds is not None
    assert pixels.estimated_ms == facts.pixel_seconds * 1e3


def test_a_page_of_few_frames_says_so(folder: Path) -> None:
    page = build_page(clip_and_photo(folder), most_frames=2)
    shown = [frame.pixels is not None for frame in page.items[0].frames]
    assert shown == [True, False, False, False, False, True]
    assert page.items[0].notes == ("4 of 6 frames are not shown: --most-frames shows more.",)


def test_a_frame_that_could_not_be_decoded_is_marked(folder: Path) -> None:
    clip = folder / "damaged.mp4"
    clip.write_bytes(
        damaged(moving_shapes_clip(seconds=1, width=160, height=120, options=(("g", "5"), ("bf", "0"))), 10)
    )
    page = build_page(subject("--video", clip, "--every-frame", "--tolerant"), most_frames=64)
    marks = {frame.index: frame.marks for frame in page.items[0].frames}
    assert marks[9] == () and marks[10] == ("substituted by frame 9",)
    frames = page.items[0].frames
    np.testing.assert_array_equal(frames[10].pixels, frames[9].pixels)
    timeline = page.items[0].timeline
    assert timeline is not None and timeline.samples[10].marks == ("substituted by frame 9",)


def test_a_frame_that_stands_at_two_moments_is_marked() -> None:
    item = pb.Item(key="clip", frame_indices=[0, 3, 3, 5])
    marks = [frame_marks(item, 0, position, pb.Report()) for position in range(5)]
    assert marks == [(), (), ("repeated",), (), ("padding",)]


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_frames_are_computed_back_from_normalized_pixels(folder: Path, shown: Page, dtype: str) -> None:
    clip, _ = write_media(folder)
    page = build_page(subject("--video", clip, "--num-frames", "5", "--dtype", dtype), most_frames=64)
    for one, exact in zip(page.items[0].frames, shown.items[0].frames, strict=True):
        assert one.pixels is not None and exact.pixels is not None
        assert np.abs(one.pixels.astype(int) - exact.pixels).max() <= (1 if dtype == "bf16" else 0)
    assert any("normalized" in note for note in page.items[0].notes)


def test_a_prompt_without_media_has_a_token_map() -> None:
    page = build_page(subject("--text", "Hello"), most_frames=64)
    assert page.items == () and any(token.text == "Hello" for token in page.tokens)
    assert page.notes == ()


def test_the_generic_path_shows_what_is_known_and_says_what_is_not(tmp_path: Path) -> None:
    MAKERS["llava_onevision"](tmp_path / "llava")
    _, picture = write_media(tmp_path)
    page = build_page(subject("--model", tmp_path / "llava", "--image", picture, "--text", "Hi"), most_frames=64)
    assert "pixel_values" in [row[0] for row in page.tensors]
    assert page.items[0].frames == () and page.tokens
    assert any("how this model's tensors arrange pixels is not described" in note for note in page.notes)
    assert any("Which tokens stand for which medium" in note for note in page.notes)
    assert page.estimates == ()


def test_a_saved_prompt_gives_the_same_page(shown: Page, folder: Path) -> None:
    original = clip_and_photo(folder)
    path = folder / "prompt.safetensors"
    saved.save(original.prepared, path)
    again = build_page(subject(path), most_frames=64)
    for name in (
        "title",
        "tiles",
        "tokens",
        "token_counts",
        "stages",
        "estimates",
        "tensors",
        "settings",
        "digests",
        "notes",
    ):
        assert getattr(again, name) == getattr(shown, name), name
    for one, other in zip(again.items, shown.items, strict=True):
        assert (one.facts, one.timeline) == (other.facts, other.timeline)
        for left, right in zip(one.frames, other.frames, strict=True):
            np.testing.assert_array_equal(left.pixels, right.pixels)


def located(subject: Subject, header: pb.Header) -> list[ItemPixels] | str:
    result = subject.prepared.result
    return locate_pixels(header, result.tensors, subject.prepared.model)


@pytest.mark.parametrize(
    "change",
    [
        {"grid_t": 2**31 - 1},
        {"grid_h": 0},
        {"grid_w": -4},
        {"grid_h": 20, "grid_w": 16},
    ],
    ids=str,
)
def test_a_header_that_contradicts_its_tensors_shows_no_frames(folder: Path, change: dict[str, int]) -> None:
    original = clip_and_photo(folder)
    header = pb.Header()
    header.CopyFrom(original.prepared.result.header)
    for name, value in change.items():
        setattr(header.items[0].patches, name, value)
    if header.items[0].patches == original.prepared.result.header.items[0].patches:
        pytest.fail("nothing was changed")
    assert isinstance(located(original, header), str)
    result = PrepareResult(header, original.prepared.result.report, original.prepared.result.tensors)
    page = build_page(replace(original, prepared=replace(original.prepared, result=result)), most_frames=64)
    assert page.items[0].frames == () and any("No frames are shown" in note for note in page.notes)


@pytest.mark.parametrize("setting", ["patch_size_px", "merge_size", "temporal_patch_size"])
@pytest.mark.parametrize("value", [-1, 0, 3, 2**31 - 1])
def test_settings_that_contradict_the_tensors_show_no_frames(folder: Path, setting: str, value: int) -> None:
    original = clip_and_photo(folder)
    model = pb.Model()
    assert original.prepared.model is not None
    model.CopyFrom(original.prepared.model)
    setattr(model.image, setting, value)
    found = locate_pixels(original.prepared.result.header, original.prepared.result.tensors, model)
    assert isinstance(found, str) and found.startswith("photo.png: ")


def test_without_a_model_no_frames_are_shown(folder: Path) -> None:
    original = clip_and_photo(folder)
    page = build_page(replace(original, prepared=replace(original.prepared, model=None)), most_frames=64)
    assert page.items[0].frames == () and any("settings are not known" in note for note in page.notes)


@pytest.mark.parametrize(
    "name", [*(name for name in MODEL_NAMES if name not in ("qwen3-vl", "qwen3.5", "qwen3.8")), "mistral3", "gemma4"]
)
def test_frames_of_every_family_are_the_picture(name: str, model_folder: Path, folder: Path) -> None:
    directory = next((one / name for one in (model_folder, MODELS) if (one / name).is_dir()), name)
    _, picture = write_media(folder)
    prepared = subject("--model", directory, "--image", picture, "--text", "Hi")
    result = prepared.prepared.result
    page = build_page(prepared, most_frames=64)
    (frame,) = page.items[0].frames
    rows = result.header.items[0].patches
    expected = np.asarray(
        Image.open(picture).convert("RGB").resize((rows.width_px, rows.height_px), Image.Resampling.BICUBIC)
    )
    assert frame.pixels is not None
    assert np.abs(frame.pixels[: rows.height_px, : rows.width_px].astype(int) - expected).mean() < 3
    ids = result.tensors["input_ids"]
    own = [position for first, length in frame.token_runs for position in range(first, first + length)]
    assert len(own) == result.header.items[0].token_count and len(set(ids[own].tolist())) == 1


def test_families_whose_rows_are_tiles_are_said_to_be_such(folder: Path) -> None:
    tiles = {"internvl", "gemma3"}
    assert {family.name for family in FAMILIES} - PATCH_FAMILIES == tiles
    _, picture = write_media(folder)
    for name in tiles:
        page = build_page(subject("--model", MODELS / name, "--image", picture), most_frames=64)
        assert page.items[0].frames == () and any("not described" in note for note in page.notes)


def test_numbers_of_a_later_release_or_a_stranger_are_shown_as_numbers(folder: Path) -> None:
    original = clip_and_photo(folder)
    header, spec, model = pb.Header(), pb.PrepareSpec(), pb.Model()
    header.CopyFrom(original.prepared.result.header)
    spec.CopyFrom(original.prepared.spec)
    assert original.prepared.model is not None
    model.CopyFrom(original.prepared.model)
    header.items[0].modality = header.tensors[0].data_type = 99  # type: ignore[assignment]
    spec.pixel_form = model.path = model.video_markers = 99  # type: ignore[assignment]
    tensors = {**original.prepared.result.tensors, "input_ids": np.array([-5, 2**40, 872], np.int64)}
    texts = token_texts(load_model("qwen3-vl").tokenizer, tensors["input_ids"].tolist())
    result = PrepareResult(header, original.prepared.result.report, tensors)
    prepared = replace(original.prepared, result=result, spec=spec, model=model)
    page = build_page(replace(original, prepared=prepared, texts=texts), most_frames=64)
    assert page.tensors[0][1] == "99" and page.items[0].modality == "unknown"
    assert [token.text for token in page.tokens] == ["-5", str(2**40), "user"]
    render(page)


def test_spans_outside_the_prompt_are_not_shown(folder: Path) -> None:
    original = clip_and_photo(folder)
    spans = np.array([[0, 2, 3], [0, 3, 1], [7, 6, 1], [1, 8, 2**30], [0, 9, -1]], np.int32)
    tensors = {**original.prepared.result.tensors, "item_spans": spans}
    result = replace(original.prepared.result, tensors=tensors)
    page = build_page(replace(original, prepared=replace(original.prepared, result=result)), most_frames=64)
    media = [(token.item, token.position, token.count) for token in page.tokens if token.kind == "media"]
    assert media == [(0, 2, 3)]
    assert sum(token.count for token in page.tokens) == len(tensors["input_ids"])
