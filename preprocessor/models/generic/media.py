"""Media of a generic model's request: headers first, then the content in the form that a Hugging Face processor takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, InvalidRequest, LimitExceeded, UnsupportedMedia
from preprocessor.media.audio import extract_audio
from preprocessor.media.checks import within_cpu_seconds
from preprocessor.media.frames import Choice, Substituted, unreported
from preprocessor.media.image import load_picture
from preprocessor.media.sampling import choose_frames
from preprocessor.media.spreads import count_for_fps, spread_evenly
from preprocessor.media.video import decode_frames
from preprocessor.models.generic.processor import part_of
from preprocessor.models.probe import ChooseFrames, ProbedMedium, probe_medium
from preprocessor.types.request import Media, Modality, SamplingBasis
from preprocessor.types.source import ClipInfo, FrameChoice, FrameListInfo, ImageInfo

# What transformers' video processors of chat models sample by where they sample (5.23, Qwen3VLVideoProcessor).
_FPS, _MIN_FRAMES, _MAX_FRAMES = 2.0, 4, 768

# transformers 5.23: `replace_video_token` of these reads attributes of the metadata of the only video.
_TAKES_ONE_VIDEO = frozenset({"NemotronH_Omni_Reasoning_V3Processor"})

# Longer than the window of any feature extractor of transformers 5.23: 25 ms (Whisper) to 32 ms (Gemma).
_WINDOW_SECONDS = 0.1

# Of a file that was read as a video: it has no sound, or its format (GIF, say) holds none.
_SILENT = frozenset({"NO_AUDIO_STREAM", "UNSUPPORTED_FORMAT", "NOT_MEDIA"})


def choose_evenly(clip: ClipInfo, medium: Media) -> FrameChoice:
    """The caller's choice; by default 2 frames a second, at least 4 and at most 768, spread evenly from first to last."""

    def spread(total: int, rate: float) -> npt.NDArray[np.int64]:
        count = medium.sampling.frame_count
        if count is None:
            fps = medium.sampling.fps or _FPS
            count = count_for_fps(total, rate, fps, least=_MIN_FRAMES, most=_MAX_FRAMES)
        return spread_evenly(total, count)

    return choose_frames(clip, medium.sampling, spread, medium.key)


def choose_every(clip: ClipInfo, medium: Media) -> FrameChoice:
    """The caller's choice; by default every frame, for a model whose configuration turns sampling off.

    Source: transformers 5.23, ProcessorMixin.apply_chat_template: a rate or a count of the caller turns it on again.
    """
    sampling = medium.sampling
    if sampling.fps is not None or sampling.frame_count is not None:
        return choose_evenly(clip, medium)
    return choose_frames(clip, sampling, lambda total, _: np.arange(total), medium.key)


def probe_media(
    media: Sequence[Media], limits: Limits, check: Callable[[], None], choose: ChooseFrames
) -> list[ProbedMedium]:
    """Read all headers and choose frames before anything is decoded.

    Raises:
        UnsupportedMedia, CorruptMedia, InvalidRequest: As `probe_image`, `probe_video` and `choose`.
        LimitExceeded: One file or all together would decode to more than accepted.
    """
    probed = []
    for medium in media:
        check()
        probed.append(probe_medium(medium, limits, check, choose))
    # The only bound before the work: the size of a processor's output grows with its input.
    refuse_above(sum(map(_decoded_bytes, probed)), limits, "the decoded media")
    return probed


def decode(
    probed: ProbedMedium,
    sample_rate_hz: int,
    limits: Limits,
    check: Callable[[], None],
    video_decoder: str = "pyav",
    substituted: Substituted = unreported,
) -> Any:
    """The content: an image as PIL RGB, a video as uint8 [n, height, width, 3], a sound as float32 [samples], mono.

    Args:
        sample_rate_hz: What the processor wants sounds in.
        video_decoder: A name in `media.video.VIDEO_BACKENDS`.
        substituted: Called with (index of the chosen frame, index of the frame used instead).
    Raises:
        CorruptMedia: The header is sound and the content is not.
    """
    medium = probed.medium
    check = within_cpu_seconds(limits.max_file_cpu_seconds, check, medium.key)
    if medium.modality is Modality.IMAGE:
        return load_picture(medium.content, medium.key, medium.background)  # processors read the layout off PIL's type
    if medium.modality is Modality.VIDEO:
        return _decode_video(probed, check, video_decoder, substituted)
    return extract_audio(medium.content, sample_rate_hz, limits, medium.key, check)


