"""Stories as what the model reads: token ids and patch rows.

Training draws the few pictures that are sampled and cuts them here. Held-out clips are encoded whole and go through the
project's pipeline; `train.py` compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from deploy.demo_model.questions import KINDS, Question, ask
from deploy.demo_model.story import (
    CLIP_RATE,
    COLORS,
    DIRECTIONS,
    EVENT_SECONDS,
    MOST_SECONDS,
    SHAPES,
    SIDE_PX,
    Story,
    draw_all,
    make_clip,
    make_story,
    pixel_budget,
)
from preprocessor import pipeline
from preprocessor.media.spreads import count_for_fps, spread_evenly
from preprocessor.models.family import Model
from preprocessor.models.qwen3_vl import pair_times, video_text
from preprocessor.models.registry import load_model
from preprocessor.types.request import ChatPrompt, Media, MediaPart, Message, Modality, PreparationRequest, TextPart

FPS = 2.0
_PATCH, _MERGE, _PAIR = 16, 2, 2
_PATCHES = SIDE_PX // _PATCH
STEP_ROWS = _PATCHES**2
STEP_TOKENS = STEP_ROWS // _MERGE**2
GRID = (_PATCHES, _PATCHES)
_MARKERS = ("<|vision_start|>", "<|vision_end|>")
_VIDEO = "<|video_pad|>"


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One clip with questions about it.

    Attributes:
        prefix_ids: The prompt up to the question, placeholders expanded.
        rows: uint8 [steps * STEP_ROWS, 1536].
        shown: int64 [steps, 5], of each temporal step: color, shape and direction of what it shows, as numbers from 1 on; 1 in
            the first half of an event and 2 in the second; the second that the prompt says. The first four are 0 where it
            shows nothing. Empty for held-out clips.
    """

    prefix_ids: tuple[int, ...]
    rows: npt.NDArray[np.uint8]
    questions: tuple[Question, ...]
    shown: npt.NDArray[np.int64]


@cache
def model() -> Model:
    """The settings and the tokenizer that serve the demo's model."""
    loaded = load_model("qwen3-vl")
    assert isinstance(loaded, Model)
    return loaded


@lru_cache(4096)
def encode(text: str) -> tuple[int, ...]:
    """Token ids."""
    return tuple(model().tokenizer(text, add_special_tokens=False)["input_ids"])


@cache
def color_ids() -> tuple[int, ...]:
    """Of each of `COLORS`, the token that it is within a question."""
    ids = [encode(f" {color}") for color in COLORS]
    assert all(len(each) == 1 for each in ids)
    return tuple(each[0] for each in ids)


def question_ids(question: Question) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What follows `prefix_ids`: the question to where the answer begins, and the answer with its end."""
    asked = encode(f"{question.text}<|im_end|>\n<|im_start|>assistant\n")
    return asked, encode(f"{question.answer}<|im_end|>")


def drawn_sample(seed: int) -> Sample:
    """For training: drawn straight to patches, with the noise of a JPEG file."""
    random = np.random.default_rng((seed, 1))
    story = make_story(seed)
    fps = 4.0 if story.seconds <= 6 and random.random() < 0.2 else FPS
    rate = int(random.choice([24, 25, 30]))
    most_offset = MOST_SECONDS - story.seconds
    offset = int(random.integers(1, most_offset + 1)) if most_offset and random.random() < 0.5 else 0
    times = sampled_times(story, fps, rate)
    background = story.background(SIDE_PX)
    pictures = [story.draw(time, background) for time in times.tolist()]
    if random.random() < 0.75:
        pictures = _with_noise(pictures, int(random.integers(60, 96)))
    ids = encode(_prefix(times + offset, keeps_markers=bool(random.random() < 0.7)))
    seconds = [int(f"{each:.1f}"[0]) for each in pair_times(times + offset, _PAIR)]
    shown = np.array([_shown(story, time, at) for time, at in zip(times[::_PAIR].tolist(), seconds, strict=True)])
    return Sample(ids, patch_rows(pictures), questions_about(story.later(offset), random), shown)


def questions_about(story: Story, random: np.random.Generator) -> tuple[Question, ...]:
    """Those of a clip in training: one of each kind, two of those about one of several events."""
    return tuple(ask(story, kind, random) for kind in (*KINDS, "direction", "shape", "time"))


def held_out_sample(seed: int, codec: str = "libx264") -> Sample:
    """An encoded clip, as the service's pipeline prepares it. Each kind of question is asked once."""
    story = make_story(seed)
    random = np.random.default_rng((seed, 2))
    clip = make_clip(draw_all(story), codec=codec)
    media = Media("clip", Modality.VIDEO, clip, max_pixels=pixel_budget(story.seconds))
    chat = ChatPrompt((Message("user", (MediaPart("clip"), TextPart("What happens?"))),))
    tensors = pipeline.prepare(model(), PreparationRequest(chat, (media,))).tensors
    ids = tensors["input_ids"].tolist()
    asked, _ = question_ids(Question("describe", "What happens?", ""))
    assert tuple(ids[-len(asked) :]) == asked
    questions = tuple(ask(story, kind, random) for kind in KINDS)
    return Sample(tuple(ids[: -len(asked)]), tensors["pixel_patches"], questions, np.empty((0, 5), np.int64))


