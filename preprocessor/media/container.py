"""Opening a file of FFmpeg's that is held in memory, and reading packets of one of its streams.

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

from preprocessor.errors import CorruptMedia, LimitExceeded, UnsupportedMedia
from preprocessor.media.arriving import ArrivingFile, NotArrived
from preprocessor.media.codecs import ALLOWED_DECODERS
from preprocessor.media.truncation import ends_early
from preprocessor.media.unread_formats import HEAD_BYTES, unread_container

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


_Stream = TypeVar("_Stream", av.VideoStream, av.AudioStream)


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


class _WatchedArrival(_Watched):
    """A file of which the rest is still arriving, as large as all of it; see `arriving` for reads of what is not here."""

    def __init__(self, file: ArrivingFile, check: Callable[[], None]) -> None:
        super().__init__(file.arrived, check)
        self._file = file

    def read(self, size: int | None = -1, /) -> bytes:
        start = self.tell()
        data = super().read(size)
        left_bytes = max(0, self._file.size_bytes - start)
        wanted_bytes = left_bytes if size is None or size < 0 else min(size, left_bytes)
        if self.stopped_by is not None or len(data) >= wanted_bytes:
            return data
        if self._file.is_padded:
            self.seek(start + wanted_bytes)
            return data + bytes(wanted_bytes - len(data))
        self._file.was_missed = True
        self.stopped_by = NotArrived()
        return b""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_END:
            return super().seek(self._file.size_bytes + offset)
        return super().seek(offset, whence)


def truncated(key: str, what: str = "") -> CorruptMedia:
    """The error for a file whose end is missing; `what` says more of where."""
    return CorruptMedia(
        f"{key}: the file ends early{what}; send the complete file", reason="TRUNCATED_MEDIA", media_key=key
    )


def unread(key: str, kind: str, what: str, advice: str) -> UnsupportedMedia:
    """The error for a file that is known and not read here; `kind` is what it should be, the rest is of `unread_formats`."""
    return UnsupportedMedia(
        f"{key}: the file is {what}, not {kind} that can be read; {advice}",
        reason="UNSUPPORTED_FORMAT",
        media_key=key,
    )


@contextmanager
def open_container(
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
        formats: FFmpeg's names of the demuxers that may run.
        what: The kind of file that it should be, and examples of such.
        max_frame_pixels: FFmpeg refuses to make a larger picture.
        check: Called whenever FFmpeg takes bytes; what it raises ends the reading.
        decoders: Those that may run while the file is opened, to learn what the header does not say.
    """
    if not data:
        raise UnsupportedMedia(f"{key}: the upload is empty; send the whole file", reason="EMPTY_MEDIA", media_key=key)
    source = _WatchedArrival(data, check) if isinstance(data, ArrivingFile) else _Watched(data, check)
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
        if (known := unread_container(bytes(source.getbuffer()[:HEAD_BYTES]))) is not None:
            raise unread(key, kind, *known) from error
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
