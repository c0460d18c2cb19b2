"""The sound of a file in memory → float32 mono at the rate a model wants.

FFmpeg does all of it, a packet at a time, so that only the result is held in memory:

* Demuxing and decoding, from any container with sound, a video included. FFmpeg drops what an encoder put before the
  first sample (AAC priming, MP3 and Opus delay) where the container states it, and what an edit list cuts off; a raw ADTS or
  MPEG-TS stream states nothing, so that its priming stays in. Sample 0 is the first sound that is there: silence is
  neither put before a stream that starts after the video, nor into a gap.
* Mixing to mono by swresample, its weights scaled so that their sum is 1 (`rematrix_maxval`): stereo is
  (left + right) / 2, which is also the mean that transformers' `load_audio` takes with soundfile; of 5.1 the centre weighs
  most and LFE is left out. Unscaled, swresample would mix full-scale float stereo to 1.41.
* Resampling by swresample's default filter. A file already at the asked rate is not filtered: 16-bit PCM comes out as
  sample / 32768 exactly.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction

import av
import av.container
import av.error
import numpy as np
import numpy.typing as npt

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, LimitExceeded
from preprocessor.media.checks import keep_going
from preprocessor.media.container import read_packets, truncated
from preprocessor.media.streams import open_sound
from preprocessor.media.truncation import ends_early

_STATE_SAMPLES = frozenset({"flac"})  # formats that state how many samples they hold, exactly

# What a program that streams WAV writes for the size it does not know yet: 0, or the most that fits (ffmpeg, sox).
_LARGEST_KNOWN_WAV_BYTES = 0x7FFF_0000


def extract_audio(
    data: bytes,
    sample_rate_hz: int,
    limits: Limits,
    key: str = "audio",
    check: Callable[[], None] = keep_going,
) -> npt.NDArray[np.float32]:
    """Decode a file's main sound track, mix it to mono and resample it.

    Args:
        data: The whole file, of sound or of video.
        sample_rate_hz: The rate of the answer, above 0.
        limits: Seconds are counted in samples while decoding, rate and channels looked at in each frame: headers may lie.
        key: The caller's name for it, for messages.
        check: Called between packets; raises to stop the work.
    Returns:
        float32 [samples], C-contiguous. Nominally -1 to 1; a lossy codec may overshoot as it does in FFmpeg.
    Raises:
        UnsupportedMedia: `EMPTY_MEDIA`, `NOT_MEDIA`, `NO_AUDIO_STREAM` or `UNSUPPORTED_CODEC`.
        CorruptMedia: `TRUNCATED_MEDIA` where the file ends inside a packet, `UNDECODABLE_FRAME` where a packet cannot be
            decoded (the message names its time), `CORRUPT_MEDIA` otherwise.
        LimitExceeded: `AUDIO_TOO_LONG`, `SAMPLE_RATE_TOO_HIGH`, `TOO_MANY_CHANNELS`, `TOO_MANY_STREAMS`.
    """
    if ends_early(data):
        raise truncated(key)
    pieces: list[npt.NDArray[np.float32]] = []
    with open_sound(data, key, limits, check) as (container, stream):
        _check_kind(stream.codec_context.rate, stream.codec_context.channels, limits, key)
        resampler = _MonoResampler(sample_rate_hz)
        seconds = Fraction(0)
        for frame in _decoded(container, stream, data, key, check):
            _check_kind(frame.sample_rate, frame.layout.nb_channels, limits, key)
            seconds += _seconds(frame)
            if seconds > limits.max_audio_seconds:  # before resampling: a file of 1 Hz would grow 16,000-fold
                raise LimitExceeded(
                    f"{key}: the sound is longer than the {limits.max_audio_seconds} s that are accepted",
                    reason="AUDIO_TOO_LONG",
                    media_key=key,
                )
            pieces += resampler.resample(frame)
        pieces += resampler.flush()
        stated = (stream.duration or 0) * (stream.time_base or 0) if container.format.name in _STATE_SAMPLES else 0
        if seconds < stated:
            raise truncated(key, f", {float(seconds):.3f} s into its sound")
    if not any(len(piece) for piece in pieces):
        raise CorruptMedia(f"{key}: the audio stream holds no samples", media_key=key)
    return np.concatenate(pieces)


def _check_kind(rate_hz: int, channel_count: int, limits: Limits, key: str) -> None:
    """Before a resampler sees it, whose filter grows with the rate."""
    if rate_hz > limits.max_audio_rate_hz:
        raise LimitExceeded(
            f"{key}: the sound has {rate_hz} samples a second; at most {limits.max_audio_rate_hz} are accepted",
            reason="SAMPLE_RATE_TOO_HIGH",
            media_key=key,
        )
    if channel_count > limits.max_audio_channels:
        raise LimitExceeded(
            f"{key}: the sound has {channel_count} channels; at most {limits.max_audio_channels} are accepted",
            reason="TOO_MANY_CHANNELS",
            media_key=key,
        )


class _MonoResampler:
    """swresample to mono float, which may be given frames of changing rate, layout and format."""

    def __init__(self, sample_rate_hz: int) -> None:
        self._sample_rate_hz = sample_rate_hz
        self._source: tuple[str, str, int] | None = None
        self._resampler: av.AudioResampler | None = None

    def resample(self, frame: av.AudioFrame) -> list[npt.NDArray[np.float32]]:
        source = (frame.format.name, frame.layout.name, frame.sample_rate)
        finished = []
        if source != self._source:  # PyAV's resampler takes one kind; FFmpeg's command line starts anew here, too
            finished = self.flush()
            self._source = source
            self._resampler = av.AudioResampler(
                format="flt", layout="mono", rate=self._sample_rate_hz, options={"rematrix_maxval": "1.0"}
            )
        assert self._resampler is not None
        return finished + [_samples(piece) for piece in self._resampler.resample(frame)]

    def flush(self) -> list[npt.NDArray[np.float32]]:
        """The last samples, which the filter was holding back."""
        if self._resampler is None:
            return []
        return [_samples(piece) for piece in self._resampler.resample(None) if piece is not None]


def _samples(frame: av.AudioFrame) -> npt.NDArray[np.float32]:
    """The samples of a mono float frame, float32 [samples], copied out of FFmpeg's buffer."""
    return frame.to_ndarray().reshape(-1).astype(np.float32, copy=False)  # "flt" is float32 already


