"""Video files in memory → facts, and exactly the frames that were asked for.

Two passes over the packets, for packets are cheap and frames are not. `probe_video` walks them once: a packet carries its
presentation time without being decoded, so frame count and times are exact even where the header lies. `decode_frames`
walks them again and tells the decoder, packet by packet, whether the frame is wanted: FFmpeg then never decodes an
unwanted frame that no other frame needs. The pixels are those of a full decode (about half the frames of an x264 file are
such B-frames). Once the last wanted frame is out, the rest of the file is not read.

One colour converter serves the whole clip: PyAV's `frame.to_ndarray` would build a new one for every frame.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import av
import av.container
import av.error
import av.video.reformatter
import numpy as np
import numpy.typing as npt

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, LimitExceeded, UnsupportedMedia
from preprocessor.types import ClipInfo

# dav1d reads skip_frame once, when it is opened: the first packet would decide for the whole file.
_NEVER_SKIPPING = frozenset({"libdav1d"})


def _keep_going() -> None:
    pass


def probe_video(data: bytes, limits: Limits, key: str = "video", check: Callable[[], None] = _keep_going) -> ClipInfo:
    """Header facts and every frame's presentation time, from one walk over the packets.

    Args:
        data: The whole file.
        key: The caller's name for it, for messages.
        check: Called between packets; raises to stop the walk.
    Raises:
        UnsupportedMedia: `NOT_MEDIA`, `NO_VIDEO_STREAM`, or a codec this build cannot decode.
        CorruptMedia: `TRUNCATED_MEDIA` where the file ends before its index says, `CORRUPT_MEDIA` otherwise.
        LimitExceeded: Frames too large or too many.
    """
    with _open_video(data, key) as (container, stream):
        codec = stream.codec_context
        if codec.width * codec.height > limits.max_frame_pixels:
            raise LimitExceeded(
                f"{key}: frames are {codec.width}x{codec.height}; at most {limits.max_frame_pixels} pixels a frame are accepted",
                media_key=key,
            )
        if container.format.name == "avi" and codec.has_b_frames:
            raise UnsupportedMedia(
                f"{key}: an AVI does not say when reordered frames are shown; put the video into an mp4 or mkv",
                reason="NO_TIMESTAMPS",
                media_key=key,
            )
        pts: list[int] = []
        for packet in container.demux(stream):
            check()
            if packet.is_corrupt:  # FFmpeg's mark for a packet that the end of the file cuts short
                raise CorruptMedia(
                    f"{key}: the file ends early, inside frame {len(pts)}; send the complete file",
                    reason="TRUNCATED_MEDIA",
                    media_key=key,
                )
            if packet.pts is None or packet.is_discard:  # the last, empty packet flushes; edit lists discard
                continue
            pts.append(packet.pts)
            if len(pts) > limits.max_clip_frames:
                raise LimitExceeded(f"{key}: more than {limits.max_clip_frames} frames", media_key=key)
        if not pts:
            raise CorruptMedia(f"{key}: the video stream holds no frames", media_key=key)
        rate = stream.average_rate or stream.guessed_rate
        time_base = float(stream.time_base or 0)
        if not rate or not time_base:
            raise CorruptMedia(f"{key}: the video states neither a frame rate nor a time base", media_key=key)
        return ClipInfo(
            codec=codec.name,
            width_px=codec.width,
            height_px=codec.height,
            rate=float(rate),
            duration_seconds=len(pts) / float(rate),
            time_base_seconds=time_base,
            pts=np.sort(np.asarray(pts, dtype=np.int64)),
        )


def decode_frames(
    data: bytes,
    clip: ClipInfo,
    indices: npt.NDArray[np.int64],
    key: str = "video",
    check: Callable[[], None] = _keep_going,
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the frames at `indices` as RGB uint8 [height, width, 3], in presentation order; a repeated index repeats.

    A yielded array is valid until the next one is asked for.

    Args:
        indices: Ascending, 0 <= index < clip.frame_count.
        check: Called between packets; raises to stop the decode.
    Raises:
        CorruptMedia: A wanted frame cannot be decoded; the message names its time.
    """
    wanted = clip.pts[indices]
    is_wanted = frozenset(wanted.tolist())
    reformatter = av.video.reformatter.VideoReformatter()
    position = 0
    with _open_video(data, key) as (container, stream):
        codec = stream.codec_context
        can_skip = codec.name not in _NEVER_SKIPPING
        for packet in container.demux(stream):
            check()
            needed = packet.pts is None or packet.pts in is_wanted or not can_skip
            codec.skip_frame = "DEFAULT" if needed else "NONREF"
            for frame in _decode_packet(stream, packet):
                if frame.pts not in is_wanted:
                    continue
                while position < len(wanted) and wanted[position] < frame.pts:
                    raise _undecodable(clip, wanted[position], key)
                if position == len(wanted) or wanted[position] != frame.pts:
                    continue
                if (frame.width, frame.height) != (clip.width_px, clip.height_px):
                    raise UnsupportedMedia(
                        f"{key}: the picture changes from {clip.width_px}x{clip.height_px} to {frame.width}x{frame.height} "
                        "inside the file; re-encode it to one size",
                        reason="RESOLUTION_CHANGE",
                        media_key=key,
                    )
                pixels = _rgb_view(reformatter.reformat(frame, format="rgb24"))
                while position < len(wanted) and wanted[position] == frame.pts:
                    yield pixels
                    position += 1
                if position == len(wanted):
                    return
        raise _undecodable(clip, wanted[position], key)


def _decode_packet(stream: av.VideoStream, packet: av.Packet[av.VideoStream]) -> list[av.VideoFrame]:
    """The frames that this packet completes; none where it cannot be decoded, for a later frame may still be whole."""
    try:
        return packet.decode()
    except av.error.InvalidDataError:
        return []


def _rgb_view(frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
    """An RGB frame's own memory as uint8 [height, width, 3], without its row padding and without a copy."""
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(frame.height, plane.line_size)
    return rows[:, : frame.width * 3].reshape(frame.height, frame.width, 3)


def _undecodable(clip: ClipInfo, pts: int, key: str) -> CorruptMedia:
    return CorruptMedia(
        f"{key}: the frame at {pts * clip.time_base_seconds:.3f} s cannot be decoded; the file is damaged there",
        reason="UNDECODABLE_FRAME",
        media_key=key,
    )


@contextmanager
def _open_video(data: bytes, key: str) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file held in memory at its first real video stream, FFmpeg's errors mapped to ours."""
    if not data:
        raise UnsupportedMedia(f"{key}: the upload is empty; send the whole file", reason="EMPTY_MEDIA", media_key=key)
    try:
        with av.open(io.BytesIO(data), mode="r", metadata_errors="ignore") as container:
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
            yield container, stream
    except av.error.InvalidDataError as error:
        raise UnsupportedMedia(
            f"{key}: not a video that can be read, or one cut off before its index; send a complete mp4, mov, mkv, webm or avi",
            reason="NOT_MEDIA",
            media_key=key,
        ) from error
    except av.error.FFmpegError as error:
        raise CorruptMedia(f"{key}: the file cannot be decoded ({error.strerror})", media_key=key) from error
