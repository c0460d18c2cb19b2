"""Messages of a video's frames that the caller has chosen → the types of the pipeline."""

from __future__ import annotations

from preprocessor.errors import InvalidRequest
from preprocessor.types.request import FrameEncoding, FrameList
from preprocessor.v1 import preprocessor_pb2 as pb

ENCODINGS = {
    pb.FRAME_ENCODING_UNSPECIFIED: FrameEncoding.IMAGE_FILE,
    pb.FRAME_ENCODING_IMAGE_FILE: FrameEncoding.IMAGE_FILE,
    pb.FRAME_ENCODING_RGB24: FrameEncoding.RGB24,
}


def frame_count(medium: pb.Media) -> int:
    """How many frames, or times of frames, a medium lists; to be checked before any is converted."""
    frames = medium.frames
    return max(len(frames.sizes_bytes), len(frames.times_seconds.values), len(medium.inline_frames.pictures))


def file_size(medium: pb.Media) -> int | None:
    """Size of the medium's file, as far as the spec tells it.

    Raises:
        InvalidRequest: `SIZE_MISMATCH`: it tells two.
    """
    stated_bytes = medium.size_bytes if medium.HasField("size_bytes") else None
    if not medium.HasField("frames"):
        return stated_bytes
    added_bytes = sum(_sizes(medium))
    if stated_bytes not in (None, added_bytes):
        raise InvalidRequest(
            f"{medium.key}: the spec states {stated_bytes} bytes, and its frames have {added_bytes}",
            reason="SIZE_MISMATCH",
            field="media[].size_bytes",
            media_key=medium.key,
        )
    return added_bytes


def inline_pictures(medium: pb.Media, path: str) -> bytes:
    """The file of a medium whose frames stand in the spec.

    Raises:
        InvalidRequest: `INVALID_FRAMES`.
    """
    wrong = ""
    if not medium.HasField("frames"):
        wrong = "inline_frames without frames, which say when each is shown"
    elif medium.frames.sizes_bytes:
        wrong = "inline_frames tell their sizes; leave sizes_bytes out"
    if wrong:
        raise InvalidRequest(
            f"{medium.key}: {wrong}", reason="INVALID_FRAMES", field=f"{path}.frames", media_key=medium.key
        )
    return b"".join(medium.inline_frames.pictures)


def read_frame_list(medium: pb.Media, encoding: FrameEncoding) -> FrameList | None:
    """The frames that a medium lists; `check_frame_list` checks them. None where its file is a video."""
    if not medium.HasField("frames"):
        return None
    frames, timing = medium.frames, medium.frames.WhichOneof("timing")
    return FrameList(
        sizes_bytes=_sizes(medium),
        fps=frames.fps if timing == "fps" else None,
        times_seconds=tuple(frames.times_seconds.values) if timing == "times_seconds" else None,
        encoding=encoding,
        width_px=frames.width_px,
        height_px=frames.height_px,
        duration_seconds=frames.duration_seconds if frames.HasField("duration_seconds") else None,
    )


def _sizes(medium: pb.Media) -> tuple[int, ...]:
    if medium.WhichOneof("source") == "inline_frames":
        return tuple(map(len, medium.inline_frames.pictures))
    return tuple(medium.frames.sizes_bytes)
