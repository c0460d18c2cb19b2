"""A file that is cut anywhere is refused as cut, as far as its structure can tell; a whole one never is."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping

import av
import numpy as np
import pytest

from preprocessor.config import Limits
from preprocessor.errors import PreprocessorError
from preprocessor.media.audio import extract_audio
from preprocessor.media.truncation import ends_early
from preprocessor.media.video import probe_video
from preprocessor.types.request import OnDamage
from tests.media import animation
from tests.odd_clips import boxes, encode, patched, run_of

LIMITS = Limits()
CUT_COUNT = 12


def clip(codec: str, container: str, *, mux: Mapping[str, str] | None = None, sound: bool = False) -> bytes:
    return encode(run_of(40), codec, container, rate=25, options={"g": "10"}, mux=mux, sound=sound)


VIDEOS: Mapping[str, Callable[[], bytes]] = {
    "mp4": lambda: clip("libx264", "mp4", sound=True),
    "mp4, index in front": lambda: index_in_front(clip("libx264", "mp4")),
    "mp4, in fragments": lambda: clip("libx264", "mp4", mux={"movflags": "frag_keyframe+empty_moov"}),
    "mov": lambda: clip("mpeg4", "mov"),
    "mkv": lambda: clip("libx264", "matroska", sound=True),
    "webm": lambda: clip("libvpx-vp9", "webm"),
    "avi": lambda: clip("mpeg4", "avi", sound=True),
    "flv": lambda: clip("flv", "flv", sound=True),
    "asf": lambda: clip("wmv2", "asf", sound=True),
    "mpeg ps": lambda: clip("mpeg2video", "vob", sound=True),
    "mpeg ts": lambda: clip("mpeg2video", "mpegts", sound=True),
    "mxf": lambda: clip("mpeg2video", "mxf"),
    "gif": lambda: animation("GIF", (100,) * 4),
    "apng": lambda: animation("PNG", (100,) * 4),
    "webp": lambda: animation("WEBP", (100,) * 4),
}
BEGINNING_BYTES = 2_000  # TS and IVF are known by their first packets


def index_in_front(data: bytes) -> bytes:
    """An mp4 whose `moov` comes before its `mdat`, the places in it moved along."""
    index = data[data.index(b"moov") - 4 :]
    start = data.index(b"mdat") - 4
    table = boxes(index, b"stco")[0]
    count = int.from_bytes(index[table + 4 : table + 8], "big")
    moved = [
        (table + 8 + 4 * at, (int.from_bytes(index[table + 8 + 4 * at :][:4], "big") + len(index)).to_bytes(4, "big"))
        for at in range(count)
    ]
    return data[:start] + patched(index, *moved) + data[start : data.index(b"moov") - 4]


def cuts(data: bytes, seed: str) -> list[int]:
    places = random.Random(seed)
    return sorted(
        {
            len(data) - 2,
            *(places.randrange(min(len(data) // 3, BEGINNING_BYTES), len(data) - 1) for _ in range(CUT_COUNT)),
        }
    )


def reason(work: Callable[[], object]) -> str:
    try:
        work()
    except PreprocessorError as error:
        return error.reason
    return "read"


@pytest.mark.parametrize("name", VIDEOS)
def test_a_whole_video_is_not_taken_for_cut(name: str) -> None:
    data = VIDEOS[name]()
    assert not ends_early(data)
    assert not probe_video(data, LIMITS).is_truncated


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_cut_anywhere_is_refused_as_cut(name: str) -> None:
    data = VIDEOS[name]()
    found = {end: reason(lambda end=end: probe_video(data[:end], LIMITS)) for end in cuts(data, name)}  # type: ignore[misc]
    assert found == dict.fromkeys(found, "TRUNCATED_MEDIA")


@pytest.mark.parametrize("name", [name for name in VIDEOS if name not in ("mp4", "mov", "apng", "webp", "gif")])
def test_a_tolerant_caller_gets_what_a_cut_video_still_holds(name: str) -> None:
    data = VIDEOS[name]()
    facts = probe_video(data[: len(data) * 4 // 5], LIMITS, on_damage=OnDamage.REPEAT)
    assert facts.is_truncated
    assert 0 < facts.frame_count <= 40


@pytest.mark.parametrize("share", [0, 0.05, 0.1, 0.3, 0.5, 0.9, 0.99])
def test_where_an_index_is_cut_makes_no_difference(share: float) -> None:
    data = VIDEOS["mp4"]()
    start = data.index(b"moov") - 4
    end = start + 12 + int((len(data) - start - 13) * share)
    assert reason(lambda: probe_video(data[:end], LIMITS)) == "TRUNCATED_MEDIA"


def test_a_segment_that_states_too_much_is_whole_if_its_index_is_there() -> None:
    data = VIDEOS["mkv"]()
    start = data.index(b"\x18\x53\x80\x67") + 4
    assert not ends_early(patched(data, (start, b"\x01" + (1 << 30).to_bytes(7, "big"))))


def sound(codec: str, container: str, rate: int = 16_000) -> Callable[[], bytes]:
    """Two seconds of a tone."""

    def make() -> bytes:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=container) as output:
            stream = output.add_stream(codec, rate=rate, layout="mono")
            assert isinstance(stream, av.AudioStream)
            size = stream.codec_context.frame_size or 1024
            for start in range(0, 2 * rate, size):
                samples = (np.sin(np.arange(start, start + size) * 0.07) * 12_000).astype(np.int16)[np.newaxis]
                frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
                frame.sample_rate, frame.pts = rate, start
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
        return buffer.getvalue()

    return make


SOUNDS: Mapping[str, Callable[[], bytes]] = {
    "wav": sound("pcm_s16le", "wav"),
    "wav, adpcm": sound("adpcm_ms", "wav"),
    "w64": sound("pcm_s16le", "w64"),
    "aiff": sound("pcm_s16be", "aiff"),
    "caf": sound("pcm_s16be", "caf"),
    "au": sound("pcm_s16be", "au"),
    "flac": sound("flac", "flac"),
    "mp3": sound("libmp3lame", "mp3"),
    "mp2": sound("mp2", "mp2", 48_000),
    "aac": sound("aac", "adts"),
    "ac3": sound("ac3", "ac3", 48_000),
    "eac3": sound("eac3", "eac3", 48_000),
    "amr": sound("libopencore_amrnb", "amr", 8_000),
    "ogg, opus": sound("libopus", "ogg", 48_000),
    "ogg, flac": sound("flac", "oga"),
    "m4a": sound("aac", "ipod"),
    "mkv": sound("aac", "matroska"),
    "flv": sound("libmp3lame", "flv", 44_100),
    "mpeg ps": sound("mp2", "mpeg", 48_000),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_a_sound_track_cut_anywhere_is_refused_as_cut(name: str) -> None:
    data = SOUNDS[name]()
    assert not ends_early(data)
    assert len(extract_audio(data, 16_000, LIMITS)) >= 31_000
    places = [
        end for end in cuts(data, name) if name != "amr" or (end - 6) % 13
    ]  # its frames have 13 bytes: without the last it is whole
    found = {end: reason(lambda end=end: extract_audio(data[:end], 16_000, LIMITS)) for end in places}  # type: ignore[misc]
    assert found == dict.fromkeys(found, "TRUNCATED_MEDIA")
