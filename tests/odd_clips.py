"""Video files of kinds that no encoder writes by default, made in memory from ordinary ones.

Their pictures carry their own number as eight bars, so that a test reads which frame it was given. Cuts, joins, packing,
tracks and clocks of real files are rebuilt here packet by packet; nothing is encoded twice.
"""

from __future__ import annotations

import functools
import io
import itertools
import multiprocessing
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.drawing import encoded, png_chunk
from tests.media import add_video, decoded_frames

SIDE = 64  # of the numbered pictures: two patches of every family, never resized
X264 = {"crf": "12"}
OPEN_H264 = {"x264-params": "keyint=20:min-keyint=20:open-gop=1:bframes=3:scenecut=0:repeat-headers=1"}
OPEN_HEVC = {"x265-params": "keyint=20:min-keyint=20:open-gop=1:bframes=4:repeat-headers=1"}
_VOP = b"\0\0\1\xb6"
_USER_DATA = b"\0\0\1\xb2"

Picture = npt.NDArray[np.uint8]


def numbered(number: int, width: int = SIDE, height: int = SIDE) -> Picture:
    """A picture whose number, 0 to 255, can be read after any coding: eight upright bars, one a bit, lowest first."""
    bits = (number >> np.arange(8)) & 1
    row = np.repeat(np.where(bits, 235, 20).astype(np.uint8), -(-width // 8))[:width]
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def read_number(picture: Picture) -> int:
    height, width = picture.shape[:2]
    middle = picture[height // 4 : height * 3 // 4].astype(float).mean(axis=(0, 2))
    edges = np.linspace(0, width, 9)
    bars = [middle[int(a) + 1 : max(int(b) - 1, int(a) + 2)].mean() > 128 for a, b in itertools.pairwise(edges)]
    return sum(bool(bar) << bit for bit, bar in enumerate(bars))


def run_of(count: int, first: int = 0, width: int = SIDE, height: int = SIDE) -> list[Picture]:
    return [numbered(first + index, width, height) for index in range(count)]


def encode(
    pictures: Iterable[Picture],
    codec: str = "libx264",
    container: str = "mp4",
    *,
    rate: int | Fraction = 10,
    pix_fmt: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    mux: Mapping[str, str] | None = None,
    closed_gop: bool = False,
    sound: bool = False,
) -> bytes:
    """Pictures → a file, in memory, on one thread; x265 in a process of its own, as it crashes now and then on a busy machine."""
    pictures = list(pictures)
    if codec == "libx265" and multiprocessing.parent_process() is None:
        again = functools.partial(
            encode,
            pictures,
            codec,
            container,
            rate=rate,
            pix_fmt=pix_fmt,
            options=options,
            mux=mux,
            closed_gop=closed_gop,
            sound=sound,
        )
        return in_own_process(again)
    buffer = io.BytesIO()
    given = dict(X264 if codec == "libx264" else {}) | dict(options or {})
    if codec == "libx265":
        given["x265-params"] = "log-level=none:pools=1:frame-threads=1:" + given.get("x265-params", "")
    with av.open(buffer, "w", format=container, options=dict(mux or {})) as output:
        stream = add_video(output, codec, rate, given)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        if closed_gop:
            stream.codec_context.options = {**given, "flags": "+cgop"}
        audio = output.add_stream("mp3" if container == "flv" else "mp2", rate=44100) if sound else None
        seconds = 0.0
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = index
            frame.time_base = Fraction(1) / Fraction(rate)
            output.mux(stream.encode(frame))
            while audio is not None and seconds < (index + 1) / rate:
                samples = np.zeros((1, 1152), np.int16)
                samples[0] = (8000 * np.sin(np.arange(1152) * 0.05)).astype(np.int16)
                tone = av.AudioFrame.from_ndarray(samples, format="s16p", layout="mono")
                tone.sample_rate, tone.pts, tone.time_base = 44100, round(seconds * 44100), Fraction(1, 44100)
                output.mux(audio.encode(tone))
                seconds += 1152 / 44100
        output.mux(stream.encode())
        if audio is not None:
            output.mux(audio.encode())
    return buffer.getvalue()


def in_own_process(make: Callable[[], bytes], tries: int = 3) -> bytes:
    """What `make` returns, which pickles; made again where its process dies."""
    for _ in range(tries):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor, suppress(BrokenProcessPool):
            return executor.submit(make).result()
    raise RuntimeError(f"the encoder's process died {tries} times")


@dataclass(frozen=True)
class Packet:
    data: bytes
    pts: int | None
    dts: int | None
    is_key: bool

    @property
    def shown_at(self) -> int:
        """`pts` of a packet that has one."""
        assert self.pts is not None
        return self.pts

    @property
    def decoded_at(self) -> int:
        """`dts`, else `pts`."""
        return self.shown_at if self.dts is None else self.dts

    def later(self, ticks: int) -> Packet:
        """The same so much later; it states both of its times."""
        return Packet(self.data, self.shown_at + ticks, self.decoded_at + ticks, self.is_key)


def packets_of(data: bytes) -> tuple[list[Packet], Fraction]:
    """The first video's packets in the file's order, and the unit of their times."""
    with av.open(io.BytesIO(data), "r") as source:
        stream = source.streams.video[0]
        found = [Packet(bytes(p), p.pts, p.dts, p.is_keyframe) for p in source.demux(stream) if p.size]
        return found, Fraction(stream.time_base or 0)


def remux(
    data: bytes,
    container: str,
    *,
    first: int = 0,
    times: Callable[[int], int] | None = None,
    durations: Callable[[int], int] | None = None,
    from_zero: bool = False,
    mux: Mapping[str, str] | None = None,
    empty_tracks: int = 0,
) -> bytes:
    """The video's packets in another container, nothing encoded anew.

    Args:
        first: Packets before this one are left out.
        times, durations: Milliseconds of the i-th packet, instead of its own; for clips without B-frames.
        from_zero: The first packet's decoding time becomes 0.
        empty_tracks: So many video tracks without a packet before the true one.
    """
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(data), "r") as source,
        av.open(buffer, "w", format=container, options=dict(mux or {})) as output,
    ):
        stream = source.streams.video[0]
        for _ in range(empty_tracks):
            output.add_stream_from_template(stream)
        copy = output.add_stream_from_template(stream)
        start = None
        for index, packet in enumerate(p for p in source.demux(stream) if p.size):
            if index < first:
                continue
            if start is None:
                start = packet.dts
            if from_zero:
                assert packet.pts is not None and packet.dts is not None and start is not None
                packet.pts -= start
                packet.dts -= start
            if times is not None:
                packet.time_base = Fraction(1, 1000)
                packet.pts = packet.dts = times(index)
                packet.duration = durations(index) if durations else 0
            packet.stream = copy
            output.mux(packet)
    return buffer.getvalue()


def mux_packets(
    template: bytes, container: str, packets: Iterable[Packet], unit: Fraction, mux: Mapping[str, str] | None = None
) -> bytes:
    """These packets, in this order, as the one video of a file; the codec's parameters are those of `template`'s."""
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(template), "r") as source,
        av.open(buffer, "w", format=container, options=dict(mux or {})) as output,
    ):
        copy = output.add_stream_from_template(source.streams.video[0])
        for one in packets:
            packet = av.Packet(one.data)
            packet.pts, packet.dts, packet.time_base, packet.is_keyframe = one.pts, one.dts, unit, one.is_key
            packet.stream = copy
            output.mux(packet)
    return buffer.getvalue()