def _decoded(
    container: av.container.InputContainer,
    stream: av.AudioStream,
    data: bytes,
    key: str,
    check: Callable[[], None],
) -> Iterator[av.AudioFrame]:
    """Every frame of the stream."""
    seconds = Fraction(0)
    packets = read_packets(container, stream, key, check)
    for packet in itertools.chain(packets, [None]):
        if packet is not None and packet.is_corrupt and not _is_wav_of_unknown_size(data):
            raise truncated(key, f", {float(seconds):.3f} s into its sound")
        try:
            frames = stream.codec_context.decode(packet)
        except av.error.InvalidDataError as error:
            if next(packets, None) is None:  # formats without lengths: the rest of a frame is missing
                raise truncated(key, f", or is damaged at its end, {float(seconds):.3f} s into its sound") from error
            raise CorruptMedia(
                f"{key}: the sound at {float(seconds):.3f} s cannot be decoded; the file is damaged there",
                reason="UNDECODABLE_FRAME",
                media_key=key,
            ) from error
        for frame in frames:
            seconds += _seconds(frame)
            yield frame


def _seconds(frame: av.AudioFrame) -> Fraction:
    """The frame's length; exact, so that a limit of 60 s accepts 60 s."""
    return Fraction(frame.samples, frame.sample_rate or 1)


def _is_wav_of_unknown_size(data: bytes) -> bool:
    """Whether a WAV was written to a pipe: it ends where it ends, which FFmpeg takes for too early."""
    riff_bytes = int.from_bytes(data[4:8], "little")
    return data[:4] == b"RIFF" and data[8:12] == b"WAVE" and not 0 < riff_bytes < _LARGEST_KNOWN_WAV_BYTES
