"""How a file wants its picture turned.

Phones record as the sensor lies and write a display matrix that says how to hold the result. FFmpeg's players obey it, and
so does this package: sizes are those of the upright picture, and so are frames. Video readers differ, and with them what
Hugging Face's video loaders give for the backend they are set to: torchcodec turns since 0.11 (meta-pytorch/torchcodec#1173),
OpenCV turns by default but takes a mirror for 180°, PyAV's frames and decord's come as they are stored.

Only decoded frames carry the matrix out of FFmpeg, and a probe is not to decode. So `may_be_turned` looks at the bytes
first; a file that could be turned costs one decoded frame, any other none.
"""

from __future__ import annotations

import struct
from typing import cast

import av
import numpy as np

from preprocessor.media.truncation.mp4 import boxes

_MKV_HEAD_BYTES = 1 << 16  # Tracks come before the first Cluster; a false alarm costs one frame
_MKV_PROJECTION = (b"\x76\x75", b"\x76\x73")  # ProjectionPoseRoll, ProjectionPoseYaw (which mirrors)
_IDENTITY = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def may_be_turned(data: bytes, format_name: str) -> bool:
    """Whether the file could carry a display matrix that is not the identity."""
    if "mov" in format_name:
        return any(_has_matrix(data, start, end) for name, start, end in boxes(data) if name == b"moov")
    if "matroska" in format_name:
        return any(data.find(mark, 0, _MKV_HEAD_BYTES) >= 0 for mark in _MKV_PROJECTION)
    return False


def orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """Degrees clockwise (0, 90, 180, 270) and whether to mirror left to right before turning.

    A matrix that is not made of quarter turns and mirrors is ignored, as the corners it would need have no pixels.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 0, False
    a, b, _, c, d = (
        np.frombuffer(cast("bytes", matrix), np.int32)[:5].astype(np.int64).tolist()
    )  # x' = ax + cy, y' = bx + dy
    is_mirrored = a * d - b * c < 0
    if is_mirrored:
        a, b = -a, -b
    if max(abs(b), abs(c)) * 100 < min(abs(a), abs(d)):
        return (0 if a > 0 else 180), is_mirrored
    if max(abs(a), abs(d)) * 100 < min(abs(b), abs(c)):
        return (90 if b > 0 else 270), is_mirrored
    return 0, False


def _has_matrix(data: bytes, start: int, end: int) -> bool:
    """Whether a track or movie header in here, or one that is compressed, holds a matrix that is not the identity."""
    if data.find(b"cmov", start, end) >= 0:
        return True
    for name, offsets in ((b"tkhd", (40, 52)), (b"mvhd", (36, 48))):  # where the matrix is, in versions 0 and 1
        position = start
        while (position := data.find(name, position, end)) >= 0:
            matrix = position + 4 + offsets[data[position + 4 : position + 5] == b"\1"]
            if data[matrix : matrix + 36] != _IDENTITY:
                return True
            position += 4
    return False
