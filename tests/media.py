"""Media for tests, the bench and the demo, made in memory.

Every maker is seeded, small and cached: a process makes each file once. Encoded bytes may differ from one machine to
another (encoders choose code by CPU), so what must not change is committed under `tests/golden/media`.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import av.container
import cv2
import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from preprocessor.media.truncation.mp4 import boxes
from preprocessor.traffic.seed import gradient, moving_shapes, with_grain


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
    scene_count: int = 1,
    options: tuple[tuple[str, str], ...] = (),
    pixel_format: str = "yuv420p",
    colorspace: int | None = None,
    color_range: int | None = None,
    turn_degrees: int = 0,
    is_mirrored: bool = False,
    times_ms: tuple[int, ...] = (),
) -> bytes:
    """A video of coloured shapes drifting over a gradient; the defaults are the workload of the benchmarks.

    Args:
        seconds: round(seconds * rate) frames are written.
        codec: An encoder's name; its own defaults hold where `options` does not say otherwise.
        container: An FFmpeg muxer's name.
        grain: Amplitude of noise added to every pixel of every frame, 0 to 255.
        scene_count: So many scenes of equal length, cut hard: other shapes, and every other one a negative.
        options: Encoder options as (name, value) pairs, such as (("g", "15"),).
        pixel_format: An odd width or height needs "yuv444p".
        colorspace, color_range: FFmpeg's numbers, as tags only: 1 is BT.709, 5 and 6 BT.601; 1 is limited, 2 full.
        turn_degrees, is_mirrored: A display matrix: a player turns counter-clockwise, then mirrors left to right.
        times_ms: Presentation times, one a frame, instead of even ones; the container must have such a fine clock.
    """
    buffer = io.BytesIO()
    with _kept_priority(), av.open(buffer, "w", format=container) as output:
        stream = add_video(output, codec, rate, dict(options))
        stream.width, stream.height, stream.pix_fmt = width, height, pixel_format
        stream.thread_count = 2  # x264's output depends on it
        if colorspace is not None:
            stream.codec_context.colorspace = colorspace
        if color_range is not None:
            stream.codec_context.color_range = color_range
        if turn_degrees or is_mirrored:
            stream.set_display_rotation(turn_degrees, hflip=is_mirrored)
        if times_ms:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, picture in enumerate(_scenes(round(seconds * rate), scene_count, width, height, seed, grain)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times_ms:
                frame.pts, frame.time_base = times_ms[index], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


def _scenes(
    count: int, scene_count: int, width: int, height: int, seed: int, grain: int
) -> Iterator[npt.NDArray[np.uint8]]:
    lengths = [count * (scene + 1) // scene_count - count * scene // scene_count for scene in range(scene_count)]
    for scene, length in enumerate(lengths):
        for picture in moving_shapes(length, width, height, seed=seed + scene, grain=grain):
            yield 255 - picture if scene % 2 else picture


@cache
def truncated_clip() -> bytes:
    """An mp4 whose index comes first and promises frames that the file, cut in the middle, does not hold."""
    whole = moving_shapes_clip(seconds=2, width=160, height=120, seed=7)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"  # moving the index to the front reopens the file: not possible in memory
        with (
            av.open(io.BytesIO(whole), "r") as source,
            av.open(str(path), "w", options={"movflags": "faststart"}) as output,
        ):
            stream = output.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    output.mux(packet)
        data = path.read_bytes()
    return data[: len(data) // 2]


def add_video(
    output: av.container.OutputContainer, codec: str, rate: int | Fraction, options: dict[str, str] | None = None
) -> av.VideoStream:
    """A new stream of the video encoder with this name."""
    stream = output.add_stream(codec, rate=rate, options=options)
    assert isinstance(stream, av.VideoStream)  # PyAV's types know it only of names that are spelled out
    return stream


def decoded_frames(data: bytes) -> list[npt.NDArray[np.uint8]]:
    """What a plain decode gives: every frame, RGB uint8 [height, width, 3], as it is stored."""
    with av.open(io.BytesIO(data), "r") as container:
        return [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in container.decode(video=0)]


def packet_spans(data: bytes) -> list[tuple[int, int]]:
    """Offset and length in the file of each of the video's packets, in decode order."""
    with av.open(io.BytesIO(data), "r") as container:
        packets = (packet for packet in container.demux(video=0) if packet.size)
        return [
            (data.index(bytes(packet)), packet.size) for packet in packets
        ]  # `pos` is the chunk's, not the payload's


def keyframe_packets(data: bytes) -> list[int]:
    """Which of the video's packets are marked as keyframes."""
    with av.open(io.BytesIO(data), "r") as container:
        packets = (packet for packet in container.demux(video=0) if packet.size)
        return [ordinal for ordinal, packet in enumerate(packets) if packet.is_keyframe]


