"""Files with sound, made here."""

from __future__ import annotations

import io
from fractions import Fraction
from functools import cache

import av
import numpy as np
import numpy.typing as npt

RATE = 16_000


def tone(rate: int, seconds: float = 1.0, frequency: float = 440.0, amplitude: float = 0.5) -> npt.NDArray[np.int16]:
    """A sine that starts at its peak, so that a missing first sample shows; int16 [samples]."""
    times = np.arange(round(rate * seconds)) / rate
    return np.round(np.cos(2 * np.pi * frequency * times) * amplitude * 32767).astype(np.int16)


@cache
def encoded(container: str, codec: str, rate: int = RATE, layout: str = "mono", seconds: float = 1.0) -> bytes:
    """The tone of every channel alike, encoded."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        samples = tone(rate, seconds)[np.newaxis].repeat(stream.layout.nb_channels, 0)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="s16p", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)  # times, or no priming is stated
        frame_size = stream.codec_context.frame_size or None
        resampler = av.AudioResampler(format=stream.format, layout=layout, rate=rate, frame_size=frame_size)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(piece))
        output.mux(stream.encode())
    return buffer.getvalue()


def with_sound(picture: bytes, sound: bytes) -> bytes:
    """An mp4 of the pictures of one file and the sound of another."""
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(picture), "r") as video,
        av.open(io.BytesIO(sound), "r") as audio,
        av.open(buffer, "w", "mp4") as out,
    ):
        copies = [
            (source, stream, out.add_stream_from_template(stream))
            for source, stream in ((video, video.streams.video[0]), (audio, audio.streams.audio[0]))
        ]
        for source, stream, copy in copies:
            for packet in source.demux(stream):
                if packet.dts is not None:
                    packet.stream = copy
                    out.mux(packet)
    return buffer.getvalue()
