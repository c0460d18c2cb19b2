"""Which stream of a file is read, and whether its decoder may run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import av
import av.container

from preprocessor.config import Limits
from preprocessor.errors import LimitExceeded, UnsupportedMedia
from preprocessor.media.checks import keep_going
from preprocessor.media.codecs import ALLOWED_DECODERS, SOUND_DECODERS, VIDEO_DECODERS
from preprocessor.media.container import SOUND_FORMATS, VIDEO_FORMATS, open_container, truncated, unread
from preprocessor.media.truncation import ends_early
from preprocessor.media.unread_formats import HEAD_BYTES, misread_sound


@contextmanager
def open_video(
    data: bytes,
    key: str,
    max_frame_pixels: int,
    check: Callable[[], None] = keep_going,
    decoders: Iterable[str] = ALLOWED_DECODERS,
    stream_index: int | None = None,
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file at one of its video streams.

    Args:
        max_frame_pixels: The decoder refuses to make a larger picture.
        check: Called whenever FFmpeg takes bytes; what it raises ends the reading.
        decoders: Those that may run while the file is opened, to learn what the header does not say.
        stream_index: Which stream; None takes the first of `video_streams`.
    Raises:
        UnsupportedMedia: `EMPTY_MEDIA`, `NOT_MEDIA`, `NO_VIDEO_STREAM`, or `UNSUPPORTED_CODEC`.
        CorruptMedia: `TRUNCATED_MEDIA`, or what is raised inside.
    """
    what = ("a video", "mp4, mov, mkv, webm, avi, ts or gif")
    with open_container(data, key, VIDEO_FORMATS, what, max_frame_pixels, check, decoders) as container:
        streams = video_streams(container)
        if stream_index is not None:
            streams = [stream for stream in streams if stream.index == stream_index]
        if not streams and ends_early(data):
            raise truncated(key)
        if not streams:
            raise UnsupportedMedia(
                f"{key}: the file holds no video stream; send a video, or declare it with its true modality",
                reason="NO_VIDEO_STREAM",
                media_key=key,
            )
        stream = streams[0]
        if stream.codec_context is None or stream.codec_context.name not in VIDEO_DECODERS:
            raise _no_decoder(key, "video", "H.264, HEVC, VP9 or AV1")
        # Frame threads make other pictures of some damage that nothing reports: of 2 in 600 randomly damaged H.264 files.
        stream.thread_type = "NONE"
        stream.codec_context.options = {"max_pixels": str(max_frame_pixels)}
        _discard_others(container, stream)
        yield container, stream


def video_streams(container: av.container.InputContainer) -> list[av.VideoStream]:
    """The streams that may be meant, best first: FFmpeg's own choice, then default ones. A cover picture is none.

    Source: av_find_best_stream of libavformat, as FFmpeg's players use it.
    """
    best = container.streams.best("video")
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    known = [stream for stream in streams if stream.codec_context is not None] or streams
    return sorted(known, key=lambda s: (s is not best, not s.disposition & av.stream.Disposition.default))


@contextmanager
def open_sound(
    data: bytes, key: str, limits: Limits, check: Callable[[], None] = keep_going
) -> Iterator[tuple[av.container.InputContainer, av.AudioStream]]:
    """Open a file, of sound or of video, at its main audio stream.

    Args:
        check: As `open_video`'s.
    Raises:
        UnsupportedMedia: `EMPTY_MEDIA`, `NOT_MEDIA`, `UNSUPPORTED_FORMAT`, `NO_AUDIO_STREAM`, or `UNSUPPORTED_CODEC`.
        CorruptMedia: `TRUNCATED_MEDIA`, or what is raised inside.
        LimitExceeded: `TOO_MANY_STREAMS`.
    """
    what = ("a file with sound", "wav, mp3, flac, ogg, m4a, mp4 or mkv")
    if (known := misread_sound(bytes(data[:HEAD_BYTES]))) is not None:
        raise unread(key, what[0], *known)
    with open_container(data, key, SOUND_FORMATS, what, limits.max_frame_pixels, check) as container:
        check_streams(container, limits, key)
        if not container.streams.audio:
            raise UnsupportedMedia(
                f"{key}: the file holds no sound; send one that does, or leave its sound out",
                reason="NO_AUDIO_STREAM",
                media_key=key,
            )
        # FFmpeg's choice, as of its command line: by disposition and channels. None where it can decode none.
        best = container.streams.best("audio")
        stream = best if isinstance(best, av.AudioStream) else container.streams.audio[0]
        if stream.codec_context is None or stream.codec_context.name not in SOUND_DECODERS:
            raise _no_decoder(key, "sound", "AAC, Opus, MP3, FLAC or PCM")
        stream.codec_context.thread_type = "NONE"  # one worker, one core
        _discard_others(container, stream)
        yield container, stream


def check_streams(container: av.container.InputContainer, limits: Limits, key: str) -> None:
    """Raises:
    LimitExceeded: `TOO_MANY_STREAMS`.
    """
    if len(container.streams) > limits.max_streams:
        raise LimitExceeded(
            f"{key}: the file holds {len(container.streams)} streams; at most {limits.max_streams} are accepted",
            reason="TOO_MANY_STREAMS",
            media_key=key,
        )


def _discard_others(container: av.container.InputContainer, wanted: av.stream.Stream) -> None:
    """Have the demuxer skip the other streams."""
    for stream in container.streams:
        if stream.index != wanted.index:
            stream.discard = av.stream.Discard.all


def _no_decoder(key: str, what: str, codecs: str) -> UnsupportedMedia:
    return UnsupportedMedia(
        f"{key}: no decoder for the {what}'s codec; re-encode it as {codecs}",
        reason="UNSUPPORTED_CODEC",
        media_key=key,
    )
