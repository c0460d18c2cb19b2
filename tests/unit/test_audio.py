"""Sound: exact samples, resampling, mixing, and what is refused."""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Callable
from functools import cache
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, LimitExceeded, PreprocessorError, UnsupportedMedia
from preprocessor.media.audio import extract_audio
from tests.media import moving_shapes_clip, photo
from tests.sounds import RATE, encoded, tone, with_sound

LIMITS = Limits()


def wav(*channels: npt.NDArray[np.int16], rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as output:
        output.setnchannels(len(channels))
        output.setsampwidth(2)
        output.setframerate(rate)
        output.writeframes(np.stack(channels, axis=1).astype("<i2").tobytes())
    return buffer.getvalue()


@cache
def clip_with_sound() -> bytes:
    """An mp4 of one second whose picture is H.264 and whose sound is AAC."""
    return with_sound(moving_shapes_clip(seconds=1, width=64, height=64), encoded("mp4", "aac"))


def samples_of(data: bytes, rate: int = RATE) -> npt.NDArray[np.float32]:
    return extract_audio(data, rate, LIMITS)


def test_pcm_at_the_asked_rate_comes_out_exactly() -> None:
    samples = tone(RATE)
    sound = samples_of(wav(samples))
    assert (sound.dtype, sound.flags.c_contiguous) == (np.float32, True)
    assert np.array_equal(sound, samples.astype(np.float32) / 32768)


def test_the_loudest_pcm_stays_within_one() -> None:
    sound = samples_of(wav(np.array([-32768, 32767, 0] * 100, np.int16)))
    assert (sound.min(), sound.max()) == (-1.0, np.float32(32767 / 32768))


def test_flac_comes_out_exactly() -> None:
    assert np.array_equal(samples_of(encoded("flac", "flac")), tone(RATE).astype(np.float32) / 32768)


@pytest.mark.parametrize("rates", [(48_000, 16_000), (44_100, 16_000), (8_000, 16_000), (16_000, 24_000)])
def test_resampling_in_pieces_equals_resampling_at_once(rates: tuple[int, int]) -> None:
    source, target = rates
    samples = tone(source)
    frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
    frame.sample_rate = source
    resampler = av.AudioResampler(format="flt", layout="mono", rate=target)
    at_once = [piece.to_ndarray()[0] for piece in [*resampler.resample(frame), *resampler.resample(None)]]
    assert np.array_equal(samples_of(wav(samples, rate=source), target), np.concatenate(at_once))


@pytest.mark.parametrize("source", [8_000, 22_050, 44_100, 48_000])
def test_a_resampled_tone_keeps_its_start_length_and_shape(source: int) -> None:
    sound = samples_of(wav(tone(source), rate=source))
    expected = tone(RATE).astype(np.float32) / 32768
    assert abs(len(sound) - len(expected)) <= 1
    middle = slice(200, RATE - 200)  # a cosine cut off rings at both ends
    assert np.abs(sound[middle] - expected[middle]).max() < 2e-3


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [
        ("mp4", "aac", 16_000),
        ("matroska", "libopus", 48_000),
        ("ogg", "libopus", 48_000),
        ("mp3", "libmp3lame", 16_000),
    ],
)
def test_what_an_encoder_put_before_the_sound_is_dropped(container: str, codec: str, rate: int) -> None:
    sound, expected = samples_of(encoded(container, codec, rate)), tone(RATE).astype(np.float32) / 32768
    middle = slice(2_000, 14_000)
    shifts = {shift: np.abs(np.roll(sound, -shift)[middle] - expected[middle]).max() for shift in range(-15, 16)}
    assert min(shifts, key=lambda shift: shifts[shift]) == 0
    assert shifts[0] < 0.03


@pytest.mark.parametrize("source", [RATE, 48_000])
def test_stereo_is_mixed_to_the_mean(source: int) -> None:
    left, right = tone(source, frequency=300), tone(source, frequency=700, amplitude=0.9)
    mean = samples_of(wav(left, rate=source)) / 2 + samples_of(wav(right, rate=source)) / 2
    assert np.abs(samples_of(wav(left, right, rate=source)) - mean).max() < 1e-6


def test_full_scale_on_both_sides_of_float_stereo_does_not_exceed_one() -> None:
    """AAC decodes to float, which swresample would mix to 1.41 times full scale."""
    loud = samples_of(encoded("mp4", "aac", layout="stereo"))
    assert 0.45 < np.abs(loud).max() < 0.55


def test_surround_is_mixed_by_weights_that_sum_to_one() -> None:
    loudest = np.full(8_000, 32767, np.int16)
    assert np.abs(samples_of(wav(*[loudest] * 6)))[100:-100].max() <= 1.0


def test_the_sound_of_a_clip_is_that_of_its_audio_stream() -> None:
    assert np.array_equal(samples_of(clip_with_sound()), samples_of(encoded("mp4", "aac")))


def test_a_wav_of_unknown_size_is_read_to_its_end() -> None:
    """What a program writes to a pipe: both sizes are the largest that fit."""
    samples = tone(RATE, 0.7)
    data = bytearray(wav(samples))
    data[4:8] = data[40:44] = b"\xff" * 4
    assert np.array_equal(samples_of(bytes(data)), samples.astype(np.float32) / 32768)


def test_a_change_of_channels_inside_a_file_is_followed() -> None:
    mono, stereo = encoded("adts", "aac"), encoded("adts", "aac", layout="stereo")
    sound = samples_of(mono + stereo)
    assert len(sound) == len(samples_of(mono)) + len(samples_of(stereo))


