"""An item's digest, by which engines keep what they made of it: another one wherever a pixel can differ.

Every field of a request, of the limits, of a model and of the service's settings is listed with what it does to the digest. A new
field fails here until it is listed too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from preprocessor import pipeline
from preprocessor.config import Limits, ServeSettings
from preprocessor.models import versions
from preprocessor.models.family import Model
from preprocessor.types.request import (
    ChatPrompt,
    FrameList,
    Media,
    MediaPart,
    Message,
    Modality,
    OnDamage,
    PixelForm,
    PreparationRequest,
    Sampling,
    SamplingBasis,
    TextPart,
)
from preprocessor.vision.spec import PixelSpec, VideoSpec
from tests.frame_lists import at_times, image_files, listed, raw, sized
from tests.media import photo
from tests.odd_clips import encode, held, numbered, run_of

CLIP = encode(run_of(40), options={"bf": "0"})
GIF = encode(run_of(4), "gif", "gif", pix_fmt="rgb8")
IMAGE = Media("item", Modality.IMAGE, photo(200, 100))
VIDEO = Media("item", Modality.VIDEO, CLIP, sampling=Sampling(fps=2))
HELD = Media("item", Modality.VIDEO, held([0, 100, 200, 2000, 2100, 2200], 100))
SAMPLED = dataclasses.replace(VIDEO, sampling=Sampling())
PICTURES = image_files(2)
LISTED = listed(PICTURES, "item")
PIXELS = raw(2, key="item")
RAW = PIXELS.frames
assert RAW is not None
# Frames large enough for the families' caps.
LARGE = Media("item", Modality.VIDEO, encode([numbered(5, 1280, 960)] * 4), sampling=Sampling(every_frame=True))

NO = "cannot change a pixel"
Case = tuple[Media, Mapping[str, Any]]
"""An item, and the one field that is given another value."""

MEDIA: Mapping[str, tuple[list[Case], list[Case]]] = {  # field → (another digest, the same digest)
    "key": ([], [(IMAGE, {"key": "another"}), (VIDEO, {"key": "another"})]),
    "modality": ([(Media("item", Modality.VIDEO, GIF), {"modality": Modality.IMAGE})], []),
    "data": ([(IMAGE, {"data": photo(200, 100, "PNG")}), (VIDEO, {"data": CLIP + bytes(1)})], []),
    "sampling": ([(VIDEO, {"sampling": Sampling(fps=5)})], [(VIDEO, {"sampling": Sampling(frame_count=8)})]),
    "min_pixels": ([(IMAGE, {"min_pixels": 200_000})], []),
    "max_pixels": ([(IMAGE, {"max_pixels": 100_000}), (VIDEO, {"max_pixels": 100_000})], []),
    "cap_pixels_per_frame": ([(dataclasses.replace(LARGE, max_pixels=10**7), {"cap_pixels_per_frame": True})], []),
    "background": ([(IMAGE, {"background": "#ffffff"})], []),
    "content_sha256": ([], [(IMAGE, {"content_sha256": hashlib.sha256(IMAGE.data).digest()})]),
    "frames": (
        [
            (LISTED, {"frames": sized(PICTURES, FrameList((), fps=5.0))}),
            (LISTED, {"frames": sized(PICTURES, at_times(0.0, 0.25))}),
            (PIXELS, {"frames": dataclasses.replace(RAW, width_px=60, height_px=90)}),
            (PIXELS, {"frames": dataclasses.replace(RAW, fps=None, times_seconds=(0.0, 0.25))}),
        ],
        [],
    ),
    "file_sha256": ([], [(IMAGE, {"file_sha256": hashlib.sha256(IMAGE.data).digest()})]),
    "uuid": ([], [(IMAGE, {"uuid": "a name"})]),
    "on_damage": ([(VIDEO, {"on_damage": OnDamage.REPEAT})], [(IMAGE, {"on_damage": OnDamage.REPEAT})]),
}
SAMPLING: Mapping[str, Case] = {  # each chooses other frames
    "fps": (VIDEO, {"fps": 5.0}),
    "frame_count": (SAMPLED, {"frame_count": 6}),
    "indices": (SAMPLED, {"indices": (1, 2)}),
    "times_seconds": (SAMPLED, {"times_seconds": (0.1, 0.2)}),
    "every_frame": (SAMPLED, {"every_frame": True}),
    "start_seconds": (VIDEO, {"start_seconds": 2.0}),
    "end_seconds": (VIDEO, {"end_seconds": 2.0}),
    "basis": (
        dataclasses.replace(HELD, sampling=Sampling(frame_count=4, basis=SamplingBasis.INDEX)),
        {"basis": SamplingBasis.TIME},
    ),
}
REQUEST: Mapping[str, tuple[list[Case], list[Case]]] = {
    "prompt": ([], [(VIDEO, {"prompt": ChatPrompt((Message("user", (TextPart("Which? "), MediaPart("item"))),))})]),
    "media": ([], []),  # MEDIA
    "pixel_form": (
        [(IMAGE, {"pixel_form": PixelForm.BF16}), (VIDEO, {"pixel_form": PixelForm.FP16})],  # rounded
        [(IMAGE, {"pixel_form": form}) for form in (PixelForm.UINT8, PixelForm.FP32, PixelForm.NONE)],
    ),
    "with_token_types": ([], [(VIDEO, {"with_token_types": True})]),
    "cache_salt": ([(IMAGE, {"cache_salt": "x"}), (VIDEO, {"cache_salt": "x"})], []),
    "processor_arguments": ([], []),  # the generic path's: tests/unit/generic/test_arguments.py
    "video_decoder": ([(VIDEO, {"video_decoder": "opencv"})], [(IMAGE, {"video_decoder": "opencv"})]),
}
PIXEL_SPEC: Mapping[str, Any] = {
    "patch_size": 32,
    "merge_size": 4,
    "temporal_patch_size": 4,
    "min_pixels": 1,
    "max_pixels": 1 << 30,
    "mean": (0.1, 0.2, 0.3),
    "std": (0.1, 0.2, 0.3),
    "rescale_factor": 1 / 256,
    "normalizes": False,
}
VIDEO_SPEC: Mapping[str, tuple[str, Media, Mapping[str, Any]]] = {  # the family that heeds it, an item, other settings
    "pixels": ("qwen3-vl", VIDEO, {}),  # PIXEL_SPEC
    "fps": ("qwen3-vl", SAMPLED, {"fps": 5.0}),
    "frame_count": ("qwen2-vl", SAMPLED, {"frame_count": 16}),
    "min_frames": ("qwen3-vl", SAMPLED, {"min_frames": 20}),
    "max_frames": ("qwen3-vl", SAMPLED, {"max_frames": 4}),
    "cap_pixels_per_frame": ("qwen3-vl", dataclasses.replace(LARGE, max_pixels=10**7), {"cap_pixels_per_frame": True}),
    "max_video_tokens": (
        "qwen3-vl",
        dataclasses.replace(LARGE, max_pixels=10**7, cap_pixels_per_frame=True),
        {"max_video_tokens": 16},
    ),
    "takes_every_frame": ("qwen3-vl", SAMPLED, {"takes_every_frame": True}),
}
MODEL = {
    "name": NO,
    "family": "its rules are code of this version, and end in the chosen frames and the grid",
    "image": "PIXEL_SPEC",
    "video": "VIDEO_SPEC",
    "tokenizer": NO,
    "chat_template": NO,
    "placeholders": NO,
    "vision_markers": NO,
    "video_markers": "in the fingerprint",
    "tokens_per_second": NO,
    "stop_token_ids": NO,
    "fingerprint": "in the digest",
    "details": "in the fingerprint",
}
REACHING_PIXELS = {
    "background": "MEDIA",
    "video_markers": "MODEL",
    "preparation": "MODEL",
    "model": "MODEL",
    "video_decoder": "REQUEST",
    "limits": "test_limits_change_no_digest",
}
NEVER_REACHING_PIXELS = {
    *(
        "address",
        "http_address",
        "worker_count",
        "front_count",
        "max_queued_count",
        "memory_budget_bytes",
        "worker_memory_bytes",
    ),
    *(
        "max_cpu_seconds",
        "max_jobs_a_worker",
        "is_inspectable",
        "is_in_process",
        "drain_seconds",
        "budget_full_seconds",
    ),
    *("cache_share", "early_decoding", "worker_reuse", "isolation", "openai_address"),
    *("log_level", "log_format", "log_payloads", "access", "wire", "engine", "fetch", "trace"),
}


def names_of(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def digest(model: Model, medium: Media, limits: Limits | None = None, **request: Any) -> bytes:
    prompt = ChatPrompt((Message("user", (MediaPart(medium.key), TextPart("?"))),))
    asked = PreparationRequest(**{"prompt": prompt, "media": (medium,), **request})
    plan = pipeline.plan(model, asked, limits or Limits())
    return plan.items[0].digest


@pytest.mark.parametrize(
    ("kind", "listed"),
    [
        (Media, MEDIA),
        (Sampling, SAMPLING),
        (PreparationRequest, REQUEST),
        (PixelSpec, PIXEL_SPEC),
        (VideoSpec, VIDEO_SPEC),
        (Model, MODEL),
        (ServeSettings, REACHING_PIXELS.keys() | NEVER_REACHING_PIXELS),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_of_every_field_it_is_said_whether_it_can_change_a_pixel(kind: Any, listed: Any) -> None:
    assert names_of(kind) == set(listed)


@pytest.mark.parametrize("name", MEDIA)
def test_a_field_of_a_medium_changes_the_digest_where_it_can_change_a_pixel(model: Model, name: str) -> None:
    others, equals = MEDIA[name]
    for medium, change in others:
        assert digest(model, dataclasses.replace(medium, **change)) != digest(model, medium)
    for medium, change in equals:
        assert digest(model, dataclasses.replace(medium, **change)) == digest(model, medium)


@pytest.mark.parametrize("name", SAMPLING)
def test_other_frames_have_another_digest(model: Model, name: str) -> None:
    medium, change = SAMPLING[name]
    sampling = dataclasses.replace(medium.sampling, **change)
    if name in ("indices", "times_seconds"):
        sampling = Sampling(**change)
    assert digest(model, dataclasses.replace(medium, sampling=sampling)) != digest(model, medium)


@pytest.mark.parametrize("name", REQUEST)
def test_a_field_of_a_request_changes_the_digest_where_it_can_change_a_pixel(model: Model, name: str) -> None:
    others, equals = REQUEST[name]
    for medium, change in others:
        assert digest(model, medium, **change) != digest(model, medium)
    for medium, change in equals:
        assert digest(model, medium, **change) == digest(model, medium)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Limits)])
def test_limits_change_no_digest(model: Model, name: str) -> None:
    """They refuse; what they let through comes out the same."""
    wider = dataclasses.replace(Limits(), **{name: getattr(Limits(), name) * 2})
    assert [digest(model, medium, wider) for medium in (IMAGE, VIDEO)] == [digest(model, m) for m in (IMAGE, VIDEO)]


@pytest.mark.parametrize("name", PIXEL_SPEC)
def test_other_pixel_settings_have_another_digest(model: Model, name: str) -> None:
    image, pixels = (
        dataclasses.replace(spec, **{name: PIXEL_SPEC[name]}) for spec in (model.image, model.video.pixels)
    )
    other = dataclasses.replace(model, image=image, video=dataclasses.replace(model.video, pixels=pixels))
    assert digest(other, IMAGE) != digest(model, IMAGE)
    assert digest(other, VIDEO) != digest(model, VIDEO)


@pytest.mark.parametrize("name", [name for name in VIDEO_SPEC if name != "pixels"])
def test_other_video_settings_have_another_digest(load: Callable[[str], Model], name: str) -> None:
    family, medium, change = VIDEO_SPEC[name]
    model = load(family)
    other = dataclasses.replace(model, video=dataclasses.replace(model.video, **change))
    assert digest(other, medium) != digest(model, medium)


def test_another_fingerprint_is_another_digest(model: Model) -> None:
    other = dataclasses.replace(model, fingerprint="another")
    assert digest(other, IMAGE) != digest(model, IMAGE)


@pytest.mark.parametrize("medium", [IMAGE, VIDEO], ids=["image", "video"])
def test_what_only_words_depend_on_is_not_in_it(model: Model, medium: Media) -> None:
    other = dataclasses.replace(model, name="another", chat_template=model.chat_template + " ", tokens_per_second=9.0)
    assert digest(other, medium) == digest(model, medium)


@pytest.mark.parametrize("medium", [IMAGE, VIDEO], ids=["image", "video"])
def test_another_release_has_other_digests(model: Model, medium: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(model, medium)
    monkeypatch.setattr(versions, "__version__", "another")
    assert digest(model, medium) != before


@pytest.mark.parametrize("medium", [IMAGE, VIDEO], ids=["image", "video"])
def test_another_architecture_has_other_digests(model: Model, medium: Media, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(model, medium)
    monkeypatch.setattr(platform, "machine", lambda: "another")
    assert digest(model, medium) != before


def test_another_ffmpeg_has_other_digests_for_videos_alone(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [digest(model, medium) for medium in (IMAGE, VIDEO)]
    monkeypatch.setattr("av.ffmpeg_version_info", "another")
    assert digest(model, IMAGE) == before[0]
    assert digest(model, VIDEO) != before[1]


def test_another_libjpeg_has_other_digests_for_images(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(model, IMAGE)
    monkeypatch.setattr("PIL.features.version", lambda name: f"another {name}")
    assert digest(model, IMAGE) != before


def test_its_parts_do_not_run_into_one_another(model: Model) -> None:
    """A policy or a form that a salt spells is no such policy."""
    salted = digest(model, VIDEO, cache_salt="bf16")
    assert len({salted, digest(model, VIDEO, pixel_form=PixelForm.BF16), digest(model, VIDEO)}) == 3
