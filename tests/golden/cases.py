"""The requests that goldens.json answers. Their media are committed: no encoder has a say in what they hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PixelForm,
    PreparationRequest,
    Sampling,
    TextPart,
    TextPrompt,
)
from tests import media
from tests.parity.small_models import SMALL_MODELS

MEDIA = Path(__file__).parent / "media"
GOLDENS = Path(__file__).parent / "goldens.json"

# What made the committed files; `make_goldens` runs a maker only where its file is missing.
MAKERS: Mapping[str, Callable[[], bytes]] = {
    "shapes-374.mp4": lambda: media.moving_shapes_clip(seconds=8),
    "tiny-48x32.mp4": lambda: media.moving_shapes_clip(seconds=1, width=48, height=32),
    "shapes-720p.mp4": lambda: media.moving_shapes_clip(seconds=0.8, width=1280, height=720),
    "ntsc-vp9.webm": lambda: media.moving_shapes_clip(
        seconds=2, rate=Fraction(30000, 1001), width=250, height=142, codec="libvpx-vp9", container="webm"
    ),
    "odd-333x207.jpg": lambda: media.photo(333, 207),
    "tall-57x611.png": lambda: media.photo(57, 611, "PNG", mode="P"),
    "alpha-200x150.webp": lambda: media.photo(200, 150, "WEBP", mode="RGBA"),
    "rotated-400x250.jpg": lambda: media.photo(400, 250, orientation=6),
}


# Model → the cases it answers. Qwen3-VL all of them; the others what their families do otherwise.
_OTHERS = (
    "video at 2 fps",
    "video by the model's own sampling",
    "an odd number of named frames",
    "video under the cap on a frame's pixels",
    "image of odd size",
    "images and a video in one chat",
    "text alone",
)


_SMALL = (
    "video at 2 fps",
    "video by the model's own sampling",
    "an odd number of frames",
    "an odd number of named frames",
    "tiny video",
    "vp9 video",
    "image of odd size",
    "tall image with a palette",
    "images and a video in one chat",
    "text alone",
)


def video_case(name: str, key: str = "video", **sampling: Any) -> Media:
    return Media(key, Modality.VIDEO, (MEDIA / name).read_bytes(), Sampling(**sampling))


def image_case(name: str, key: str = "image", **budget: Any) -> Media:
    return Media(key, Modality.IMAGE, (MEDIA / name).read_bytes(), **budget)


def ask(
    *media_list: Media, text: str = "What happens here? Answer in two sentences, naïvely: 你好 🌍."
) -> PreparationRequest:
    parts = [MediaPart(medium.key) for medium in media_list]
    return PreparationRequest(ChatPrompt((Message("user", (*parts, TextPart(text))),)), media_list)


def mixed_chat() -> PreparationRequest:
    """Two turns; media between words, in another order than their list."""
    messages = (
        Message("system", (TextPart("You compare pictures."),)),
        Message("user", (TextPart("First "), MediaPart("b"), TextPart(" then the clip "), MediaPart("v"))),
        Message("assistant", (TextPart("Seen."),)),
        Message("user", (MediaPart("a"), TextPart("and this?"))),
    )
    files = (
        image_case("odd-333x207.jpg", "a"),
        video_case("tiny-48x32.mp4", "v", frame_count=3),
        image_case("rotated-400x250.jpg", "b"),
    )
    return PreparationRequest(ChatPrompt(messages), files)


def requests() -> dict[str, PreparationRequest]:
    """Case name → request, for any model."""
    small_budget = dataclasses.replace(video_case("shapes-374.mp4", fps=1), min_pixels=4096, max_pixels=300_000)
    capped = dataclasses.replace(video_case("shapes-720p.mp4", fps=8), cap_pixels_per_frame=True, max_pixels=500_000)
    return {
        "video at 1 fps": ask(video_case("shapes-374.mp4", fps=1)),
        "video at 2 fps": ask(video_case("shapes-374.mp4", fps=2)),
        "video at 4 fps": ask(video_case("shapes-374.mp4", fps=4)),
        "video at 8 fps": ask(video_case("shapes-374.mp4", fps=8)),
        "video by the model's own sampling": ask(video_case("shapes-374.mp4")),
        "an odd number of frames": ask(video_case("shapes-374.mp4", frame_count=5)),
        "an odd number of named frames": ask(video_case("shapes-374.mp4", indices=(0, 7, 100, 151, 239))),
        "two frames": ask(video_case("shapes-374.mp4", frame_count=2)),
        "video with a small budget": ask(small_budget),
        "video under the cap on a frame's pixels": ask(capped),
        "tiny video": ask(video_case("tiny-48x32.mp4", fps=8)),
        "720p video": ask(video_case("shapes-720p.mp4", fps=5)),
        "vp9 video": ask(video_case("ntsc-vp9.webm", fps=2.5)),
        "image of odd size": ask(image_case("odd-333x207.jpg")),
        "tall image with a palette": ask(image_case("tall-57x611.png")),
        "image with alpha": ask(image_case("alpha-200x150.webp")),
        "rotated image": ask(image_case("rotated-400x250.jpg")),
        "image with a small budget": ask(image_case("rotated-400x250.jpg", min_pixels=1024, max_pixels=20_000)),
        "images and a video in one chat": mixed_chat(),
        "text alone": ask(text="Just words.\n\n  And    spaces; 3.14159 <think>tags</think>"),
    }


def cases() -> dict[str, tuple[str, PreparationRequest]]:
    """Golden's name → request, and the name of a model as `tests.parity.directories.model_named` takes it."""
    asked = requests()
    by_model = {"qwen3-vl": tuple(asked), **dict.fromkeys(("qwen2-vl", "qwen2.5-vl"), _OTHERS)}
    by_model |= dict.fromkeys(SMALL_MODELS, _SMALL) | {"qwen3.8": _OTHERS}
    return {f"{model}: {name}": (model, asked[name]) for model, names in by_model.items() for name in names}


def older_cases() -> dict[str, PreparationRequest]:
    """Case name → request for Qwen3-VL, of `make_older_goldens`: prompts whose videos have markers around them, and not."""
    start, end, pad = "<|vision_start|>", "<|vision_end|>", "<|video_pad|>"
    tiny, clip = video_case("tiny-48x32.mp4", "a", fps=8), video_case("shapes-374.mp4", "b", fps=1)
    texts = {
        "two videos side by side": (f"{start}{pad}{end}{start}{pad}{end}Which is longer?", (tiny, clip)),
        "a video without markers": (f"Look: {pad} well?", (tiny,)),
        "a video with one marker": (f"Look: {start}{pad} well?", (tiny,)),
        "a video apart from its markers": (f"{start} {pad} {end}", (tiny,)),
        "a video in two pairs of markers": (f"{start}{start}{pad}{end}{end}", (tiny,)),
    }
    asked = {name: request for name, request in requests().items() if "cap" not in name}
    return asked | {name: PreparationRequest(TextPrompt(text), media) for name, (text, media) in texts.items()}


def with_form(request: PreparationRequest, form: PixelForm) -> PreparationRequest:
    return dataclasses.replace(request, pixel_form=form)
