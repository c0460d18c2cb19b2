"""Media for tests, the bench and the demo, made in memory.

Every maker is seeded, small and cached: a process makes each file once. Encoded bytes may differ from one machine to
another (encoders choose code by CPU), so what must not change is committed under `tests/golden/media`.
"""

from __future__ import annotations

import io
import tempfile
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

_SHAPE_COUNT = 3
_SPEED = 0.012  # at most, of the shorter side, a frame: x264 then makes 4 I, 390 P and 506 B frames of the default clip


@cache
def moving_shapes_clip(
    seconds: float = 30,
    rate: int | Fraction = 30,
    width: int = 374,
    height: int = 374,
    codec: str = "libx264",
    container: str = "mp4",
    *,
    seed: int = 0,
    grain: int = 0,
    options: tuple[tuple[str, str], ...] = (),
    pixel_format: str = "yuv420p",
) -> bytes:
    """A video of coloured shapes drifting over a gradient; the defaults are the workload of the benchmarks.

    Args:
        seconds: round(seconds * rate) frames are written.
        codec: An encoder's name; its own defaults hold where `options` does not say otherwise.
        container: An FFmpeg muxer's name.
        grain: Amplitude of noise added to every pixel of every frame, 0 to 255.
        options: Encoder options as (name, value) pairs, such as (("g", "15"),).
        pixel_format: An odd width or height needs "yuv444p".
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, options=dict(options))
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.thread_count = 2  # x264's output depends on it
        for picture in _moving_shapes(round(seconds * rate), width, height, seed, grain):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()


@cache
def truncated_clip() -> bytes:
    """An mp4 whose index comes first and promises frames that the file, cut in the middle, does not hold."""
    whole = moving_shapes_clip(seconds=2, width=160, height=120, seed=7)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"  # moving the index to the front reopens the file: not possible in memory
        with av.open(io.BytesIO(whole)) as source, av.open(str(path), "w", options={"movflags": "faststart"}) as output:
            stream = output.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    output.mux(packet)
        data = path.read_bytes()
    return data[: len(data) // 2]


@cache
def audio_only_clip() -> bytes:
    """An mp4 that holds half a second of AAC and no video."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=16000, layout="mono")
        tone = np.sin(np.arange(8192, dtype=np.float32) * 0.1)[np.newaxis] * 0.5
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate = 16000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


@cache
def photo(
    width: int = 640,
    height: int = 480,
    image_format: str = "JPEG",
    *,
    mode: str = "RGB",
    orientation: int = 0,
    seed: int = 0,
) -> bytes:
    """A picture with smooth and sharp parts, as a file of `image_format`.

    Args:
        image_format: One of Pillow's names.
        mode: Pillow's pixel mode; one with alpha gets a see-through left half, one with a palette an adaptive one.
        orientation: EXIF orientation 1 to 8; 0 writes none.
    """
    random = np.random.default_rng((seed, width, height))
    pixels = _gradient(width, height)
    cv2.circle(pixels, (width // 3, height // 3), max(1, min(width, height) // 4), (250, 40, 60), -1, cv2.LINE_AA)
    cv2.rectangle(pixels, (width // 2, height // 2), (width * 4 // 5, height * 9 // 10), (30, 220, 90), -1)
    pixels = _with_grain(pixels, 12, random)
    image = Image.fromarray(pixels)
    if mode in ("RGBA", "LA"):
        alpha = np.full((height, width), 255, np.uint8)
        alpha[:, : width // 2] = 60
        image.putalpha(Image.fromarray(alpha))
    image = image.convert(mode, palette=Image.Palette.ADAPTIVE) if mode == "P" else image.convert(mode)
    exif = Image.Exif()
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    image.save(buffer, image_format, exif=exif) if orientation else image.save(buffer, image_format)
    return buffer.getvalue()


def _moving_shapes(count: int, width: int, height: int, seed: int, grain: int) -> list[npt.NDArray[np.uint8]]:
    """`count` RGB frames, uint8 [height, width, 3]; shapes bounce off the edges."""
    random = np.random.default_rng(seed)
    size = np.array([width, height])
    starts = random.uniform(0, 1, (_SHAPE_COUNT, 2)) * size
    steps = random.uniform(-_SPEED, _SPEED, (_SHAPE_COUNT, 2)) * min(width, height)
    colors = random.integers(0, 256, (_SHAPE_COUNT, 3)).tolist()
    radii = (random.uniform(0.03, 0.14, _SHAPE_COUNT) * min(width, height) + 1).astype(int).tolist()
    background = _gradient(width, height)
    frames = []
    for time in range(count):
        frame = background.copy()
        centres = size - np.abs((starts + steps * time) % (2 * size) - size)
        for index, ((x, y), color, radius) in enumerate(zip(centres.astype(int).tolist(), colors, radii, strict=True)):
            if index % 2:
                cv2.circle(frame, (x, y), radius, color, -1, cv2.LINE_AA)
            else:
                cv2.rectangle(frame, (x - radius, y - radius), (x + radius, y + radius), color, -1)
        frames.append(_with_grain(frame, grain, random) if grain else frame)
    return frames


def _gradient(width: int, height: int) -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x + y) * 255 // max(1, width + height - 2)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def _with_grain(pixels: npt.NDArray[np.uint8], amplitude: int, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    noise = random.integers(-amplitude, amplitude + 1, pixels.shape, dtype=np.int16)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)