def refused(data: bytes, limits: Limits = LIMITS) -> PreprocessorError:
    with pytest.raises(PreprocessorError) as caught:
        extract_audio(data, RATE, limits, "sound-3")
    assert "sound-3" in caught.value.message
    return caught.value


def unknown_codec() -> bytes:
    return encoded("matroska", "libopus", 48_000).replace(b"A_OPUS", b"A_ZZZZ")


def damaged_in_the_middle() -> bytes:
    data = bytearray(encoded("mp4", "aac"))
    start = data.index(b"mdat") + 4
    data[start + 1_000 : start + 2_500] = b"\xff" * 1_500
    return bytes(data)


def big_endian() -> bytes:
    samples = tone(RATE).astype(">i2").tobytes()
    head = struct.pack(">4sI4s4sIHHIIHH", b"RIFX", 36 + len(samples), b"WAVE", b"fmt ", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    return head + struct.pack(">4sI", b"data", len(samples)) + samples


@pytest.mark.parametrize(
    ("make", "kind", "reason"),
    [
        (lambda: b"", UnsupportedMedia, "EMPTY_MEDIA"),
        (lambda: b"no sound at all" * 50, UnsupportedMedia, "NOT_MEDIA"),
        (lambda: encoded("mp4", "aac")[:-2_000], CorruptMedia, "TRUNCATED_MEDIA"),  # without its index at the end
        (lambda: encoded("mp4", "aac")[:-300], CorruptMedia, "TRUNCATED_MEDIA"),
        (lambda: moving_shapes_clip(seconds=1, width=64, height=64), UnsupportedMedia, "NO_AUDIO_STREAM"),
        (photo, UnsupportedMedia, "NOT_MEDIA"),
        (unknown_codec, UnsupportedMedia, "UNSUPPORTED_CODEC"),
        (lambda: wav(tone(RATE))[:-5_000], CorruptMedia, "TRUNCATED_MEDIA"),
        (damaged_in_the_middle, CorruptMedia, "UNDECODABLE_FRAME"),
        (lambda: wav(np.zeros(0, np.int16)), CorruptMedia, "CORRUPT_MEDIA"),
        (big_endian, UnsupportedMedia, "UNSUPPORTED_FORMAT"),
    ],
    ids=[
        *(
            "empty",
            "text",
            "no index",
            "half an index",
            "video",
            "photo",
            "codec",
            "truncated",
            "damaged",
            "no samples",
        ),
        "big-endian",
    ],
)
def test_a_file_without_whole_sound_is_refused(
    make: Callable[[], bytes], kind: type[PreprocessorError], reason: str
) -> None:
    error = refused(make())
    assert (type(error), error.reason) == (kind, reason)


def test_damage_is_named_by_its_time() -> None:
    assert "the sound at 0." in refused(damaged_in_the_middle()).message


def test_a_sound_longer_than_the_limit_is_refused() -> None:
    error = refused(wav(tone(RATE + 1)), Limits(max_audio_seconds=1))
    assert (type(error), error.reason) == (LimitExceeded, "AUDIO_TOO_LONG")


def test_a_sound_as_long_as_the_limit_is_accepted() -> None:
    assert len(extract_audio(wav(tone(RATE)), RATE, Limits(max_audio_seconds=1))) == RATE


@pytest.mark.parametrize(
    ("limits", "reason"),
    [(Limits(max_audio_rate_hz=RATE - 1), "SAMPLE_RATE_TOO_HIGH"), (Limits(max_audio_channels=1), "TOO_MANY_CHANNELS")],
)
def test_rate_and_channels_have_limits_of_their_own(limits: Limits, reason: str) -> None:
    assert refused(wav(tone(100), tone(100)), limits).reason == reason


def test_a_slow_rate_is_refused_before_it_is_blown_up() -> None:
    """64,000 samples at 1 Hz would be 4 GB at 16 kHz."""
    assert refused(wav(np.zeros(64_000, np.int16), rate=1)).reason == "AUDIO_TOO_LONG"


def test_a_playlist_opens_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "private.wav").write_bytes(wav(tone(RATE)))
    monkeypatch.chdir(tmp_path)
    assert isinstance(refused(b"ffconcat version 1.0\nfile private.wav\n"), PreprocessorError)


class Stopped(Exception):
    pass


def test_a_check_stops_the_work_between_packets() -> None:
    calls = []

    def check() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        extract_audio(encoded("mp4", "aac"), RATE, LIMITS, check=check)
    assert len(calls) == 3


def test_damaged_sound_is_read_or_refused_and_nothing_else() -> None:
    random = np.random.default_rng(3)
    files = [
        wav(tone(RATE, 0.2)),
        *(encoded(*kind, seconds=0.2) for kind in (("mp4", "aac"), ("ogg", "libopus", 48_000))),
    ]
    files += [encoded("flac", "flac", seconds=0.2), encoded("mp3", "libmp3lame", seconds=0.2)]
    results = set()
    for turn in range(150):
        data = bytearray(files[turn % len(files)])
        for position in random.integers(0, len(data), random.integers(1, 6)):
            data[position] = random.integers(256)
        if turn % 5 == 0:
            del data[random.integers(1, len(data)) :]
        try:
            results.add(extract_audio(bytes(data), RATE, Limits(max_audio_seconds=60)).dtype.name)
        except PreprocessorError as error:
            results.add(error.reason)
    assert {"float32", "NOT_MEDIA"} < results


def test_header_lies_about_the_number_of_samples_are_refused() -> None:
    data = bytearray(wav(tone(RATE, 0.1)))
    data[40:44] = struct.pack("<I", 1 << 20)
    data[4:8] = struct.pack("<I", (1 << 20) + 36)
    assert refused(bytes(data)).reason == "TRUNCATED_MEDIA"