def sound_of_video(
    probed: ProbedMedium, sample_rate_hz: int, limits: Limits, check: Callable[[], None]
) -> npt.NDArray[np.float32] | None:
    """The sound of a video file, float32 [samples], mono; None for a silent one, and for what is no video file.

    Raises:
        InvalidRequest: `SAMPLING_CONFLICT`: only a part of the video is used, and the sound is that of the whole.
        CorruptMedia, LimitExceeded, UnsupportedMedia: As `extract_audio`.
    """
    medium = probed.medium
    if medium.modality is not Modality.VIDEO or not isinstance(
        probed.source, ClipInfo
    ):  # a list of frames has no sound
        return None
    if (medium.sampling.start_seconds, medium.sampling.end_seconds) != (None, None):
        raise InvalidRequest(
            f"{medium.key}: the sound of the whole video goes between its frames; leave out start_seconds and end_seconds",
            reason="SAMPLING_CONFLICT",
            field="media[].sampling",
            media_key=medium.key,
        )
    check = within_cpu_seconds(limits.max_file_cpu_seconds, check, medium.key)
    try:
        return extract_audio(medium.content, sample_rate_hz, limits, medium.key, check)
    except UnsupportedMedia as error:
        if error.reason not in _SILENT:
            raise
        return None


def metadata_for(processor: Any, videos: Sequence[ProbedMedium]) -> Any:
    """`metadata_of` each video, in the form that a processor takes.

    Raises:
        InvalidRequest: `PROCESSOR_REFUSED` for several videos where it takes one.
    """
    metadata = [metadata_of(one) for one in videos]
    if type(processor).__name__ not in _TAKES_ONE_VIDEO:
        return metadata
    if len(metadata) > 1:
        raise InvalidRequest(
            f"this model's processor takes one video a request, and {len(metadata)} are given; send each in one of its own",
            reason="PROCESSOR_REFUSED",
        )
    from transformers.video_utils import VideoMetadata  # only now: it may import torchvision

    return VideoMetadata(**metadata[0])


def metadata_of(probed: ProbedMedium) -> dict[str, Any]:
    """What transformers computes timestamps from: the fields of its `VideoMetadata`, which of the file's frames these are.

    Frames chosen by time are numbered by milliseconds, since index / rate is not when they are shown.
    """
    clip, frames = probed.source, probed.frames
    assert clip is not None and not isinstance(clip, ImageInfo) and frames is not None
    indices, count = frames.indices.tolist(), clip.frame_count
    rate = clip.rate if isinstance(clip, FrameListInfo) else clip.index_rate
    seconds = count / rate
    if frames.basis is SamplingBasis.TIME:
        indices = np.rint(frames.prompt_times_seconds * 1e3).astype(np.int64).tolist()
        count, rate, seconds = max(1, round(clip.duration_seconds * 1e3)), 1e3, clip.duration_seconds
    return {
        "total_num_frames": count,
        "fps": rate,
        "width": clip.width_px,
        "height": clip.height_px,
        "duration": seconds,
        "video_backend": "pyav",
        "frames_indices": indices,
    }


def short_sound(processor: Any, sounds: Sequence[npt.NDArray[np.float32]]) -> InvalidRequest | None:
    """Why a processor may have failed with these sounds: `PROCESSOR_REFUSED` where one is a moment long; None if none is."""
    rate_hz = getattr(part_of(processor, Modality.AUDIO), "sampling_rate", 0)
    shortest = min(map(len, sounds), default=rate_hz)
    if shortest >= rate_hz * _WINDOW_SECONDS:
        return None
    return InvalidRequest(
        f"the model's processor fails with a sound of {shortest / rate_hz:.4f} s, less than it analyses at once; send more",
        reason="PROCESSOR_REFUSED",
    )


def refuse_above(size: int, limits: Limits, what: str) -> None:
    """Raises: LimitExceeded: `PIXELS_TOO_LARGE` where `what` takes more bytes than a request may."""
    if size > limits.max_pixel_bytes:
        raise LimitExceeded(
            f"{what} would take {size} bytes; at most {limits.max_pixel_bytes} are accepted: ask for fewer frames or send "
            "smaller pictures",
            reason="PIXELS_TOO_LARGE",
        )


def _decoded_bytes(probed: ProbedMedium) -> int:
    """Size of its RGB pixels; 0 for a sound, which `extract_audio` bounds."""
    if probed.source is None:
        return 0
    height, width = probed.size_px
    return probed.frame_count * height * width * 3


def _decode_video(
    probed: ProbedMedium, check: Callable[[], None], decoder: str, substituted: Substituted
) -> npt.NDArray[np.uint8]:
    clip = probed.source
    assert clip is not None and not isinstance(clip, ImageInfo) and probed.frames is not None
    medium, indices = probed.medium, probed.frames.indices
    frames: npt.NDArray[np.uint8] | None = None
    choice = Choice(indices, medium.key, check, medium.on_damage, substituted)
    for position, frame in enumerate(decode_frames(medium.content, clip, choice, decoder)):
        if frames is None:
            frames = np.empty((len(indices), *frame.shape), np.uint8)
        frames[position] = frame
    if frames is None:
        raise CorruptMedia(f"{medium.key}: no frame can be decoded", media_key=medium.key)
    return frames
