"""Files that are small and ask for much: each is a claim that some decoder has believed, here or elsewhere.

Made by code where that is shorter than the file. `DANGERS` says of each what it is to be refused with, or None for what may be
read; none may take more than a moment, or more memory than its pixels.
"""

from __future__ import annotations

import io
import struct
import wave
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av

from preprocessor.v1 import preprocessor_pb2 as pb
from tests.fuzz.structure import boxes
from tests.media import animation, moving_shapes_clip, photo
from tests.pictures import animated, png, png_chunk

_FILES = Path(__file__).with_name("files")
IMAGE, VIDEO, SOUND = pb.MODALITY_IMAGE, pb.MODALITY_VIDEO, pb.MODALITY_AUDIO


@dataclass(frozen=True, slots=True)
class Danger:
    """Attributes:
    reasons: Any of them will do; empty where the file is good and only looks dangerous.
    """

    modality: pb.Modality.ValueType
    make: Callable[[], bytes]
    reasons: frozenset[str]


@cache
def small_clip(**settings: object) -> bytes:
    return moving_shapes_clip(**{"seconds": 0.4, "width": 64, "height": 48, **settings})  # type: ignore[arg-type]


# -- images ------------------------------------------------------------------------------------------------------------


def largest_png() -> bytes:
    """65,535 pixels a side in 60 bytes."""
    return png(8, 2, b"", size=(65_535, 65_535))


def long_png() -> bytes:
    """One row of 200 million pixels: few enough in all."""
    return png(1, 0, b"", size=(200_000_000, 1))


def inflating_metadata(kind: bytes, head: bytes) -> bytes:
    """8 MiB of text or profile in 8 KB."""
    bomb = png_chunk(kind, head + zlib.compress(bytes(8 << 20), 9))
    data = photo(16, 16, "PNG")
    return data[:33] + bomb + data[33:]


