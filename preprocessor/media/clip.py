"""`ClipInfo` plus what the first pass over a video's packets tells the decoders."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from preprocessor.errors import CorruptMedia
from preprocessor.types.source import ClipInfo, VideoInfo

NO_FRAME = -1


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class IndexedClip(ClipInfo):
    """A clip and its packets. A packet is named by its ordinal: its place in the file among those of its stream.

    Attributes:
        frame_of_packet: int32 [packet_count], the frame that a packet holds, or `NO_FRAME` if it is never shown (an edit list
            removes it, or it only serves as a reference). Empty if only decoding tells: the file gives no presentation
            times, or impossible ones. Frames are then counted as they are decoded, from one closed group to the next.
        random_access_packets: int64 [k], ascending: ordinals of the random access points, packets at which decoding may start,
            from the first that gives a frame.
        random_access_frames: int64 [k], ascending: the first frame that is exact, as are all after it, if decoding starts at
            that point.
        stream_index: The stream's place in the file.
        is_mirrored: The picture is mirrored left to right before it is turned by `rotation_degrees`.
        is_interlaced: The header says that a frame holds two fields of different times.
        max_frame_pixels: The limit on the size of any frame, also of those behind the header.
    """

    frame_of_packet: npt.NDArray[np.int32] = field(repr=False, default_factory=lambda: np.zeros(0, np.int32))
    random_access_packets: npt.NDArray[np.int64] = field(repr=False, default_factory=lambda: np.zeros(1, np.int64))
    random_access_frames: npt.NDArray[np.int64] = field(repr=False, default_factory=lambda: np.zeros(1, np.int64))
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
        """A decoded picture [height, width, 3] in display orientation; a view, no copy."""
        if self.is_mirrored:
            pixels = pixels[:, ::-1]
        return np.rot90(pixels, -self.rotation_degrees // 90) if self.rotation_degrees else pixels


def undecodable(clip: VideoInfo, index: int, key: str) -> CorruptMedia:
    """The error for a frame that cannot be decoded; it names the frame's time."""
    return CorruptMedia(
        f"{key}: the frame at {clip.times_seconds[index]:.3f} s cannot be decoded; the file is damaged there",
        reason="UNDECODABLE_FRAME",
        media_key=key,
    )
