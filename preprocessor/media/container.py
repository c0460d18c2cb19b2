"""Opening a file of FFmpeg's that is held in memory, and reading its packets.

FFmpeg reads the bytes it is given and nothing else. Some "media" are lists of other files: an ffconcat text of 40 bytes
makes a plain `av.open` decode a file of this machine, an SDP text makes it open a socket, and `io_open` hooks see neither,
for those demuxers open their parts themselves. So formats are named (`VIDEO_FORMATS`, `SOUND_FORMATS`), and no protocol is
allowed to any of them. `tests/unit/test_hostile_files.py` watches that they open nothing.

FFmpeg's errors become ours here:

| while | FFmpeg says | ours |
|---|---|---|
| opening | the file ends inside its header or index (EOF) | `CorruptMedia`, `TRUNCATED_MEDIA` |
| opening | anything else: unknown, not on the list, damaged from the start | `UnsupportedMedia`, `NOT_MEDIA` |
| reading, decoding | anything that is not handled nearer | `CorruptMedia`, `CORRUPT_MEDIA` |
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import av
import av.container
import av.error

from preprocessor.errors import CorruptMedia, UnsupportedMedia

_CONTAINERS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf")

VIDEO_FORMATS = (
    *_CONTAINERS,
    # moving pictures without sound, and streams without a container
    *("gif", "apng", "ivf", "obu", "h264", "hevc", "m4v", "mpegvideo", "mjpeg"),
)
"""FFmpeg's names of the demuxers that may run. All of them hold their own frames; none of them opens another file."""

SOUND_FORMATS = (
    *_CONTAINERS,
    *("wav", "w64", "aiff", "caf", "au", "flac", "mp3", "aac", "ac3", "eac3", "amr", "wv"),
)
"""The same for sound."""


def keep_going() -> None:
    """The check that never stops anything."""


@contextmanager
def open_video(data: bytes, key: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file at its first real video stream; a cover picture is none.

    Raises:
        UnsupportedMedia: `EMPTY_MEDIA`, `NOT_MEDIA`, `NO_VIDEO_STREAM`, or `UNSUPPORTED_CODEC`.
        CorruptMedia: `TRUNCATED_MEDIA`, or what is raised inside.
    """
    with _open(data, key, VIDEO_FORMATS, "a video", "mp4, mov, mkv, webm, avi, ts or gif") as container:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise UnsupportedMedia(
                f"{key}: the file holds no video stream; send a video, or declare it with its true modality",
                reason="NO_VIDEO_STREAM",
                media_key=key,
            )
        stream = streams[0]
        if stream.codec_context is None:
            raise _no_decoder(key, "video", "H.264, HEVC, VP9 or AV1")
        stream.thread_type = "NONE"  # one worker, one core: parallelism is across requests
        yield container, stream


@contextmanager
def open_sound(data: bytes, key: str) -> Iterator[tuple[av.container.InputContainer, av.AudioStream]]:
    """Open a file, of sound or of video, at its main audio stream.

    Raises:
        UnsupportedMedia: `EMPTY_MEDIA`, `NOT_MEDIA`, `NO_AUDIO_STREAM`, or `UNSUPPORTED_CODEC`.
        CorruptMedia: `TRUNCATED_MEDIA`, or what is raised inside.
    """
    with _open(data, key, SOUND_FORMATS, "a file with sound", "wav, mp3, flac, ogg, m4a, mp4 or mkv") as container:
        if not container.streams.audio:
            raise UnsupportedMedia(
                f"{key}: the file holds no sound; send one that does, or leave its sound out",
                reason="NO_AUDIO_STREAM",
                media_key=key,
            )
        # FFmpeg's choice, as of its command line: by disposition and channels. None where it can decode none.
        best = container.streams.best("audio")
        stream = best if isinstance(best, av.AudioStream) else container.streams.audio[0]
        if stream.codec_context is None:
            raise _no_decoder(key, "sound", "AAC, Opus, MP3, FLAC or PCM")
        stream.codec_context.thread_type = "NONE"  # as above
        yield container, stream


@contextmanager
def _open(
    data: bytes, key: str, formats: Sequence[str], what: str, examples: str
) -> Iterator[av.container.InputContainer]:
    """Open bytes as one of some formats; this module's head says what becomes of errors, here and inside."""
    if not data:
        raise UnsupportedMedia(f"{key}: the upload is empty; send the whole file", reason="EMPTY_MEDIA", media_key=key)
    options = {"format_whitelist": ",".join(formats), "protocol_whitelist": "none"}
    try:
        container = av.open(io.BytesIO(data), mode="r", metadata_errors="ignore", container_options=options)
    except EOFError as error:
        raise CorruptMedia(
            f"{key}: the file ends early, inside its header or index; send the complete file",
            reason="TRUNCATED_MEDIA",
            media_key=key,
        ) from error
    except av.error.FFmpegError as error:
        raise UnsupportedMedia(
            f"{key}: not {what} that can be read, or one cut off before its index; send a complete {examples}",
            reason="NOT_MEDIA",
            media_key=key,
        ) from error
    with container:
        try:
            yield container
        except av.error.FFmpegError as error:
            raise CorruptMedia(f"{key}: the file cannot be decoded ({error.strerror})", media_key=key) from error


def _no_decoder(key: str, what: str, codecs: str) -> UnsupportedMedia:
    return UnsupportedMedia(
        f"{key}: no decoder for the {what}'s codec; re-encode it as {codecs}",
        reason="UNSUPPORTED_CODEC",
        media_key=key,
    )


def read_packets(
    container: av.container.InputContainer, stream: av.VideoStream, key: str, check: Callable[[], None]
) -> Iterator[av.Packet[av.VideoStream]]:
    """The stream's packets in decode order, empty ones left out; `check` is called before each.

    Two walks over the same bytes give the same packets, so a packet's place in the walk names it.

    Raises:
        CorruptMedia: FFmpeg cannot read on.
    """
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError as error:
            raise CorruptMedia(f"{key}: the file cannot be read on ({error.strerror})", media_key=key) from error
        if packet is None:
            return
        check()
        if packet.size:  # an empty one would tell the decoder that the file ends
            yield packet