def many_scans() -> bytes:
    """A progressive JPEG whose last scan is there two thousand times; each goes over the whole picture."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(photo(64, 64))).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * 2000 + data[-2:]


def webp_canvas(width: int, height: int) -> bytes:
    """An animated WebP of 96x64 that claims another canvas, for which its decoder makes room twice."""
    data = bytearray(animation("WEBP", (100,) * 3))
    start = data.index(b"VP8X") + 12
    data[start : start + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def gif_frame_beyond_its_canvas() -> bytes:
    """A canvas of 16x16 with a frame of 65,535x65,535, to which Pillow would widen it."""
    head = b"GIF89a" + struct.pack("<HHBBB", 16, 16, 0x80, 0, 0) + bytes(6)
    return head + b"\x2c" + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x02\x02\x4c\x01\x00\x3b"


def deep_exif() -> bytes:
    """EXIF directories that point at one another in a ring."""
    entry = struct.pack("<HHII", 0x8769, 4, 1, 8)
    exif = b"II*\0" + struct.pack("<IH", 8, 1) + entry + struct.pack("<I", 8)
    data = photo(16, 16, "PNG")
    return data[:33] + png_chunk(b"eXIf", exif) + data[33:]


def tiff_of_many_samples() -> bytes:
    """A TIFF of 65,535 samples a pixel."""
    data = bytearray(photo(16, 16, "TIFF"))
    (directory,) = struct.unpack_from("<I", data, 4)
    for entry in range(directory + 2, directory + 2 + 12 * data[directory], 12):
        if struct.unpack_from("<H", data, entry)[0] == 277:  # SamplesPerPixel
            struct.pack_into("<I", data, entry + 8, 65_535)
    return bytes(data)


def png_without_its_palette() -> bytes:
    """Pixels that are indices, and nothing that they are indices of; Pillow asserts that there is."""
    return png(8, 3, bytes(17 * 16), png_chunk(b"tRNS", b"\0\xff"), size=(16, 16))


def avif_on_a_stopped_clock() -> bytes:
    """An animation whose clock ticks at 0 Hz, by which Pillow divides."""
    data = bytearray(animated("AVIF"))
    for mark in (b"mdhd", b"mvhd"):
        start = data.index(mark) + 4
        offset = 20 if data[start] == 1 else 12  # ISO 14496-12, 8.4.2: behind two times, of four or of eight bytes
        data[start + offset : start + offset + 4] = bytes(4)
    return bytes(data)


# -- video -------------------------------------------------------------------------------------------------------------


def with_table(name: bytes, content: bytes) -> bytes:
    """An mp4 with one of its tables made up, and the lengths around it right."""
    data = bytearray(small_clip())
    elements = boxes(bytes(data))
    one = next(element for element in elements if data[element.start + 4 : element.start + 8] == name)
    data[one.body : one.end] = content
    growth = len(content) - (one.end - one.body)
    for box in (one, *(elements[place] for place in one.ancestors)):
        assert box.size is not None
        box.size.write(data, box.end - box.start + growth)
    return bytes(data)


def endless_sample_sizes() -> bytes:
    """4,294,967,295 samples, by count alone."""
    return with_table(b"stsz", bytes(4) + struct.pack(">II", 0, 0xFFFFFFFF))


def samples_of_one_size(count: int = 40_000_000) -> bytes:
    """Samples of a byte each, all in one chunk: an index of 36 bytes for each of them, 1.4 GB of it, from a file of 2 KB."""
    data = bytearray(with_table(b"stsz", bytes(4) + struct.pack(">II", 1, count)))
    struct.pack_into(">III", data, data.index(b"stsc") + 12, 1, count, 1)
    struct.pack_into(">I", data, data.index(b"stts") + 12, count)
    for table in (b"stss", b"ctts", b"edts"):
        data[data.index(table) : data.index(table) + 4] = b"free"
    return bytes(data)


def endless_times() -> bytes:
    """A table of composition times that says it has 4,294,967,295 entries."""
    return with_table(b"ctts", bytes(4) + struct.pack(">I", 0xFFFFFFFF) + struct.pack(">II", 0xFFFFFFFF, 0))


def endless_durations() -> bytes:
    """One entry of a table of durations that stands for 4,294,967,295 samples of the longest there is."""
    return with_table(b"stts", bytes(4) + struct.pack(">III", 1, 0xFFFFFFFF, 0x7FFFFFFF))


def days_between_frames() -> bytes:
    """Frames hours apart, a day and more in all; without the list of edits, which would end after the first."""
    data = with_table(b"stts", bytes(4) + struct.pack(">III", 1, 12, 0x7FFFFFF))
    return data.replace(b"edts", b"free", 1)


def nested_boxes() -> bytes:
    """Boxes in boxes, a hundred thousand deep, each of 8 bytes."""
    count = 100_000
    inner = b"".join(struct.pack(">I4s", 8 * (count - depth), b"moov") for depth in range(count))
    return small_clip()[:32] + inner


def many_streams(count: int = 80) -> bytes:
    """An mp4 of one real track and its copies."""
    data = bytearray(small_clip())
    elements = boxes(bytes(data))
    track = next(element for element in elements if data[element.start + 4 : element.start + 8] == b"trak")
    copies = bytes(data[track.start : track.end]) * count
    for place in track.ancestors:
        parent = elements[place]
        assert parent.size is not None
        parent.size.write(data, parent.end - parent.start + len(copies))
    data[track.end : track.end] = copies
    return bytes(data)


def matroska_of_nothing() -> bytes:
    """A good file with four megabytes of empty Void elements before its first frame."""
    return _in_cluster(b"\xec\x80" * (2 << 20))


def nested_matroska() -> bytes:
    """A block group in a block group, thirty thousand deep, each of unknown length."""
    return _in_cluster((b"\xa0\x01" + b"\xff" * 7) * 30_000)


def _in_cluster(filler: bytes) -> bytes:
    data = small_clip(container="matroska")
    start = data.index(b"\x1f\x43\xb6\x75")
    length = 9 - data[start + 4].bit_length()
    opened = data[: start + 4] + b"\x01" + b"\xff" * 7  # its length is not known
    return opened + filler + data[start + 4 + length :]


def matroska_block_of(size: int) -> bytes:
    """A block that says that it has so many bytes."""
    data = bytearray(small_clip(container="matroska"))
    start = data.index(b"\xa3", data.index(b"\x1f\x43\xb6\x75"))
    return bytes(data[: start + 1]) + b"\x08" + size.to_bytes(7, "big")[-4:] + bytes(data[start + 2 :])


def grows_to(width: int, height: int) -> bytes:
    """H.264 without a container, of 64x48, and then of another size."""
    small = small_clip(container="h264", options=(("g", "4"),))
    large = moving_shapes_clip(
        seconds=0.1, width=width, height=height, container="h264", options=(("preset", "ultrafast"),)
    )
    return small + large


def parameter_set_of(width: int, height: int) -> bytes:
    """H.264 whose first parameter set says a size that no frame of it has."""
    data = small_clip(container="h264", options=(("g", "4"), ("bf", "0")))
    start = data.index(b"\0\0\1\x67") + 3
    end = data.index(b"\0\0\1", start)
    return data[:start] + _sequence_parameters(width, height) + b"\0" + data[end:]


def _sequence_parameters(width: int, height: int) -> bytes:
    """A sequence parameter set of the baseline profile. ITU-T H.264, 7.3.2.1.1."""
    bits = "".join(
        [
            *("01100111", f"{66:08b}", "00000000", f"{62:08b}"),
            *map(_exp_golomb, (0, 0, 2, 1)),  # id, frame number, picture order by decoding, one reference
            "0",
            *map(_exp_golomb, (width // 16 - 1, height // 16 - 1)),
            *("1", "1", "0", "0", "1"),
        ]
    )
    return (
        int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big").replace(b"\0\0", b"\0\0\3")
    )


def _exp_golomb(value: int) -> str:
    digits = f"{value + 1:b}"
    return "0" * (len(digits) - 1) + digits


def vast_matroska() -> bytes:
    """A track of 65,535x65,535 pixels, as its header says."""
    data = bytearray(small_clip(codec="libvpx", container="webm", width=320, height=256))
    for element, value in ((b"\xb0\x82", 320), (b"\xba\x82", 256)):
        start = data.index(element + value.to_bytes(2, "big"))
        data[start + 2 : start + 4] = b"\xff\xff"
    return bytes(data)


def many_gif_frames() -> bytes:
    """A GIF of twenty thousand frames of one pixel, at 23 bytes each."""
    head = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + bytes(6)
    control = b"\x21\xf9\x04\0\1\0\0\0"
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + (control + frame) * 20_000 + b"\x3b"


def stream_that_comes_up_late() -> bytes:
    """An FLV in which a stream begins that its header does not announce; PyAV 18.1 counts it wrongly."""
    return (_FILES / "late-stream.flv").read_bytes()


def vast_apng() -> bytes:
    """An animation whose canvas is 16,000 pixels a side; FFmpeg takes more for damage."""
    data = bytearray(animation("PNG", (100,) * 3))
    struct.pack_into(">II", data, 16, 16_000, 16_000)
    struct.pack_into(">I", data, 29, zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def apng_of_many_frames_said() -> bytes:
    """An animation that says it has 4,294,967,295 frames, and has three."""
    data = bytearray(animation("PNG", (100,) * 3))
    start = data.index(b"acTL")
    struct.pack_into(">I", data, start + 4, 0xFFFFFFFF)
    struct.pack_into(">I", data, start + 12, zlib.crc32(bytes(data[start : start + 12])))
    return bytes(data)


def old_codec() -> bytes:
    """An AVI of a codec that is on nobody's list."""
    return small_clip(codec="ffv1", container="avi")


