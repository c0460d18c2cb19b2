"""Sounds that are small and ask for much, made by code."""

from __future__ import annotations

import io
import struct
import wave

import av
import numpy as np


def wav(rate_hz: int, channel_count: int, count: int = 64) -> bytes:
    """16-bit PCM whose header says this."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(16_000)
        output.writeframes(bytes(2 * count * min(channel_count, 256)))
    data = bytearray(buffer.getvalue())
    struct.pack_into("<HIIH", data, 22, channel_count, rate_hz, rate_hz * 2 & 0xFFFFFFFF, channel_count * 2 & 0xFFFF)
    return bytes(data)


def slow_wav() -> bytes:
    """A sound of one sample a second: two hours in 14 KB, and four hundred megabytes at 16 kHz."""
    return wav(1, 1, 7200)


def inflating_flac() -> bytes:
    """Silence: a few bytes a frame of 65,535 samples, two hours of it."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="flac") as output:
        stream = output.add_stream("flac", rate=8_000, layout="mono")
        stream.codec_context.options = {"frame_size": "65535"}
        silence = np.zeros((1, 65_535), np.int16)
        for _ in range(900):
            frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
            frame.sample_rate = 8_000
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()
