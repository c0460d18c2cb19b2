"""Files that are small and ask for much: each is a claim that some decoder has believed, here or elsewhere.

`DANGERS` says of each what it is to be refused with, or nothing where it may be read; none may take more than a moment, or more
memory than its pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from preprocessor.v1 import preprocessor_pb2 as pb
from tests.fuzz import dangerous_images as images
from tests.fuzz import dangerous_sounds as sounds
from tests.fuzz import dangerous_videos as videos

IMAGE, VIDEO, SOUND = pb.MODALITY_IMAGE, pb.MODALITY_VIDEO, pb.MODALITY_AUDIO


@dataclass(frozen=True, slots=True)
class Danger:
    """Attributes:
    reasons: Any of them will do; empty where the file is good and only looks dangerous.
    """

    modality: pb.Modality.ValueType
    make: Callable[[], bytes]
    reasons: frozenset[str]


def _danger(modality: pb.Modality.ValueType, make: Callable[[], bytes], *reasons: str) -> Danger:
    return Danger(modality, make, frozenset(reasons))


MAX_CLIP_FRAMES = 10_000
"""To be set as a limit: a file of a million frames would take seconds to send, and to walk."""
_NO_TABLE = ("NOT_MEDIA", "CORRUPT_MEDIA", "TRUNCATED_MEDIA", "WORKER_MEMORY_EXCEEDED")
DANGERS: Mapping[str, Danger] = {
    "png of 65,535 a side": _danger(IMAGE, images.largest_png, "IMAGE_TOO_LARGE"),
    "png of one long row": _danger(IMAGE, images.long_png, "SIDE_TOO_LONG"),
    "png text that inflates": _danger(
        IMAGE, lambda: images.inflating_metadata(b"zTXt", b"c\0\0"), "METADATA_TOO_LARGE"
    ),
    "png international text that inflates": _danger(
        IMAGE, lambda: images.inflating_metadata(b"iTXt", b"c\0\1\0\0\0"), "METADATA_TOO_LARGE"
    ),
    "png profile that inflates": _danger(
        IMAGE, lambda: images.inflating_metadata(b"iCCP", b"p\0\0"), "METADATA_TOO_LARGE"
    ),
    "png exif in a ring": _danger(IMAGE, images.deep_exif),
    "jpeg of many scans": _danger(IMAGE, images.many_scans, "TOO_MANY_SCANS"),
    "webp canvas": _danger(IMAGE, lambda: images.webp_canvas(1 << 24, 1 << 8), "IMAGE_TOO_LARGE"),
    "gif frame beyond its canvas": _danger(IMAGE, images.gif_frame_beyond_its_canvas, "IMAGE_TOO_LARGE"),
    "gif of a vast picture": _danger(IMAGE, images.vast_gif, "IMAGE_TOO_LARGE"),
    "webp of a vast picture": _danger(IMAGE, lambda: images.lossless_webp(16_384, 16_384), "IMAGE_TOO_LARGE"),
    "icon of a vast picture": _danger(IMAGE, images.vast_icon, "IMAGE_TOO_LARGE"),
    "tiff of a vast tile": _danger(IMAGE, images.tiff_of_a_vast_tile, "IMAGE_TOO_LARGE"),
    "jpeg2000 of many channels": _danger(
        IMAGE, lambda: images.jpeg2000(component_count=16_384), "IMAGE_TOO_LARGE", "NOT_MEDIA"
    ),
    "jpeg2000 of many tiles": _danger(
        IMAGE, lambda: images.jpeg2000(65_535, 65_535, tile=256, stated=(16, 16)), "IMAGE_TOO_LARGE", "NOT_MEDIA"
    ),
    "tiff of many samples": _danger(IMAGE, images.tiff_of_many_samples, "NOT_MEDIA", "CORRUPT_MEDIA"),
    "png without its palette": _danger(IMAGE, images.png_without_its_palette, "CORRUPT_MEDIA"),
    "avif on a stopped clock": _danger(IMAGE, images.avif_on_a_stopped_clock, "CORRUPT_MEDIA"),
    "flv with a stream that comes up late": _danger(VIDEO, videos.stream_that_comes_up_late, "VIDEO_TOO_LONG"),
    "mp4 sample sizes": _danger(VIDEO, videos.endless_sample_sizes, *_NO_TABLE),
    "mp4 samples of one size": _danger(VIDEO, videos.samples_of_one_size, "CORRUPT_MEDIA", "TRUNCATED_MEDIA"),
    "mp4 composition times": _danger(VIDEO, videos.endless_times, *_NO_TABLE),
    "mp4 durations": _danger(VIDEO, videos.endless_durations),
    "mp4 of frames days apart": _danger(VIDEO, videos.days_between_frames, "VIDEO_TOO_LONG"),
    "mp4 boxes in boxes": _danger(VIDEO, videos.nested_boxes, *_NO_TABLE),
    "mp4 of many streams": _danger(VIDEO, videos.many_streams, "TOO_MANY_STREAMS"),
    "mkv of nothing": _danger(VIDEO, videos.matroska_of_nothing),
    "mkv groups in groups": _danger(VIDEO, videos.nested_matroska),
    "webm of 65,535 a side, it says": _danger(VIDEO, videos.vast_matroska),
    "h264 that grows": _danger(VIDEO, lambda: videos.grows_to(1280, 720), "RESOLUTION_CHANGE"),
    "h264 parameters of 16,000 a side": _danger(
        VIDEO, lambda: videos.parameter_set_of(16_000, 16_000), "FRAME_TOO_LARGE", "UNDECODABLE_FRAME"
    ),
    "gif of many frames": _danger(VIDEO, videos.many_gif_frames, "TOO_MANY_FRAMES"),
    "apng of 16,000 a side": _danger(VIDEO, videos.vast_apng, "FRAME_TOO_LARGE"),
    "apng of many frames, it says": _danger(VIDEO, videos.apng_of_many_frames_said),
    "webp animation canvas": _danger(VIDEO, lambda: images.webp_canvas(1 << 14, 1 << 14), "FRAME_TOO_LARGE"),
    "a codec that is not on the list": _danger(VIDEO, videos.old_codec, "UNSUPPORTED_CODEC"),
    "sounds.wav of two thousand million hertz": _danger(
        SOUND, lambda: sounds.wav(0x7FFFFFFF, 1), "SAMPLE_RATE_TOO_HIGH", "NOT_MEDIA"
    ),
    "sounds.wav of ten million hertz": _danger(SOUND, lambda: sounds.wav(10_000_000, 1), "SAMPLE_RATE_TOO_HIGH"),
    "sounds.wav of 255 channels": _danger(SOUND, lambda: sounds.wav(16_000, 255), "TOO_MANY_CHANNELS"),
    "sounds.wav of 65,535 channels": _danger(
        SOUND, lambda: sounds.wav(16_000, 65_535), "TOO_MANY_CHANNELS", "CORRUPT_MEDIA"
    ),
    "sounds.wav of one sample a second": _danger(SOUND, sounds.slow_wav, "AUDIO_TOO_LONG"),
    "flac of silence": _danger(SOUND, sounds.inflating_flac, "AUDIO_TOO_LONG"),
}
