"""A video's frames that the caller has chosen → one file with their pictures, and the message that describes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import numpy.typing as npt

from preprocessor.errors import InvalidRequest
from preprocessor.v1 import preprocessor_pb2 as pb

Frame = str | PathLike[str] | bytes | npt.NDArray[np.uint8]
"""A path of an image file, the file itself (JPEG, PNG or WebP), or RGB pixels uint8 [height, width, 3]."""


def join_frames(
    frames: Iterable[Frame], fps: float | None, times_seconds: Sequence[float] | None
) -> tuple[pb.FrameList, bytes]:
    """The description of frames, and the file that holds them.

    Args:
        frames: Image files, or pixels of one size.
        fps, times_seconds: One of both.
    Raises:
        OSError: A file cannot be read.
        InvalidRequest: `INVALID_FRAMES`, `RESOLUTION_CHANGE`.
    """
    if (fps is None) == (times_seconds is None):
        raise invalid_frames("give either fps or times_seconds for frames")
    taken = list(frames)
    if not taken:
        raise invalid_frames("there are no frames; give at least one")
    message = pb.FrameList(encoding=pb.FRAME_ENCODING_IMAGE_FILE)
    if fps is not None:
        message.fps = fps
    else:
        message.times_seconds.values.extend(map(float, times_seconds or ()))
    arrays = [frame for frame in taken if isinstance(frame, np.ndarray)]
    if arrays:
        if len(arrays) < len(taken):
            raise invalid_frames("some frames are arrays and some image files; give one kind")
        message.encoding = pb.FRAME_ENCODING_RGB24
        message.height_px, message.width_px = _common_size(arrays)
    pictures = [_picture(frame) for frame in taken]
    message.sizes_bytes.extend(map(len, pictures))
    return message, b"".join(pictures)


def invalid_frames(message: str) -> InvalidRequest:
    return InvalidRequest(message, reason="INVALID_FRAMES")


def _picture(frame: Frame) -> bytes:
    if isinstance(frame, bytes):
        return frame
    return frame.tobytes() if isinstance(frame, np.ndarray) else Path(frame).read_bytes()


def _common_size(arrays: Sequence[npt.NDArray[np.uint8]]) -> tuple[int, int]:
    """Height and width of all."""
    for index, array in enumerate(arrays):
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise invalid_frames(f"frame {index} is {array.dtype} {list(array.shape)}; give uint8 [height, width, 3]")
        if array.shape != arrays[0].shape:
            raise InvalidRequest(
                f"frame {index} is {list(array.shape)}, and frame 0 {list(arrays[0].shape)}; the frames of one video have one "
                "size",
                reason="RESOLUTION_CHANGE",
            )
    height, width, _ = arrays[0].shape
    return height, width
