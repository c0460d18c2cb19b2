"""Opening a file of FFmpeg's that is held in memory, and reading its packets.

FFmpeg must read the given bytes and nothing else. Some "media" are lists of other files: an ffconcat text of 40 bytes makes a
plain `av.open` decode a local file, an SDP text makes it open a socket, and `io_open` hooks see neither, since those demuxers
open their parts themselves. So formats are on an allowlist (`VIDEO_FORMATS`, `SOUND_FORMATS`), and no protocol is allowed.
`tests/unit/test_hostile_files.py` checks that they open nothing. Decoders are on an allowlist too (`codecs`), and limited to
the largest frame size, wherever in the file a size is stated.

FFmpeg may read for seconds between two packets, over empty elements and unwanted streams. So the check that ends the work is
called whenever it reads bytes (`_Watched`), and not only between packets.

FFmpeg's errors are mapped here:

| while | FFmpeg says | ours |
|---|---|---|
| opening | anything, and the file's structure shows that its end is missing (`truncation`) | `CorruptMedia`, `TRUNCATED_MEDIA` |
| opening | anything else, of a format that is known and not on the list | `UnsupportedMedia`, `UNSUPPORTED_FORMAT` |
| opening | anything else: unknown, not on the list, damaged from the start | `UnsupportedMedia`, `NOT_MEDIA` |
| reading, decoding | anything that is not handled nearer | `CorruptMedia`, `CORRUPT_MEDIA` |
| any of it | there is no memory, which it also says to a size that no memory has | `LimitExceeded`, `WORKER_MEMORY_EXCEEDED` |
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import av
import av.container
import av.error

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, LimitExceeded, UnsupportedMedia
from preprocessor.media.codecs import ALLOWED_DECODERS, SOUND_DECODERS, VIDEO_DECODERS
from preprocessor.media.truncation import ends_early
from preprocessor.media.unread_formats import unread_container

_CONTAINERS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf")

VIDEO_FORMATS = (
    *_CONTAINERS,
    # moving pictures without sound, and streams without a container
    *("gif", "apng", "ivf", "obu", "h264", "hevc", "m4v", "mpegvideo", "mjpeg", "dv"),
)
"""FFmpeg's names of the demuxers that may run: formats that hold their own frames and refer to no other file."""

SOUND_FORMATS = (
    *_CONTAINERS,
    *("wav", "w64", "aiff", "caf", "au", "flac", "mp3", "aac", "ac3", "eac3", "amr", "wv"),
)
"""The same for sound."""

_HEAD_BYTES = 1024  # of a file, to name it by

_Stream = TypeVar("_Stream", av.VideoStream, av.AudioStream)


def keep_going() -> None:
    """A check that never raises."""


class _Watched(io.BytesIO):
    """A file in memory that reports its end once the check has raised; `stopped_by` is what it raised.

    FFmpeg handles the end of a file everywhere, but passes an exception on only from some places.
    """

    def __init__(self, data: bytes, check: Callable[[], None]) -> None:
        super().__init__(data)
        self._check = check
        self.stopped_by: Exception | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        if self.stopped_by is None:
            try:
                self._check()
            except Exception as error:  # whatever a check raises goes to the caller, past FFmpeg
                self.stopped_by = error
        return b"" if self.stopped_by is not None else super().read(size)


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
    with _open(data, key, VIDEO_FORMATS, what, max_frame_pixels, check, decoders) as container:
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


def truncated(key: str, what: str = "") -> CorruptMedia:
    """The error for a file whose end is missing; `what` says more of where."""
    return CorruptMedia(
        f"{key}: the file ends early{what}; send the complete file", reason="TRUNCATED_MEDIA", media_key=key
    )


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
    if data[:4] == b"RIFX":  # FFmpeg 8.1, wavdec.c: the header is read as big-endian, the samples are not
        raise UnsupportedMedia(
            f"{key}: the file is a big-endian WAV (RIFX), not {what[0]} that can be read; convert it to FLAC",
            reason="UNSUPPORTED_FORMAT",
            media_key=key,
        )
    with _open(data, key, SOUND_FORMATS, what, limits.max_frame_pixels, check) as container:
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


