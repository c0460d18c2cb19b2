"""The workload of TensorRT-LLM PR 15598, made here: a 30 s clip of moving shapes, 374x374 at 30 frames a second, and 50 tokens.

The pictures are the same on every machine. Encoded bytes may differ, because encoders select code paths by CPU.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import av
import cv2
import numpy as np
import numpy.typing as npt

SECONDS, RATE, SIDE_PX = 30, 30, 374
TEXT = "frame" + " frame" * 49
"""50 tokens with every tokenizer that has a token " frame"."""

_SHAPE_COUNT = 3
_SPEED = (
    0.012  # largest step per frame, as a fraction of the shorter side; x264 then encodes 4 I, 390 P and 506 B frames
)


def seed_clip(seconds: float = SECONDS) -> bytes:
    """The clip as an mp4 file, encoded by x264 with its defaults; takes some seconds of CPU."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = SIDE_PX, SIDE_PX, "yuv420p"
        stream.thread_count = 2  # x264's output depends on it
        for picture in moving_shapes(round(seconds * RATE), SIDE_PX, SIDE_PX):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


def moving_shapes(
    count: int, width: int, height: int, *, seed: int = 0, grain: int = 0
) -> Iterator[npt.NDArray[np.uint8]]:
    """`count` RGB frames, uint8 [height, width, 3]: shapes that bounce off the edges of a gradient.

    Args:
        grain: Amplitude of noise added to every pixel of every frame, 0 to 255.
    """
    random = np.random.default_rng(seed)
    size = np.array([width, height])
    starts = random.uniform(0, 1, (_SHAPE_COUNT, 2)) * size
    steps = random.uniform(-_SPEED, _SPEED, (_SHAPE_COUNT, 2)) * min(width, height)
    colors = random.integers(0, 256, (_SHAPE_COUNT, 3)).tolist()
    radii = (random.uniform(0.03, 0.14, _SHAPE_COUNT) * min(width, height) + 1).astype(int).tolist()
    background = gradient(width, height)
    for time in range(count):
        frame = background.copy()
        centres = size - np.abs((starts + steps * time) % (2 * size) - size)
        for index, ((x, y), color, radius) in enumerate(zip(centres.astype(int).tolist(), colors, radii, strict=True)):
            if index % 2:
                cv2.circle(frame, (x, y), radius, color, -1, cv2.LINE_AA)
            else:
                cv2.rectangle(frame, (x - radius, y - radius), (x + radius, y + radius), color, -1)
        yield with_grain(frame, grain, random) if grain else frame


def gradient(width: int, height: int) -> npt.NDArray[np.uint8]:
    """A gradient, uint8 [height, width, 3]: each channel runs from 0 to 255 in its own direction."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x + y) * 255 // max(1, width + height - 2)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def with_grain(pixels: npt.NDArray[np.uint8], amplitude: int, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """The picture with uniform noise from -amplitude to amplitude on every value."""
    noise = random.integers(-amplitude, amplitude + 1, pixels.shape, dtype=np.int16)
    noisy: npt.NDArray[np.int16] = np.clip(pixels + noise, 0, 255)
    return noisy.astype(np.uint8)
