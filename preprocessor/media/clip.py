"""What a walk over a video's packets tells the decoders, beside the facts that `ClipInfo` holds for everyone."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from preprocessor.errors import CorruptMedia
from preprocessor.types.source import ClipInfo

NO_FRAME = -1


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class IndexedClip(ClipInfo):
    """A clip and its packets. A packet is named by its ordinal: its place in the file among those of its stream.

    Attributes:
        frame_of_packet: int32 [packet_count], the frame that a packet holds, or `NO_FRAME` for one that is never shown
            (an edit list cuts it away, or other frames only refer to it). Empty where only decoding tells: the file
            gives no presentation times, or such that cannot be true. Frames are then counted as they come, from one closed
            group to the next.
        entry_packets: int64 [k], ascending ordinals of packets at which decoding may start, from the first that gives a frame.
        entry_frames: int64 [k], ascending: every frame from this one on is decoded exactly by starting there.
        stream_index: The stream's place in the file.
        is_mirrored: The picture is mirrored left to right before it is turned by `rotation_degrees`.
        is_interlaced: A frame's odd and even lines are of two moments, as the header says.
        max_frame_pixels: What no frame of it may have, however the file goes on.
    """

    frame_of_packet: npt.NDArray[np.int32] = field(repr=False, default_factory=lambda: np.zeros(0, np.int32))
    entry_packets: npt.NDArray[np.int64] = field(repr=False, default_factory=lambda: np.zeros(1, np.int64))
    entry_frames: npt.NDArray[np.int64] = field(repr=False, default_factory=lambda: np.zeros(1, np.int64))
    stream_index: int | None = None
    is_mirrored: bool = False
    is_interlaced: bool = False
    max_frame_pixels: int = 1 << 31

    @property
    def coded_size(self) -> tuple[int, int]:
        """Width and height in pixels before the picture is turned."""
        turned = self.rotation_degrees % 180 != 0
        return (self.height_px, self.width_px) if turned else (self.width_px, self.height_px)

    def upright(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A decoded picture [height, width, 3] as it is to be seen; a view, nothing is copied."""
        if self.is_mirrored:
            pixels = pixels[:, ::-1]
        return np.rot90(pixels, -self.rotation_degrees // 90) if self.rotation_degrees else pixels


def undecodable(clip: ClipInfo, index: int, key: str) -> CorruptMedia:
    """The error for a frame that cannot be had, by its time."""
    return CorruptMedia(
        f"{key}: the frame at {clip.times_seconds[index]:.3f} s cannot be decoded; the file is damaged there",
        reason="UNDECODABLE_FRAME",
        media_key=key,
    )