def boxes(data: bytes, kind: bytes) -> list[int]:
    """Where the payloads of an mp4's boxes of this kind begin, found by their four letters."""
    found, position = [], -1
    while (position := data.find(kind, position + 1)) >= 0:
        found.append(position + 4)
    return found


def patched(data: bytes, *changes: tuple[int, bytes]) -> bytes:
    """The bytes with others in some places."""
    copy = bytearray(data)
    for place, new in changes:
        copy[place : place + len(new)] = new
    return bytes(copy)


def numbers_in(data: bytes) -> list[int]:
    return [read_number(picture) for picture in decoded_frames(data)]


def open_group_start(
    codec: str, container: str, group: int = 2, count: int = 120, options: dict[str, str] | None = None
) -> bytes:
    """A stream that was cut before a keyframe whose group is open: frames that lead it, and refer over it, follow it.

    In a container with times the keyframe is at 0 and its leading frames lie before, as a remux after a cut leaves them.
    """
    options = options or (OPEN_HEVC if codec == "libx265" else OPEN_H264)
    is_raw = container in ("h264", "hevc")
    whole = encode(run_of(count), codec, container if is_raw else "matroska", options=options)
    packets, unit = packets_of(whole)
    first = [index for index, packet in enumerate(packets) if packet.is_key][group]
    if is_raw:
        return b"".join(packet.data for packet in packets[first:])
    shifted = [one.later(-packets[first].shown_at) for one in packets[first:]]
    return mux_packets(whole, container, shifted, unit, {"avoid_negative_ts": "disabled"})


