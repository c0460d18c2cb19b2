"""Clips with a known content: up to three shapes that appear one after another, each crossing the picture once.

A `Story` says what happens; it is drawn at any moment and any size, so that the same one is a training sample and a clip.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from dataclasses import dataclass

import av
import cv2
import numpy as np
import numpy.typing as npt

COLORS: Mapping[str, tuple[int, int, int]] = {
    "red": (225, 50, 40),
    "green": (40, 180, 60),
    "blue": (40, 60, 225),
    "yellow": (230, 210, 50),
    "purple": (170, 60, 200),
    "white": (240, 240, 240),
}
"""Names and RGB. Red and blue become each other when the channels are swapped."""
SHAPES = ("circle", "square", "triangle")
DIRECTIONS: Mapping[str, tuple[int, int]] = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1)}
"""Names, and x and y of a step that way."""
OPPOSITE = {"right": "left", "left": "right", "down": "up", "up": "down"}
EVENT_SECONDS = 2
MOST_SECONDS = 9
"""Of a story, so that every time in it has one digit."""
CLIP_RATE, CLIP_SIDE_PX = 30, 288
SIDE_PX = 96
"""Of a frame as the model reads it: 3 x 3 tokens."""
_FPS = 2  # of what Qwen3-VL's settings sample
HELD_OUT_SEEDS = 1_000_000
"""Training draws its stories from this seed on; those below are for tests and the demo."""

_COLOR_JITTER = 14
_FRACTION_BITS = 4  # of cv2's fixed-point coordinates


@dataclass(frozen=True, slots=True)
class Event:
    """One shape on its way. Lengths are fractions of the picture's side.

    Attributes:
        start_seconds: When it appears; it disappears `EVENT_SECONDS` later.
        lane: Where it stays on the axis that it does not move along.
        reach: How far from the middle it begins and ends.
        radius: Half of its size.
        rgb: Its color, a little off that of `COLORS`.
    """

    color: str
    shape: str
    direction: str
    start_seconds: int
    lane: float
    reach: float
    radius: float
    rgb: tuple[int, int, int]

    @property
    def name(self) -> str:
        """Such as "red circle"."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, slots=True)
class Story:
    """What a clip shows.

    Attributes:
        events: In order; no two at the same time, and no two of one color.
        seconds: Length of the clip.
        shades: RGB of the background in its corners: left top, right top, left bottom, right bottom.
    """

    events: tuple[Event, ...]
    seconds: int
    shades: tuple[tuple[int, int, int], ...]

    def backwards(self) -> Story:
        """The same clip played from its end to its beginning."""
        events = (
            dataclasses.replace(
                event,
                direction=OPPOSITE[event.direction],
                start_seconds=self.seconds - event.start_seconds - EVENT_SECONDS,
            )
            for event in reversed(self.events)
        )
        return dataclasses.replace(self, events=tuple(events))

    def later(self, seconds: int) -> Story:
        """The same after so many seconds of background."""
        events = (dataclasses.replace(event, start_seconds=event.start_seconds + seconds) for event in self.events)
        return dataclasses.replace(self, events=tuple(events), seconds=self.seconds + seconds)

    def background(self, side_px: int) -> npt.NDArray[np.uint8]:
        """RGB, uint8 [side, side, 3]."""
        corners = np.array(self.shades, np.float32).reshape(2, 2, 3)
        ramp = np.linspace(0, 1, side_px, dtype=np.float32)
        rows = corners[0] + ramp[:, None, None] * (corners[1] - corners[0])  # [side, 2, 3]
        picture = rows[:, :1] + ramp[None, :, None] * (rows[:, 1:] - rows[:, :1])
        return np.asarray(picture, np.uint8)

    def draw(self, seconds: float, background: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The picture at that moment: RGB, uint8 [side, side, 3]."""
        picture = background.copy()
        for event in self.events:
            passed = (seconds - event.start_seconds) / EVENT_SECONDS
            if 0 <= passed < 1:
                _draw_shape(picture, event, passed)
        return picture


def make_story(seed: int) -> Story:
    """A random story; the same for the same seed."""
    random = np.random.default_rng(seed)
    count = int(random.choice([1, 2, 3], p=[0.2, 0.4, 0.4]))
    colors = random.permutation(list(COLORS))[:count].tolist()
    shapes = random.choice(SHAPES, count, replace=bool(random.random() < 0.4)).tolist()
    starts, seconds = _times(random, count)
    events = tuple(
        Event(
            color=color,
            shape=shape,
            direction=str(random.choice(list(DIRECTIONS))),
            start_seconds=start,
            lane=float(random.uniform(0.25, 0.75)),
            reach=float(random.uniform(0.22, 0.32)),
            radius=float(random.uniform(0.13, 0.17)),
            rgb=_near(random, COLORS[color], _COLOR_JITTER),
        )
        for color, shape, start in zip(colors, shapes, starts, strict=True)
    )
    base = (int(random.integers(20, 90)),) * 3
    return Story(events, seconds, tuple(_near(random, base, 18) for _ in range(4)))


def make_clip(
    pictures: list[npt.NDArray[np.uint8]], rate: int = CLIP_RATE, codec: str = "libx264", container: str = "mp4"
) -> bytes:
    """The pictures as a video file, RGB uint8 [side, side, 3] each."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def draw_all(story: Story, rate: int = CLIP_RATE, side_px: int = CLIP_SIDE_PX) -> list[npt.NDArray[np.uint8]]:
    """Every picture of its clip, in order."""
    background = story.background(side_px)
    return [story.draw(index / rate, background) for index in range(story.seconds * rate)]


def pixel_budget(seconds: int, fps: int = _FPS) -> int:
    """`max_pixels` by which the service makes frames of `SIDE_PX` of larger square ones."""
    return max(seconds * fps, 4) * (SIDE_PX + 4) ** 2


def _times(random: np.random.Generator, count: int) -> tuple[list[int], int]:
    """When the events begin, and how long the story is, in seconds."""
    while True:
        gaps = [int(random.integers(0, 3)), *random.choice([0, 0, 1], count - 1).tolist()]
        starts = [sum(gaps[: index + 1]) + EVENT_SECONDS * index for index in range(count)]
        seconds = starts[-1] + EVENT_SECONDS + int(random.integers(0, 3))
        if seconds <= MOST_SECONDS:
            return starts, seconds


def _near(random: np.random.Generator, rgb: tuple[int, ...], most: int) -> tuple[int, int, int]:
    red, green, blue = np.clip(np.array(rgb) + random.integers(-most, most + 1, 3), 0, 255).tolist()
    return red, green, blue


def _draw_shape(picture: npt.NDArray[np.uint8], event: Event, passed: float) -> None:
    side = len(picture)
    step_x, step_y = DIRECTIONS[event.direction]
    along = (2 * passed - 1) * event.reach
    x = 0.5 + along * step_x if step_x else event.lane
    y = 0.5 + along * step_y if step_y else event.lane
    scale = side << _FRACTION_BITS
    center, radius = (round(x * scale), round(y * scale)), round(event.radius * scale)
    if event.shape == "circle":
        cv2.circle(picture, center, radius, event.rgb, -1, cv2.LINE_AA, _FRACTION_BITS)
        return
    corners = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "triangle": [(0.0, -1.1), (1.1, 0.9), (-1.1, 0.9)],
    }[event.shape]
    points = np.array(corners) * radius + center
    cv2.fillConvexPoly(picture, points.round().astype(np.int32), event.rgb, cv2.LINE_AA, _FRACTION_BITS)
