"""The good files that are mutated: one of every format that is accepted, small, so that a second decodes dozens of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import av
import numpy as np

from preprocessor.media.image_formats import ACCEPTED_FORMATS
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import animation, moving_shapes_clip
from tests.pictures import KINDS

_SMALL: Mapping[str, Any] = {"seconds": 0.4, "rate": 30, "width": 64, "height": 48}
_GROUPS = (("g", "6"), ("bf", "2"))
_X265 = (("x265-params", "log-level=none:keyint=6:min-keyint=6"),)


@dataclass(frozen=True, slots=True)
class Seed:
    """A good file.

    Attributes:
        structure: A name in `structure.PARSERS`.
        modality: What it is sent as.
    """

    name: str
    structure: str
    modality: pb.Modality.ValueType
    make: Callable[[], bytes]


def _clip(**settings: Any) -> Callable[[], bytes]:
    return lambda: moving_shapes_clip(**{**_SMALL, **settings})


def _sound(container: str, codec: str, rate: int = 16_000, layout: str = "mono") -> Callable[[], bytes]:
    def make() -> bytes:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=container) as output:
            stream = output.add_stream(codec, rate=rate, layout=layout)
            assert isinstance(stream, av.AudioStream)
            count = 0.15 * rate
            wave = (np.sin(np.arange(count) * 0.1) * 20_000).astype(np.int16)
            channels = np.repeat(wave[np.newaxis], stream.codec_context.channels, 0)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), format="s16p", layout=layout)
            frame.sample_rate = rate
            resampler = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
            fifo = av.AudioFifo()
            for piece in resampler.resample(frame):
                fifo.write(piece)
            size = stream.codec_context.frame_size or 1024
            while (part := fifo.read(size, partial=True)) is not None:
                output.mux(stream.encode(part))
            output.mux(stream.encode(None))
        return buffer.getvalue()

    return make


def _fragmented(data: bytes) -> bytes:
    """The clip with a movie fragment for every group of pictures."""
    buffer = io.BytesIO()
    movflags = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    with av.open(io.BytesIO(data), "r") as source, av.open(buffer, "w", format="mp4", options=movflags) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    return buffer.getvalue()


_VIDEOS: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "mp4 h264": ("boxes", _clip(options=_GROUPS)),
    "mp4 h264 fragmented": ("boxes", lambda: _fragmented(_clip(options=_GROUPS)())),
    "mp4 h264 turned": ("boxes", _clip(options=_GROUPS, turn_degrees=90)),
    "mp4 hevc": ("boxes", _clip(codec="libx265", options=_X265)),
    "mp4 av1": ("boxes", _clip(codec="libsvtav1", options=(("preset", "12"), ("g", "6")))),
    "mov mjpeg": ("boxes", _clip(codec="mjpeg", container="mov", pixel_format="yuvj420p")),
    "mov prores": ("boxes", _clip(codec="prores_ks", container="mov", pixel_format="yuv422p10le")),
    "mkv h264": ("ebml", _clip(container="matroska", options=_GROUPS)),
    "mkv hevc": ("ebml", _clip(codec="libx265", container="matroska", options=_X265)),
    "webm vp8": ("ebml", _clip(codec="libvpx", container="webm", options=(("g", "6"),))),
    "webm vp9": ("ebml", _clip(codec="libvpx-vp9", container="webm", options=(("g", "6"),))),
    "avi mpeg4": ("riff", _clip(codec="mpeg4", container="avi", options=_GROUPS)),
    "avi mjpeg": ("riff", _clip(codec="mjpeg", container="avi", pixel_format="yuvj420p")),
    "ts h264": ("ts", _clip(container="mpegts", options=_GROUPS)),
    "ts mpeg2": ("ts", _clip(codec="mpeg2video", container="mpegts", options=_GROUPS)),
    "flv h264": ("flv", _clip(container="flv", options=_GROUPS)),
    "flv sorenson": ("flv", _clip(codec="flv", container="flv")),
    "flv screen video": ("flv", _clip(codec="flashsv", container="flv", pixel_format="bgr24")),
    "avi msmpeg4": ("riff", _clip(codec="msmpeg4", container="avi", options=(("g", "6"),))),
    "avi msmpeg4v2": ("riff", _clip(codec="msmpeg4v2", container="avi", options=(("g", "6"),))),
    "avi cinepak": ("riff", _clip(seconds=0.1, codec="cinepak", container="avi", pixel_format="rgb24")),
    "asf wmv1": ("pieces", _clip(codec="wmv1", container="asf", options=(("g", "6"),))),
    "asf wmv2": ("pieces", _clip(codec="wmv2", container="asf", options=(("g", "6"),))),
    "mov qtrle": ("boxes", _clip(codec="qtrle", container="mov", pixel_format="rgb24")),
    "mov svq1": ("boxes", _clip(codec="svq1", container="mov", pixel_format="yuv410p")),
    "avi dv": ("riff", _clip(seconds=0.1, rate=25, codec="dvvideo", container="avi", width=720, height=576)),
    "asf wmv": ("pieces", _clip(codec="mpeg4", container="asf")),
    "mpeg ps": ("nal", _clip(codec="mpeg2video", container="vob")),
    "h264": ("nal", _clip(container="h264", options=_GROUPS)),
    "hevc": ("nal", _clip(codec="libx265", container="hevc", options=_X265)),
    "m4v": ("nal", _clip(codec="mpeg4", container="m4v", options=_GROUPS)),
    "ivf vp8": ("ivf", _clip(codec="libvpx", container="ivf", options=(("g", "6"),))),
    "ivf av1": ("ivf", _clip(codec="libsvtav1", container="ivf", options=(("preset", "12"), ("g", "6")))),
    "obu": ("pieces", _clip(codec="libsvtav1", container="obu", options=(("preset", "12"), ("g", "6")))),
    "gif": ("gif", lambda: animation("GIF", (100,) * 6, 48, 32)),
    "apng": ("png", lambda: animation("PNG", (100,) * 4, 48, 32)),
    "webp animated": ("riff", lambda: animation("WEBP", (100,) * 4, 48, 32)),
}

_SOUNDS: Mapping[str, tuple[str, Callable[[], bytes]]] = {
    "wav": ("riff", _sound("wav", "pcm_s16le")),
    "wav float": ("riff", _sound("wav", "pcm_f32le", layout="stereo")),
    "wav adpcm": ("riff", _sound("wav", "adpcm_ms")),
    "aiff": ("iff", _sound("aiff", "pcm_s16be")),
    "caf": ("pieces", _sound("caf", "pcm_s16be")),
    "au": ("pieces", _sound("au", "pcm_mulaw")),
    "flac": ("flac", _sound("flac", "flac")),
    "mp3": ("mp3", _sound("mp3", "libmp3lame", 44_100)),
    "ogg opus": ("ogg", _sound("ogg", "libopus", 48_000)),
    "ogg flac": ("ogg", _sound("ogg", "flac")),
    "aac": ("adts", _sound("adts", "aac")),
    "m4a": ("boxes", _sound("mp4", "aac", layout="stereo")),
    "m4a alac": ("boxes", _sound("mp4", "alac")),
    "mkv opus": ("ebml", _sound("matroska", "libopus", 48_000)),
    "ac3": ("pieces", _sound("ac3", "ac3", 48_000)),
    "ts aac": ("ts", _sound("mpegts", "aac")),
}

_IMAGE_STRUCTURES = {
    "jpeg": "jpeg",
    "png": "png",
    "webp": "riff",
    "tiff": "tiff",
    "bmp": "pieces",
    "gif": "gif",
    "avif": "boxes",
    "heif": "boxes",
    "ico": "pieces",
    "ppm": "pieces",
    "tga": "pieces",
    "psd": "pieces",
    "jpeg2000": "boxes",
}


def _images() -> list[Seed]:
    """The kinds of the image tests, of each orientation but one."""
    return [
        Seed(f"image {kind}", _IMAGE_STRUCTURES[kind.split()[0]], pb.MODALITY_IMAGE, make)
        for kind, make in KINDS.items()
        if kind.split()[0].upper() in ACCEPTED_FORMATS and not (" orientation " in kind and not kind.endswith("6"))
    ]


SEEDS: Mapping[str, Seed] = {
    seed.name: seed
    for seed in (
        *(Seed(name, structure, pb.MODALITY_VIDEO, make) for name, (structure, make) in _VIDEOS.items()),
        *(Seed(name, structure, pb.MODALITY_AUDIO, make) for name, (structure, make) in _SOUNDS.items()),
        *_images(),
    )
}


@cache
def file_of(name: str) -> bytes:
    return SEEDS[name].make()
