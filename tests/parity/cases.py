"""Random requests from a fixed seed. Case N is the same on every machine, but for what encoders make of its pictures.

Every round of cases holds each model with each kind of media and sampling once, and a theme sets its sizes. A further model
changes the numbers of the others' cases, not what they hold.

Left out, each deliberate and tested in tests/unit: what Hugging Face refuses and we do not (a frame count above the clip's
frames; one-frame clips; Qwen2's sampling where its rounding names a frame beyond the clip, such as 14 of 17), and what it
does not know (times, start and end).
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from preprocessor.models.family import Model
from preprocessor.models.family.budget import CAPPED_BOUNDS
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PixelForm,
    PreparationRequest,
    Sampling,
    SamplingBasis,
    TextPart,
)
from tests import media
from tests.golden.huggingface import video_processor_of
from tests.golden.oracle import chosen_indices
from tests.parity.directories import MODEL_NAMES

os.environ.setdefault("SVT_LOG", "1")  # errors alone: SVT-AV1 prints its settings otherwise

SEED = 20_261_123
KINDS = (
    ("video", "default"),
    ("video", "fps"),
    ("video", "frame count"),
    ("video", "indices"),
    ("video", "every frame"),
    ("image", "none"),
    ("mixed", "any"),
    ("text", "none"),
)
ROUND = len(KINDS) * len(MODEL_NAMES)
THEMES = ("ordinary", "ordinary", "4K", "thin", "long")
CASE_COUNT = 11 * ROUND

Random = np.random.Generator

_FAST = (("preset", "ultrafast"),)
ENCODERS = (
    ("libx264", "mp4", "yuv420p", _FAST),
    ("libx264", "mov", "yuv444p", _FAST),
    ("libx264", "matroska", "yuv420p", _FAST),
    ("libx264", "mp4", "yuv420p", (("preset", "veryfast"), ("bf", "3"), ("b-pyramid", "normal"))),
    (
        "libx265",
        "mp4",
        "yuv420p",
        (("preset", "ultrafast"), ("x265-params", "log-level=none:pools=none:frame-threads=1")),
    ),
    ("libvpx", "webm", "yuv420p", (("deadline", "realtime"), ("cpu-used", "8"))),
    ("libvpx-vp9", "webm", "yuv420p", (("deadline", "realtime"), ("cpu-used", "8"))),
    ("libsvtav1", "mp4", "yuv420p", (("preset", "13"), ("svtav1-params", "lp=1"))),
    ("mpeg4", "avi", "yuv420p", ()),
    ("mjpeg", "avi", "yuvj420p", ()),
    ("libx264", "mpegts", "yuv420p", _FAST),
    ("prores_ks", "mov", "yuv422p10le", ()),
    ("gif", "gif", "bgr8", ()),
)
# Not at the rate that these files state: Hugging Face's rule only where the caller asks for it.
_BASES = {"matroska": SamplingBasis.INDEX, "gif": SamplingBasis.INDEX}
_LEAST_64_PX = {"libsvtav1", "libx265"}  # one refuses a smaller picture, the other writes beyond its memory
RATES = (8, 10, 12, 15, Fraction(24_000, 1001), 24, 25, Fraction(30_000, 1001), 30, 50, Fraction(60_000, 1001), 60)
IMAGE_KINDS = (
    *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
    *(("PNG", mode) for mode in ("RGB", "RGBA", "P", "LA", "L", "1", "I;16")),
    *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    *((image_format, "RGB") for image_format in ("BMP", "TIFF", "AVIF")),
    ("GIF", "P"),
)
WORDS = (
    *(
        "What",
        "moves,",
        "how",
        "fast?",
        "Naïve",
        "café",
        "cafe\u0301",
        "—",
        "你好，世界",
        "हिन्दी",
        "ไทย",
        "🌍🎬",
        "3.14;",
        "end",
    ),
    *("<b>ok</b>\n\n\t", "<think>hm</think>", "<tool_call>", "1234567890", "   ", "I'll", "x = {'a': [1, 2]}", "\r\n"),
)


@dataclass(frozen=True, slots=True)
class Case:
    """What case `number` is about; `make_request` makes its request."""

    number: int
    model: str
    media: str
    sampling: str
    theme: str

    def __str__(self) -> str:
        return f"case {self.number}: {self.model}, {self.media}, sampling {self.sampling}, {self.theme}"


def case(number: int) -> Case:
    turn, place = divmod(number, ROUND)
    kind, sampling = KINDS[place // len(MODEL_NAMES)]
    theme = THEMES[turn] if turn < len(THEMES) else THEMES[0]
    return Case(number, MODEL_NAMES[place % len(MODEL_NAMES)], kind, sampling, theme)


def _with(bounds: Collection[str], medium: Media) -> Media:
    """The medium without bounds on its pixels that its family refuses, as Hugging Face does not heed them."""
    without: dict[str, Any] = dict.fromkeys(CAPPED_BOUNDS.difference(bounds))
    return dataclasses.replace(medium, **without)


def make_request(asked: Case, model: Model) -> PreparationRequest:
    """The request of a case, drawn from a seed of its own; `model` only tells what Hugging Face would refuse, or not heed."""
    random = np.random.default_rng((SEED, *asked.model.encode(), asked.number // len(MODEL_NAMES)))
    unit = getattr(model.image, "token_pixels", 1)  # what the family's classes count a budget in
    budgets = {
        Modality.IMAGE: _budget(random, 200_000, unit),
        Modality.VIDEO: _budget(random, 400_000, unit),
    }
    cap = (None, True, False)[random.integers(3)]

    def image(key: str, theme: str = asked.theme) -> Media:
        medium = Media(key, Modality.IMAGE, random_photo(random, theme), Sampling(), *budgets[Modality.IMAGE])
        return _with(model.family.image_bounds, medium)

    def video(key: str, sampling: str, theme: str = asked.theme) -> Media:
        data, chosen = _clip(random, theme, sampling, model)
        medium = Media(key, Modality.VIDEO, data, chosen, *budgets[Modality.VIDEO], cap_pixels_per_frame=cap)
        return _with(model.family.video_bounds, medium)

    items: list[Media] = []
    if asked.media == "image":
        items = [image(f"i{n}") for n in range(random.integers(1, 3))]
    elif asked.media == "video":
        items = [video("v", asked.sampling)]
    elif asked.media == "mixed":
        kinds = [kind for _, kind in KINDS[:5]]
        items = [image("i"), video("v", str(random.choice(kinds)))]
        items += [image("j", THEMES[0]), video("w", str(random.choice(kinds)), THEMES[0])]
        random.shuffle(items)
    forms = [PixelForm.UINT8, PixelForm.FP32, PixelForm.BF16, PixelForm.FP16]
    return PreparationRequest(random_chat(random, items), tuple(items), pixel_form=forms[random.integers(4)])


def describe(request: PreparationRequest) -> str:
    """What a person needs to see why a case differs."""
    lines = [f"form {request.pixel_form.value if request.pixel_form else None}", str(request.prompt)]
    return "\n  ".join(lines + [f"{medium}, {len(medium.data)} bytes" for medium in request.media])


def _budget(random: Random, most: int, unit: int) -> tuple[int | None, int | None]:
    """Half the time the model's own; else multiples of `unit`."""
    if random.random() < 0.5:
        return None, None
    low, high = (-(-bound // unit) * unit for bound in sorted(random.integers(2_048, most, 2).tolist()))
    return low, high


def random_side(random: Random, least: int, most: int) -> int:
    """Even, for 4:2:0; small sizes as likely as large."""
    return 2 * round(math.exp(random.uniform(math.log(least / 2), math.log(most / 2))))


def _size(random: Random, theme: str) -> tuple[int, int]:
    match theme:
        case "4K":
            width, height = ((3840, 2160), (4096, 2160), (3840, 1600))[random.integers(3)]
        case "thin":
            width, height = random_side(random, 1000, 4096), random_side(random, 28, 48)
        case "long":
            width, height = random_side(random, 64, 320), random_side(random, 64, 320)
        case _:
            width, height = random_side(random, 28, 1500), random_side(random, 28, 1500)
    return (width, height) if random.random() < 0.6 else (height, width)


def random_photo(random: Random, theme: str) -> bytes:
    width, height = _size(random, theme)
    if theme != "4K":
        width, height = width + int(random.integers(2)), height + int(random.integers(2))
    image_format, mode = IMAGE_KINDS[random.integers(len(IMAGE_KINDS))]
    orientation = int(random.integers(1, 9)) if image_format in ("JPEG", "TIFF", "WEBP") else 0
    seed = int(random.integers(1000))
    return media.photo(width, height, image_format, mode=mode, orientation=orientation, seed=seed)


def _clip(random: Random, theme: str, sampling: str, model: Model) -> tuple[bytes, Sampling]:
    """A clip, and a wish that Hugging Face does not refuse."""
    processor = video_processor_of(model)
    for _ in range(500):
        width, height = _size(random, theme)
        encoders = ENCODERS[:4] if theme == "4K" else ENCODERS
        codec, container, pixel_format, options = encoders[random.integers(len(encoders))]
        if codec in _LEAST_64_PX:
            width, height = max(width, 64), max(height, 64)
        most = {"4K": 3, "long": 300}.get(theme, max(2, min(300, 8_000_000 // (width * height))))
        if sampling == "every frame":
            most = min(most, 60)
        count = int(random.integers(max(2, most // 2) if theme == "long" else 2, most + 1))
        rates = (1, 2, 5, *RATES) if theme == "4K" else RATES  # some families take less than two frames of a short clip
        rate = rates[random.integers(len(rates))]
        wish = dataclasses.replace(
            random_sampling(random, sampling, count), basis=_BASES.get(container, SamplingBasis.AUTO)
        )
        if not _is_taken(processor, count, float(rate), wish):
            continue  # before it is encoded
        data = media.moving_shapes_clip(
            count / rate,
            rate,
            width,
            height,
            codec,
            container,
            seed=int(random.integers(1000)),
            options=options,
            pixel_format=pixel_format,
            times_ms=_uneven_times(random, count) if container == "matroska" else (),
        )
        if _is_taken(processor, count, _stated_rate(data), wish):
            return data, wish
    raise AssertionError("Hugging Face refuses whatever is drawn")


def _is_taken(processor: Any, count: int, rate: float, wish: Sampling) -> bool:
    """Whether Hugging Face takes two frames or more of a clip."""
    try:
        return len(chosen_indices(processor, count, rate, wish)) > 1
    except (ValueError, ZeroDivisionError):
        return False


def random_sampling(random: Random, kind: str, count: int) -> Sampling:
    match kind:
        case "fps":
            return Sampling(fps=float(random.choice([0.5, 1, 2, 2.5, 4, 8, 29.97, 1000])))
        case "frame count":
            return Sampling(frame_count=int(random.integers(2, count + 1)))
        case "indices":
            drawn = random.integers(0, count, int(random.integers(2, min(count, 24) + 1)))  # some of them twice
            return Sampling(indices=tuple(sorted(drawn.tolist())))
        case "every frame":
            return Sampling(every_frame=True)
    return Sampling()


def _uneven_times(random: Random, count: int) -> tuple[int, ...]:
    """Presentation times of a variable frame rate, in milliseconds; half the time NTSC's, rounded."""
    if random.random() < 0.5:
        return tuple(round(index * 1001 / 30) for index in range(count))
    return tuple(np.cumsum(random.choice([17, 33, 33, 40, 250], count)).tolist())


def _stated_rate(data: bytes) -> float:
    with av.open(io.BytesIO(data), "r") as container:
        return float(container.streams.video[0].average_rate or 0)


def _words(random: Random, most: int) -> TextPart:
    return TextPart(" ".join(random.choice(WORDS, int(random.integers(1, most)))))


def random_chat(random: Random, items: list[Media]) -> ChatPrompt:
    """One to three turns, the media among all of them, in half the cases after a system prompt."""
    turns: list[list[MediaPart | TextPart]] = [[] for _ in range(random.integers(1, 4))]
    for item, turn in zip(items, sorted(random.integers(0, len(turns), len(items)).tolist()), strict=True):
        turns[turn] += [_words(random, 5)] if random.random() < 0.5 else []
        turns[turn].append(MediaPart(item.key))
    messages = [Message("system", (_words(random, 20),))] if random.random() < 0.5 else []
    for number, parts in enumerate(turns):
        messages += [Message("assistant", (_words(random, 12),))] if number else []
        messages.append(Message("user", (*parts, _words(random, 20))))
    return ChatPrompt(tuple(messages), add_generation_prompt=bool(random.random() < 0.8))