def segment(first: int, count: int, *, rate: int = 10, bf: int = 0, offset: float = 0, codec: str = "libx264") -> bytes:
    """A transport stream of its own, with a clock of its own."""
    options = {"bf": str(bf), "g": "10"} | ({} if codec == "libx264" else {"q:v": "2"})
    return encode(
        run_of(count, first), codec, "mpegts", rate=rate, options=options, mux={"output_ts_offset": str(offset)}
    )


def packed_avi(
    count: int = 60, bf: int = 2, rate: int = 10, group: int = 12, signature: bytes = b"DivX503b1393p"
) -> bytes:
    """MPEG-4 in AVI as DivX packs it: a P-frame and its first B-frame in one chunk, and an empty frame in the P-frame's place."""
    source = encode(run_of(count), "mpeg4", "avi", rate=rate, options={"bf": str(bf), "g": str(group), "q:v": "2"})
    packets, unit = packets_of(source)
    width = max(1, (rate - 1).bit_length())  # of a frame's time in ticks of 1 / rate

    def is_b(packet: Packet) -> bool:
        return packet.data[packet.data.find(_VOP) + 4] >> 6 == 2

    def signed(data: bytes) -> bytes:
        at = data.find(_USER_DATA)
        return data if at < 0 else data[:at] + _USER_DATA + signature + data[data.find(b"\0\0\1", at + 4) :]

    def empty(data: bytes) -> bytes:
        """A P-frame of the same time that codes nothing."""
        at = data.find(_VOP) + 4
        bits = "".join(f"{byte:08b}" for byte in data[at : at + 12])
        head = "01" + bits[2 : bits.index("0", 2) + 1 + 1 + width + 1] + "0" + "0"
        head += "1" * (-len(head) % 8)
        return _VOP + int(head, 2).to_bytes(len(head) // 8, "big")

    chunks: list[tuple[bytes, bool]] = []
    index = 0
    while index < len(packets):
        anchor = packets[index]
        following = index + 1
        while following < len(packets) and is_b(packets[following]):
            following += 1
        run = packets[index + 1 : following]
        if run:
            chunks.append((signed(anchor.data) + run[0].data, anchor.is_key))
            chunks += [(one.data, False) for one in run[1:]]
            chunks.append((empty(anchor.data), False))
        else:
            chunks.append((signed(anchor.data), anchor.is_key))
        index = following
    return mux_packets(source, "avi", [Packet(data, at, at, key) for at, (data, key) in enumerate(chunks)], unit)


def closed_group_start(codec: str = "mpeg2video", container: str = "mpegts", count: int = 48, bf: int = 2) -> bytes:
    """MPEG-1 or -2 from a group on that is marked closed and whose first frames on screen are B-frames."""
    source = encode(run_of(count), codec, "mpegts", rate=25, options={"bf": str(bf), "g": "12", "q:v": "2"})
    packets, unit = packets_of(source)
    first = [index for index, packet in enumerate(packets) if packet.is_key][1]
    kept = packets[first:]
    at = kept[0].data.find(b"\0\0\1\xb8")
    marked = patched(kept[0].data, (at + 7, bytes([kept[0].data[at + 7] & ~0x20 | 0x40])))  # closed, and no broken link
    kept = [Packet(marked, kept[0].pts, kept[0].dts, True), *kept[1:]]
    if container == "raw":
        return b"".join(one.data for one in kept)
    return mux_packets(source, container, kept, unit)


def interlaced(container: str = "matroska", count: int = 20, first: int = 0, x264: str = "tff=1") -> bytes:
    """H.264 of interlaced frames in a file whose header says that they are progressive."""
    options = {"flags": "+ildct+ilme", "field_order": "progressive", "bf": "0", "x264-params": x264}
    return encode(run_of(count, first), "libx264", container, options=options)


def joined(one: bytes, other: bytes, container: str) -> bytes:
    """Two videos of constant rate as one: the packets of the second follow those of the first in time, parameters unchanged."""
    packets, unit = packets_of(one)
    following, _ = packets_of(other)
    step = packets[1].decoded_at - packets[0].decoded_at
    shift = packets[-1].decoded_at + step - following[0].decoded_at
    moved = [one.later(shift) for one in following]
    return mux_packets(one, container, [*packets, *moved], unit)


def with_gap(data: bytes, ordinal: int, container: str = "avi") -> bytes:
    """The file with an empty place of one frame behind one of its packets, as a recorder leaves it that was late."""
    packets, unit = packets_of(data)
    places = [at + (at > ordinal) for at in range(len(packets))]
    moved = [Packet(one.data, at, at, one.is_key) for at, one in zip(places, packets, strict=True)]
    return mux_packets(data, container, moved, unit)


def hidden_sample(count: int = 60, rate: int = 10, hidden: int = 1) -> bytes:
    """An mp4 of constant rate whose edit list leaves out its first samples."""
    data = encode(run_of(count), rate=rate, options={"bf": "0"})
    elst, mdhd, mvhd = (boxes(data, kind)[0] for kind in (b"elst", b"mdhd", b"mvhd"))
    scale, length = struct.unpack(">II", data[mdhd + 12 : mdhd + 20])
    movie_scale = struct.unpack(">I", data[mvhd + 12 : mvhd + 16])[0]
    skipped = hidden * scale // rate
    entry = struct.pack(">II", (length - skipped) * movie_scale // scale, skipped)
    return patched(data, (elst + 8, entry))


def held(times_ms: Sequence[int], last_ms: int, container: str = "mp4", codec: str = "libx264") -> bytes:
    """Pictures at these times, the last of which stays on screen for `last_ms`."""
    options = {"bf": "0"} if codec == "libx264" else {"b:v": "1M"}
    source = encode(run_of(len(times_ms)), codec, container, options=options)
    stays = [b - a for a, b in itertools.pairwise(times_ms)] + [last_ms]
    return remux(source, container, times=lambda i: times_ms[i], durations=lambda i: stays[i])


def two_tracks(
    container: str = "mp4",
    default: int = 1,
    sizes: tuple[int, int] = (64, 128),
    codecs: tuple[str, str] = ("libx264",) * 2,
) -> bytes:
    """Two video tracks: 20 frames numbered from 0, and 30 numbered from 100; one is the default."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        streams = []
        for side, codec in zip(sizes, codecs, strict=True):
            stream = add_video(output, codec, 10, {"crf": "12", "bf": "0"} if codec == "libx264" else {})
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            stream.codec_context.thread_count = 1
            streams.append(stream)
        for index, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition.default if index == default else av.stream.Disposition(0)
        for stream, first, count in zip(streams, (0, 100), (20, 30), strict=True):
            for index in range(count):
                frame = av.VideoFrame.from_ndarray(numbered(first + index, stream.width, stream.height), format="rgb24")
                frame.pts, frame.time_base = index, Fraction(1, 10)
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
    return buffer.getvalue()


def misstated_webm(width: int = 0x20, codec: str = "libvpx") -> bytes:
    """A webm whose track header gives a width of 32 where the stream's pictures are 64 wide."""
    data = encode(run_of(20), codec, "webm", options={"b:v": "1M"})
    at = next(
        index
        for index in range(len(data))
        if data[index : index + 3] == b"\xb0\x81\x40" or data[index : index + 4] == b"\xb0\x82\0\x40"
    )
    return patched(data, (at + (data[at + 1] & 15) + 1, bytes([width])))


def broken_middle(data: bytes, ordinal: int) -> bytes:
    """The file with one packet of its video overwritten by noise, its place and size kept."""
    packets, _ = packets_of(data)
    body = packets[ordinal].data
    at = data.index(body)
    noise = bytes((37 * i + 11) & 0xFF for i in range(len(body) - 8))
    return patched(data, (at + 8, noise))


def apng(
    operations: Sequence[tuple[int, int]], *, has_cover: bool = False, size: tuple[int, int] = (64, 64), first: int = 40
) -> bytes:
    """An animated PNG of whole frames.

    Args:
        operations: dispose_op and blend_op of each frame.
        has_cover: The still picture in front is none of the frames.
    """

    def chunks(number: int) -> list[tuple[bytes, bytes]]:
        data, position, found = encoded(Image.fromarray(numbered(number, *size)).convert("RGBA"), "PNG"), 8, []
        while position < len(data):
            (length,) = struct.unpack_from(">I", data, position)
            found.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
            position += 12 + length
        return found

    head = dict(chunks(first))[b"IHDR"]
    out = [b"\x89PNG\r\n\x1a\n", png_chunk(b"IHDR", head), png_chunk(b"acTL", struct.pack(">II", len(operations), 1))]
    if has_cover:
        out += [png_chunk(kind, body) for kind, body in chunks(first + 90) if kind == b"IDAT"]
    sequence = 0
    for index, (dispose, blend) in enumerate(operations):
        out.append(png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", sequence, *size, 0, 0, 1, 10, dispose, blend)))
        sequence += 1
        for kind, body in chunks(first + 17 * index):
            if kind != b"IDAT":
                continue
            if index == 0 and not has_cover:
                out.append(png_chunk(b"IDAT", body))
            else:
                out.append(png_chunk(b"fdAT", struct.pack(">I", sequence) + body))
                sequence += 1
    return b"".join(out) + png_chunk(b"IEND", b"")
