"""Video files in memory → facts, and exactly the requested frames.

A clip's frames are what a full decode shows, in its order and at its times. Reading packets is cheap and decoding is not, so
`probe_video` reads the packets, which carry their times, and decodes only if they do not tell which frames there are.
`decode_frames` reads them again and decodes what the chosen frames need. The pixels are those of a full decode.

| file | |
|---|---|
| `container`, `streams`, `codecs` | opens a file held in memory, and nothing else; its main track; which decoders may run |
| `truncation/` | whether a file ends before its own structure says so |
| `probe` | the first pass, by the files below |
| `walk`, `packets`, `bitstream` | what each packet says; what its bytes tell, by the units in them |
| `order` | packets → frames: which, in which order, at which times; random access points |
| `shown` | which frames a decoder shows, where packets do not tell |
| `orientation` | which way up |
| `clock` | how long the last frame stays, and the rate that follows |
| `clip` | the result of the first pass |
| `pyav`, `opencv`, `webp` | decoders, behind `frames.Decoder` |
| `apng` | animations that FFmpeg does not decode |
| `arriving` | a file of which the rest is still arriving |
| `frames` | what happens to a frame that cannot be decoded |
| `frame_list` | a video that came as a list of frames |

Frames are upright: a display matrix is applied (see `orientation` for who else does).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping

import av

from preprocessor.config import Limits
from preprocessor.errors import InvalidRequest
from preprocessor.media.apng import check_blending
from preprocessor.media.checks import keep_going
from preprocessor.media.clip import IndexedClip
from preprocessor.media.frame_list import decode_frame_list
from preprocessor.media.frames import Choice, Decoder, Picture, Pixels
from preprocessor.media.image_formats import decoder_of
from preprocessor.media.opencv import decode_with_opencv, opencv_version
from preprocessor.media.probe import probe_file
from preprocessor.media.pyav import decode_with_pyav, pictures_with_pyav
from preprocessor.media.webp import decode_webp, is_webp, probe_webp
from preprocessor.types.request import OnDamage
from preprocessor.types.source import FrameListInfo, ImageInfo, VideoInfo

VIDEO_BACKENDS: Mapping[str, Decoder] = {"pyav": decode_with_pyav, "opencv": decode_with_opencv}


def probe_video(
    data: bytes,
    limits: Limits,
    key: str = "video",
    check: Callable[[], None] = keep_going,
    on_damage: OnDamage = OnDamage.FAIL,
) -> IndexedClip:
    """Facts and every frame's presentation time.

    Args:
        data: The whole file.
        key: The caller's name for it, for messages.
        check: Called between packets; raises to stop the walk.
        on_damage: FAIL refuses a file that ends early. REPEAT takes the frames that are whole in it, no others, each at its
            own time, and says `is_truncated`.
    Raises:
        UnsupportedMedia: `EMPTY_MEDIA`, `NOT_MEDIA`, `NO_VIDEO_STREAM`, `UNSUPPORTED_CODEC`, `UNSUPPORTED_FORMAT`, or
            `DECODER_LIMIT` for an animation that FFmpeg does not decode.
        CorruptMedia: `TRUNCATED_MEDIA` where the file ends before it says, `CORRUPT_MEDIA` otherwise.
        LimitExceeded: `FRAME_TOO_LARGE`, `SIDE_TOO_LONG`, `TOO_MANY_FRAMES`, `VIDEO_TOO_LONG`, `TOO_MANY_STREAMS`;
            `WORKER_MEMORY_EXCEEDED`.
    """
    check_blending(data, key, check)
    probe = probe_webp if is_webp(data) else probe_file
    return probe(data, limits, key, check, on_damage)


def video_decoder_of(clip: VideoInfo, backend: str) -> str:
    """The libraries that decode a clip, with versions: "FFmpeg 8.1.2".

    Args:
        backend: As `decode_frames`'s.
    """
    if isinstance(clip, FrameListInfo):
        return clip.decoder
    if backend == "opencv":
        return opencv_version()
    return decoder_of("WEBP") if clip.codec == "webp" else f"FFmpeg {av.ffmpeg_version_info}"


def decode_frames(data: bytes, clip: VideoInfo, choice: Choice, backend: str = "pyav") -> Iterator[Pixels]:
    """Yield the chosen frames as RGB uint8 [height, width, 3], in presentation order; a repeated index repeats.

    Exactly one frame an index. A yielded array is valid until the next one is asked for, and may be a turned view.

    Args:
        clip: As `probe_video` or `probe_frame_list` returned it for these bytes.
        backend: A name in `VIDEO_BACKENDS`.
    Raises:
        CorruptMedia: `UNDECODABLE_FRAME`: a chosen frame cannot be decoded (FAIL; the message names its time) or no frame
            can (REPEAT).
        UnsupportedMedia: `RESOLUTION_CHANGE` where a chosen frame has another size than the file's first, on_damage or not;
            `DECODER_LIMIT` where the backend cannot do it.
        InvalidRequest: `UNKNOWN_DECODER`.
    """
    if backend not in VIDEO_BACKENDS:
        raise InvalidRequest(
            f"no decoder is called {backend!r}; there are {', '.join(VIDEO_BACKENDS)}",
            reason="UNKNOWN_DECODER",
            media_key=choice.key,
        )
    if isinstance(clip, FrameListInfo):
        return decode_frame_list(data, clip, choice)
    if not isinstance(clip, IndexedClip):
        raise TypeError("clip must come from probe_video, for it holds the file's packets")
    decode = decode_webp if clip.codec == "webp" and backend == "pyav" else VIDEO_BACKENDS[backend]
    return decode(data, clip, choice)


def has_pictures(clip: ImageInfo | VideoInfo, backend: str) -> bool:
    """Whether `decode_pictures` can decode it."""
    return isinstance(clip, IndexedClip) and clip.codec != "webp" and backend == "pyav"


def decode_pictures(data: bytes, clip: ImageInfo | VideoInfo, choice: Choice) -> Generator[Picture, None, None]:
    """As `decode_frames`, with pixels that are made when they are asked for, in any thread. Needs `has_pictures`.

    An error of a picture is to be thrown into the generator, which raises what `decode_frames` would.
    """
    assert isinstance(clip, IndexedClip), "see `has_pictures`"
    return pictures_with_pyav(data, clip, choice)