def expected_prefix(seed: int) -> tuple[int, ...]:
    """What `held_out_sample` must get from the pipeline."""
    return encode(_prefix(sampled_times(make_story(seed)), keeps_markers=True))


def sampled_times(story: Story, fps: float = FPS, rate: int = CLIP_RATE) -> npt.NDArray[np.float64]:
    """When the frames are shown that the service samples of a clip of so many frames a second, in seconds."""
    total = story.seconds * rate
    times: npt.NDArray[np.float64] = spread_evenly(total, count_for_fps(total, rate, fps, least=4, most=768)) / rate
    return times


def _prefix(times_seconds: npt.NDArray[np.float64], *, keeps_markers: bool) -> str:
    text = video_text(pair_times(times_seconds, _PAIR), _VIDEO * STEP_TOKENS, _MARKERS)
    before, after = _MARKERS if keeps_markers else ("", "")
    return f"<|im_start|>user\n{before}{text}{after}"


def patch_rows(pictures: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """An even number of pictures of `SIDE_PX` → rows in the order of `preprocessor.vision.patches`."""
    blocks = _PATCHES // _MERGE
    frames = np.stack(pictures).reshape(-1, _PAIR, blocks, _MERGE, _PATCH, blocks, _MERGE, _PATCH, 3)
    # time, block row, block column, patch row and column in it; channel, frame, y, x
    rows = frames.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return np.ascontiguousarray(rows).reshape(-1, 3 * _PAIR * _PATCH**2)


def _shown(story: Story, seconds: float, said_second: int) -> tuple[int, int, int, int, int]:
    for event in story.events:
        passed = (seconds - event.start_seconds) / EVENT_SECONDS
        if 0 <= passed < 1:
            names = (event.color, list(COLORS)), (event.shape, list(SHAPES)), (event.direction, list(DIRECTIONS))
            color, shape, direction = (1 + known.index(name) for name, known in names)
            return color, shape, direction, 1 + int(2 * passed), said_second
    return 0, 0, 0, 0, said_second


def _with_noise(pictures: list[npt.NDArray[np.uint8]], quality: int) -> list[npt.NDArray[np.uint8]]:
    """As an encoder leaves them: blocks, and colors of half the resolution."""
    strip = np.concatenate(pictures)
    coded = cv2.imencode(".jpg", strip, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)  # both take RGB for BGR, which only weights the noise otherwise
    return list(np.asarray(decoded, np.uint8).reshape(len(pictures), SIDE_PX, SIDE_PX, 3))


def vocabulary() -> list[int]:
    """Ids of every token that a prompt or an answer of the demo can hold, ascending."""
    ids: set[int] = set()
    for seed in range(2000):
        sample_seed = np.random.default_rng((seed, 3))
        story = make_story(seed)
        for question in questions_about(story, sample_seed):
            asked, answer = question_ids(question)
            ids.update(asked, answer)
    ids.update(encode(_prefix(np.repeat(np.arange(100) / 10, _PAIR), keeps_markers=True)))
    return sorted(ids)