# -- sound -------------------------------------------------------------------------------------------------------------


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
        import numpy as np

        silence = np.zeros((1, 65_535), np.int16)
        for _ in range(900):
            frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
            frame.sample_rate = 8_000
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def _danger(modality: pb.Modality.ValueType, make: Callable[[], bytes], *reasons: str) -> Danger:
    return Danger(modality, make, frozenset(reasons))


MAX_CLIP_FRAMES = 10_000
"""To be set as a limit: a file of a million frames would take seconds to send, and to walk."""
_NO_TABLE = ("NOT_MEDIA", "CORRUPT_MEDIA", "TRUNCATED_MEDIA", "WORKER_MEMORY_EXCEEDED")
DANGERS: Mapping[str, Danger] = {
    "png of 65,535 a side": _danger(IMAGE, largest_png, "IMAGE_TOO_LARGE"),
    "png of one long row": _danger(IMAGE, long_png, "SIDE_TOO_LONG"),
    "png text that inflates": _danger(IMAGE, lambda: inflating_metadata(b"zTXt", b"c\0\0"), "METADATA_TOO_LARGE"),
    "png international text that inflates": _danger(
        IMAGE, lambda: inflating_metadata(b"iTXt", b"c\0\1\0\0\0"), "METADATA_TOO_LARGE"
    ),
    "png profile that inflates": _danger(IMAGE, lambda: inflating_metadata(b"iCCP", b"p\0\0"), "METADATA_TOO_LARGE"),
    "png exif in a ring": _danger(IMAGE, deep_exif),
    "jpeg of many scans": _danger(IMAGE, many_scans, "TOO_MANY_SCANS"),
    "webp canvas": _danger(IMAGE, lambda: webp_canvas(1 << 24, 1 << 8), "IMAGE_TOO_LARGE"),
    "gif frame beyond its canvas": _danger(IMAGE, gif_frame_beyond_its_canvas, "IMAGE_TOO_LARGE"),
    "tiff of many samples": _danger(IMAGE, tiff_of_many_samples, "NOT_MEDIA", "CORRUPT_MEDIA"),
    "png without its palette": _danger(IMAGE, png_without_its_palette, "CORRUPT_MEDIA"),
    "avif on a stopped clock": _danger(IMAGE, avif_on_a_stopped_clock, "CORRUPT_MEDIA"),
    "flv with a stream that comes up late": _danger(VIDEO, stream_that_comes_up_late, "VIDEO_TOO_LONG"),
    "mp4 sample sizes": _danger(VIDEO, endless_sample_sizes, *_NO_TABLE),
    "mp4 samples of one size": _danger(VIDEO, samples_of_one_size, "CORRUPT_MEDIA", "TRUNCATED_MEDIA"),
    "mp4 composition times": _danger(VIDEO, endless_times, *_NO_TABLE),
    "mp4 durations": _danger(VIDEO, endless_durations),
    "mp4 of frames days apart": _danger(VIDEO, days_between_frames, "VIDEO_TOO_LONG"),
    "mp4 boxes in boxes": _danger(VIDEO, nested_boxes, *_NO_TABLE),
    "mp4 of many streams": _danger(VIDEO, many_streams, "TOO_MANY_STREAMS"),
    "mkv of nothing": _danger(VIDEO, matroska_of_nothing),
    "mkv groups in groups": _danger(VIDEO, nested_matroska),
    "webm of 65,535 a side, it says": _danger(VIDEO, vast_matroska),
    "h264 that grows": _danger(VIDEO, lambda: grows_to(1280, 720), "RESOLUTION_CHANGE"),
    "h264 parameters of 16,000 a side": _danger(
        VIDEO, lambda: parameter_set_of(16_000, 16_000), "FRAME_TOO_LARGE", "UNDECODABLE_FRAME"
    ),
    "gif of many frames": _danger(VIDEO, many_gif_frames, "TOO_MANY_FRAMES"),
    "apng of 16,000 a side": _danger(VIDEO, vast_apng, "FRAME_TOO_LARGE"),
    "apng of many frames, it says": _danger(VIDEO, apng_of_many_frames_said),
    "webp animation canvas": _danger(VIDEO, lambda: webp_canvas(1 << 14, 1 << 14), "FRAME_TOO_LARGE"),
    "a codec that is not on the list": _danger(VIDEO, old_codec, "UNSUPPORTED_CODEC"),
    "wav of two thousand million hertz": _danger(
        SOUND, lambda: wav(0x7FFFFFFF, 1), "SAMPLE_RATE_TOO_HIGH", "NOT_MEDIA"
    ),
    "wav of ten million hertz": _danger(SOUND, lambda: wav(10_000_000, 1), "SAMPLE_RATE_TOO_HIGH"),
    "wav of 255 channels": _danger(SOUND, lambda: wav(16_000, 255), "TOO_MANY_CHANNELS"),
    "wav of 65,535 channels": _danger(SOUND, lambda: wav(16_000, 65_535), "TOO_MANY_CHANNELS", "CORRUPT_MEDIA"),
    "wav of one sample a second": _danger(SOUND, slow_wav, "AUDIO_TOO_LONG"),
    "flac of silence": _danger(SOUND, inflating_flac, "AUDIO_TOO_LONG"),
}