@contextmanager
def _open(
    data: bytes,
    key: str,
    formats: Sequence[str],
    what: tuple[str, str],
    max_frame_pixels: int,
    check: Callable[[], None],
    decoders: Iterable[str] = ALLOWED_DECODERS,
) -> Iterator[av.container.InputContainer]:
    """Open bytes as one of some formats; this module's head says what becomes of errors, here and inside.

    Args:
        what: The kind of file that it should be, and examples of such.
    """
    if not data:
        raise UnsupportedMedia(f"{key}: the upload is empty; send the whole file", reason="EMPTY_MEDIA", media_key=key)
    source = _Watched(data, check)
    try:
        with _opened(source, key, formats, *what, max_frame_pixels, decoders) as container:
            yield container
    except Exception:
        if source.stopped_by is not None:  # the error follows from the end that the check made
            raise source.stopped_by from None
        raise
    if source.stopped_by is not None:
        raise source.stopped_by


@contextmanager
def _opened(
    source: _Watched,
    key: str,
    formats: Sequence[str],
    kind: str,
    examples: str,
    max_frame_pixels: int,
    decoders: Iterable[str],
) -> Iterator[av.container.InputContainer]:
    options = {
        "format_whitelist": ",".join(formats),
        "codec_whitelist": ",".join(decoders),
        "protocol_whitelist": "none",
    }
    bounds = {"max_pixels": str(max_frame_pixels)}  # where FFmpeg decodes a frame to learn what a stream is
    try:
        container = av.open(source, mode="r", metadata_errors="ignore", container_options=options, options=bounds)
    except av.error.MemoryError as error:
        raise _no_memory(key) from error
    except (EOFError, av.error.FFmpegError) as error:
        if isinstance(error, EOFError) or ends_early(source.getvalue()):
            raise truncated(key, ", inside its header or index") from error
        if (known := unread_container(bytes(source.getbuffer()[:_HEAD_BYTES]))) is not None:
            what, advice = known
            raise UnsupportedMedia(
                f"{key}: the file is {what}, not {kind} that can be read; {advice}",
                reason="UNSUPPORTED_FORMAT",
                media_key=key,
            ) from error
        raise UnsupportedMedia(
            f"{key}: not {kind} that can be read; send a complete {examples}",
            reason="NOT_MEDIA",
            media_key=key,
        ) from error
    with container:
        try:
            yield container
        except av.error.MemoryError as error:
            raise _no_memory(key) from error
        except av.error.FFmpegError as error:
            raise CorruptMedia(f"{key}: the file cannot be decoded ({error.strerror})", media_key=key) from error


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


def _no_memory(key: str) -> LimitExceeded:
    return LimitExceeded(
        f"{key}: reading the file takes more memory than a worker may use; it is damaged, or too large for this deployment",
        reason="WORKER_MEMORY_EXCEEDED",
        media_key=key,
    )


def read_packets(
    container: av.container.InputContainer, stream: _Stream, key: str, check: Callable[[], None]
) -> Iterator[av.Packet[_Stream]]:
    """The stream's packets in decode order, empty ones left out; `check` is called before each.

    Two walks over the same bytes give the same packets, so a packet's place in the walk names it.

    Raises:
        CorruptMedia: FFmpeg cannot read on.
    """
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except IndexError:  # PyAV 18.1 stumbles at the end of a file in which streams have come up while it was reading
            packet = None
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError as error:
            raise CorruptMedia(f"{key}: the file cannot be read on ({error.strerror})", media_key=key) from error
        check()  # at the end, too: it may be one that `_Watched` reported
        if packet is None:
            return
        if packet.size:  # an empty one would tell the decoder that the file ends
            yield packet
