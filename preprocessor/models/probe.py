"""One medium of a request and what its headers tell; nothing is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import av

from preprocessor.config import Limits
from preprocessor.media.checks import within_cpu_seconds
from preprocessor.media.frame_list import choose_every_frame, probe_frame_list
from preprocessor.media.image import probe_image
from preprocessor.media.video import probe_video, video_decoder_of
from preprocessor.types.request import Media, Modality
from preprocessor.types.source import ClipInfo, FrameChoice, FrameListInfo, ImageInfo, VideoInfo

ChooseFrames = Callable[[ClipInfo, Media], FrameChoice]


@dataclass(frozen=True, slots=True, eq=False)
class ProbedMedium:
    """A medium and what is known before it is decoded.

    Attributes:
        source: Header facts; None for a sound, of which nothing is known yet.
        frames: The frames chosen of a video; None for all else.
    """

    medium: Media
    source: ImageInfo | VideoInfo | None
    frames: FrameChoice | None

    @property
    def frame_count(self) -> int:
        """Chosen frames; 1 for an image."""
        return 1 if self.frames is None else len(self.frames.indices)

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of an image or a video as it is shown."""
        assert self.source is not None, "a sound has no size"
        return self.source.height_px, self.source.width_px


def probe_medium(medium: Media, limits: Limits, check: Callable[[], None], choose: ChooseFrames) -> ProbedMedium:
    """Read a file's headers and choose its frames.

    Args:
        check: Called between packets; whatever it raises ends the work.
        choose: Which frames of a video to use; not asked where the caller has chosen them.
    Raises:
        UnsupportedMedia, CorruptMedia, LimitExceeded, InvalidRequest: As `probe_image`, `probe_video`, `probe_frame_list`
            and `choose`.
    """
    match medium.modality:
        case Modality.IMAGE:
            return ProbedMedium(medium, probe_image(medium.content, limits, medium.key), None)
        case Modality.VIDEO:
            check_file = within_cpu_seconds(limits.max_file_cpu_seconds, check, medium.key)
            if medium.frames is not None:
                listed = probe_frame_list(medium, medium.frames, limits, check_file)
                return ProbedMedium(medium, listed, choose_every_frame(listed, medium.frames))
            clip = probe_video(medium.content, limits, medium.key, check_file, medium.on_damage)
            return ProbedMedium(medium, clip, choose(clip, medium))
        case Modality.AUDIO:
            return ProbedMedium(medium, None, None)


def decoder_of(probed: ProbedMedium, video_decoder: str) -> str:
    """The libraries that decode it, with versions.

    Args:
        video_decoder: A name in `media.video.VIDEO_BACKENDS`.
    """
    match probed.source:
        case ImageInfo() as image:
            return image.decoder
        case ClipInfo() | FrameListInfo() as clip:
            return video_decoder_of(clip, video_decoder)
    return f"FFmpeg {av.ffmpeg_version_info}"
