"""The facts in a file's headers, and which of its frames were chosen."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from preprocessor.types.request import SamplingBasis


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Header facts of an image, upright.

    Attributes:
        format: Such as "JPEG".
        decoder: The libraries that decode it, with versions.
    """

    format: str
    width_px: int
    height_px: int
    decoder: str


@dataclass(frozen=True, slots=True)
class SoundInfo:
    """A sound as extracted: mono, at the rate that the model wants, not the file's."""

    sample_rate_hz: int
    duration_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class ClipInfo:
    """What is known of a video from its packets, without decoding one.

    Attributes:
        codec: FFmpeg's decoder name, such as "h264".
        rate: Frames a second on average: frame_count = rate x duration_seconds.
        duration_seconds: From the first frame's time to the end of the last frame's display.
        pts: Presentation timestamps int64 [frame_count], ascending, in units of `time_base_seconds`.
        rotation_degrees: How far the stored picture was turned clockwise to stand upright: 0, 90, 180 or 270.
        is_truncated: The file ends before it says; the frames are those that it still holds whole.
        stated_frame_count: Frame count that the file's index states; 0 where it has none.
        stated_rate: Average frames a second as the container states it, which transformers uses; 0 where it equals `rate`.
    """

    codec: str
    width_px: int
    height_px: int
    rate: float
    duration_seconds: float
    time_base_seconds: float
    pts: npt.NDArray[np.int64] = field(repr=False)
    rotation_degrees: int = 0
    is_truncated: bool = False
    stated_frame_count: int = 0
    stated_rate: float = 0.0

    @property
    def frame_count(self) -> int:
        return len(self.pts)

    @property
    def index_rate(self) -> float:
        """Frames a second by which a frame's number stands for a time on basis INDEX."""
        return self.stated_rate or self.rate

    @property
    def times_seconds(self) -> npt.NDArray[np.float64]:
        """Presentation time of every frame, float64 [frame_count], the first frame's own time included."""
        return self.pts.astype(np.float64) * self.time_base_seconds


@dataclass(frozen=True, slots=True, eq=False)
class FrameListInfo:
    """Header facts of a video that came as a list of frames.

    Attributes:
        codec: "RGB24", or the formats of its image files, such as "JPEG".
        decoder: The libraries that decode them, with versions; empty for RGB24.
        rate: Frames a second on average: frame_count = rate x duration_seconds.
        duration_seconds: As the caller gave it; else from the first frame's time to the end of the last frame's display, which
            stays as long as the others do on average.
        times_seconds: When each frame is shown, float64 [frame_count], ascending.
        offsets: Where each frame's picture begins in the file and where the last one ends, int64 [frame_count + 1].
    """

    codec: str
    decoder: str
    width_px: int
    height_px: int
    rate: float
    duration_seconds: float
    times_seconds: npt.NDArray[np.float64] = field(repr=False)
    offsets: npt.NDArray[np.int64] = field(repr=False)

    @property
    def frame_count(self) -> int:
        return len(self.times_seconds)


VideoInfo = ClipInfo | FrameListInfo


@dataclass(frozen=True, slots=True, eq=False)
class FrameChoice:
    """The frames to decode.

    Attributes:
        indices: int64 [n], ascending, in presentation order; a frame that is on screen at several moments may repeat.
        times_seconds: Their presentation times, float64 [n], as the file states them.
        prompt_times_seconds: The times a prompt should state, float64 [n], counted from the clip's first frame: index /
            stated average rate on basis INDEX (as transformers does), on TIME the moments at which the frames are on screen.
        sampled_fps: Frames chosen a second of the clip, or of the part between start and end.
        basis: INDEX or TIME, as used.
    """

    indices: npt.NDArray[np.int64]
    times_seconds: npt.NDArray[np.float64]
    prompt_times_seconds: npt.NDArray[np.float64]
    sampled_fps: float
    basis: SamplingBasis

    @property
    def repeated_count(self) -> int:
        """Places that a frame takes beyond its first."""
        return len(self.indices) - len(np.unique(self.indices))
