"""Opening a video file that is held in memory, and reading its packets.

FFmpeg reads the bytes it is given and nothing else. Some "media" are lists of other files: an ffconcat text of 40 bytes
makes a plain `av.open` decode a file of this machine, an SDP text makes it open a socket, and `io_open` hooks see neither,
for those demuxers open their parts themselves. So formats are named (`FORMATS`), and no protocol is allowed to any of them.

FFmpeg's errors become ours here: what fails while opening is no media (`UnsupportedMedia`), what fails later is damaged
media (`CorruptMedia`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import av
import av.container
import av.error

from preprocessor.errors import CorruptMedia, UnsupportedMedia

FORMATS = (
    # mp4, mov, mkv, webm, avi, ts
    *("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf"),
    # moving pictures without sound, and streams without a container
    *("gif", "apng", "ivf", "obu", "h264", "hevc", "m4v", "mpegvideo", "mjpeg"),
)
"""FFmpeg's names of the demuxers that may run. All of them hold their own frames; none of them opens another file."""

_CONTAINER_OPTIONS = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}


def keep_going() -> None:
    """The check that never stops anything."""


@contextmanager
def open_video(data: bytes, key: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file at its first real video stream; a cover picture is none.

    Raises:
        UnsupportedMedia: `EMPTY_MEDIA`, `NOT_MEDIA`, `NO_VIDEO_STREAM`, or `UNSUPPORTED_CODEC`.
    """
    if not data:
        raise UnsupportedMedia(f"{key}: the upload is empty; send the whole file", reason="EMPTY_MEDIA", media_key=key)
    try:
        container = av.open(
            io.BytesIO(data), mode="r", metadata_errors="ignore", container_options=dict(_CONTAINER_OPTIONS)
        )
    except (av.error.FFmpegError, EOFError) as error:
        raise UnsupportedMedia(
            f"{key}: not a video that can be read, or one cut off before its index; send a complete mp4, mov, mkv, webm, "
            "avi, ts or gif",
            reason="NOT_MEDIA",
            media_key=key,
        ) from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise UnsupportedMedia(
                f"{key}: the file holds no video stream; send a video, or declare it with its true modality",
                reason="NO_VIDEO_STREAM",
                media_key=key,
            )
        stream = streams[0]
        if stream.codec_context is None:
            raise UnsupportedMedia(
                f"{key}: no decoder for the video's codec; re-encode it as H.264, HEVC, VP9 or AV1",
                reason="UNSUPPORTED_CODEC",
                media_key=key,
            )
        stream.thread_type = "NONE"  # one worker, one core: parallelism is across requests
        try:
            yield container, stream
        except av.error.FFmpegError as error:
            raise CorruptMedia(f"{key}: the file cannot be decoded ({error.strerror})", media_key=key) from error


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