def remuxed(data: bytes, container: str, *, first_packet: int = 0, shift: int = 0, repeat_time_at: int = -1) -> bytes:
    """The packets from `first_packet` on in another container, nothing encoded anew.

    Args:
        shift: Added to every time, in the source's time base.
        repeat_time_at: This packet, and it alone, gets the times of the packet before.
    """
    buffer = io.BytesIO()
    with av.open(io.BytesIO(data), "r") as source, av.open(buffer, "w", format=container) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        last_pts = 0
        for ordinal, packet in enumerate(packet for packet in source.demux(video=0) if packet.size):
            if ordinal < first_packet:
                continue
            pts = packet.pts or 0
            if ordinal == repeat_time_at:
                packet.pts = packet.dts = last_pts
            last_pts = pts
            packet.pts = (packet.pts or 0) + shift
            packet.dts = None if packet.dts is None else packet.dts + shift
            packet.stream = stream
            output.mux(packet)
    return buffer.getvalue()


def repeated_clip(data: bytes, count: int) -> bytes:
    """The clip so many times in a row, nothing encoded anew; it must begin with a keyframe, as every clip does."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(data), "r") as source, av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        packets = [(packet, packet.pts or 0, packet.dts or 0) for packet in source.demux(video=0) if packet.size]
        length = sum(packet.duration or 0 for packet, _, _ in packets)
        for turn in range(count):
            for packet, pts, dts in packets:
                packet.pts, packet.dts = pts + turn * length, dts + turn * length
                packet.stream = stream
                output.mux(packet)
    return buffer.getvalue()


def damaged(data: bytes, *packets: int, keep_bytes: int = 0) -> bytes:
    """The file with all bytes of these packets zeroed, but for the first `keep_bytes` of each."""
    spans = packet_spans(data)
    spoiled = bytearray(data)
    for ordinal in packets:
        offset, length = spans[ordinal]
        spoiled[offset + keep_bytes : offset + length] = bytes(length - keep_bytes)
    return bytes(spoiled)


@cache
def clip_with_cover(*, has_video: bool = True) -> bytes:
    """An mp4 with a cover picture of 32x32 and, if `has_video`, a clip of 96x64 and 10 frames."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        cover = add_video(output, "mjpeg", 1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        video = add_video(output, "libx264", 10) if has_video else None
        sound = None if has_video else output.add_stream("aac", rate=16000)
        if video is not None:
            video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        output.mux(cover.encode(av.VideoFrame.from_ndarray(gradient(32, 32), format="rgb24")))
        if video is not None:
            for picture in moving_shapes(10, 96, 64):
                output.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(cover.encode())
        for stream in (video, sound):
            if stream is not None:
                output.mux(stream.encode())
    return buffer.getvalue()


@cache
def animation(
    image_format: str = "WEBP", durations_ms: tuple[int, ...] = (100,) * 8, width: int = 96, height: int = 64
) -> bytes:
    """A moving picture written by Pillow, lossless: "WEBP", "GIF" or "PNG"."""
    frames = [Image.fromarray(picture) for picture in moving_shapes(len(durations_ms), width, height)]
    buffer = io.BytesIO()
    settings = {"lossless": True} if image_format == "WEBP" else {}
    frames[0].save(
        buffer, image_format, save_all=True, append_images=frames[1:], duration=list(durations_ms), loop=0, **settings
    )
    return buffer.getvalue()


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
    pixels = gradient(width, height)
    cv2.circle(pixels, (width // 3, height // 3), max(1, min(width, height) // 4), (250, 40, 60), -1, cv2.LINE_AA)
    cv2.rectangle(pixels, (width // 2, height // 2), (width * 4 // 5, height * 9 // 10), (30, 220, 90), -1)
    pixels = with_grain(pixels, 12, random)
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


@contextmanager
def _kept_priority() -> Iterator[None]:
    """SVT-AV1, run by root, leaves the calling thread at SCHED_FIFO 99: it would starve the machine ever after."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def index_in_front(data: bytes) -> bytes:
    """An mp4 as a server of videos has it: its index before its media, all offsets moved."""
    found = {name: (start, stop) for name, start, stop in boxes(data)}
    (index_start, index_stop), (media_start, media_stop) = found[b"moov"], found[b"mdat"]
    index = bytearray(data[index_start:index_stop])
    for start, stop in _offset_tables(data, index_start + 8, index_stop):
        (count,) = struct.unpack_from(">I", data, start + 12)
        assert stop == start + 16 + 4 * count
        offsets = struct.unpack_from(f">{count}I", data, start + 16)
        moved = (offset + index_stop - index_start for offset in offsets)
        struct.pack_into(f">{count}I", index, start + 16 - index_start, *moved)
    return data[:media_start] + bytes(index) + data[media_start:media_stop]


def _offset_tables(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int]]:
    for name, box_start, box_stop in boxes(data, start, stop):
        if name == b"stco":
            yield box_start, box_stop
        elif name in (b"trak", b"mdia", b"minf", b"stbl"):
            yield from _offset_tables(data, box_start + 8, box_stop)
