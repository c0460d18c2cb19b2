"""Images, videos and sounds of a prompt, from paths, bytes or URLs.

>>> prompt = chat([{"role": "user", "content": [video(clip, fps=2), image(photo), "Is this place in the film?"]}])
>>> [medium.key for medium in prompt.spec.media]
['clip.mp4', 'photo.jpg']

A video may also be frames that the caller has chosen, as image files or arrays:

>>> camera = video(frames=[photo, photo], times_seconds=[0, 2.5], key="camera")
>>> list(chat([{"role": "user", "content": [camera, "What has changed?"]}]).spec.media[0].frames.times_seconds.values)
[0.0, 2.5]

Where the service keeps files, a later call can name them. Frames need their description again:

>>> camera = video(frames=[photo, photo], fps=1, uuid="camera 7")
>>> again = video(Cached(uuid="camera 7", frame_list=camera.frame_list))
>>> [len(one.fields.frames.sizes_bytes) for one in (camera, again)]
[2, 2]

What these functions refuse is an `InvalidRequest` with the reason that the service would give.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

from preprocessor.client.frames import Frame, invalid_frames, join_frames
from preprocessor.client.requests import Prompt
from preprocessor.errors import InvalidRequest
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.tensors import MAX_CHUNK_BYTES

Source = str | PathLike[str] | bytes
"""A path; the file itself; or a URL for the service to fetch: a text that begins with `data:` or a scheme and `://`."""


@dataclass(frozen=True, slots=True)
class Cached:
    """A file that the service has from an earlier call, named by one of these. If not, the call fails with `MEDIA_NOT_CACHED`.

    Attributes:
        uuid: As given to `image`, `video` or `audio` with the file.
        content_sha256: Of the file, 32 bytes.
        frame_list: Of a video that was given as frames: the `frame_list` of what `video` made of them.
    """

    uuid: str = ""
    content_sha256: bytes = b""
    frame_list: pb.FrameList | None = None


URL = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)
_BASES = {None: pb.SAMPLING_BASIS_UNSPECIFIED, "index": pb.SAMPLING_BASIS_INDEX, "time": pb.SAMPLING_BASIS_TIME}
MODALITY_NAMES = {pb.MODALITY_IMAGE: "image", pb.MODALITY_VIDEO: "video", pb.MODALITY_AUDIO: "audio"}


@dataclass(frozen=True, slots=True, eq=False)
class Medium:
    """One image, video or sound; `image`, `video` and `audio` make it. One object that stands in several places is sent once.

    Attributes:
        fields: All but the key and the source.
        source: The file, its URL, another medium whose file this is too, or the name of a file that the service has.
        key: Its name in header and errors.
        name: What its key is made of where `key` is empty.
    """

    fields: pb.Media
    source: bytes | str | Medium | Cached
    key: str
    name: str

    @property
    def frame_list(self) -> pb.FrameList | None:
        """Sizes and times of the frames that it was given as, without their pixels: for `Cached`. None of any other medium."""
        return self.fields.frames if self.fields.HasField("frames") else None


def image(
    source: Source | Cached,
    *,
    key: str = "",
    uuid: str = "",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    background: str = "",
) -> Medium:
    """An image of a prompt.

    Args:
        key: Its name in header and errors; the file's name, or "image", where empty.
        uuid: A name of your own for the file, by which later calls can name it: `Cached`. None where empty.
        min_pixels, max_pixels: Bounds on height x width after resizing, px; the model's own where None.
        background: What is transparent is laid on "white", "black" or "#rrggbb"; "none" does as transformers does.
    Raises:
        OSError: The file cannot be read.
    """
    fields = pb.Media(
        modality=pb.MODALITY_IMAGE, min_pixel_count=min_pixels, max_pixel_count=max_pixels, background=background
    )
    return _medium(fields, source, key, uuid)


def video(
    source: Source | Cached | None = None,
    *,
    frames: Iterable[Frame] | None = None,
    key: str = "",
    uuid: str = "",
    fps: float | None = None,
    frame_count: int | None = None,
    indices: Sequence[int] | None = None,
    times_seconds: Sequence[float] | None = None,
    duration_seconds: float | None = None,
    every_frame: bool = False,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    basis: Literal["index", "time"] | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    cap_pixels_per_frame: bool | None = None,
    tolerant: bool = False,
) -> Medium:
    """A video of a prompt. Which frames are used: at most one of the first five ways; the model's own rule with none.

    Args:
        source: The video's file; None where `frames` are given.
        frames: The frames of the video, all of which are used: paths or bytes of image files (JPEG, PNG, WebP), or arrays uint8
            [height, width, 3]; all of one size. Then `fps` or `times_seconds` is required and tells when they are shown, and no
            other way is accepted, nor start, end or basis.
        key, uuid: As `image`'s.
        fps: Frames a second.
        frame_count: Frames in all; a clip with fewer gives each once.
        indices: Frame numbers in presentation order, from 0, ascending.
        times_seconds: The frames on screen then, from the clip's first frame, ascending.
        duration_seconds: Of `frames` with times: length of the video that they are from, if it is known.
        every_frame: All frames.
        start_seconds, end_seconds: Only frames on screen from start (included) to end (excluded).
        basis: What fps and frame_count spread frames over: frame numbers, or presentation times.
        min_pixels, max_pixels: Bounds on pixels after resizing; how a family counts them: `Media` in the proto.
        cap_pixels_per_frame: Overrides the model's setting of that name.
        tolerant: The last good frame stands in the place of one that cannot be decoded; the call fails otherwise.
    Raises:
        OSError: A file cannot be read.
        InvalidRequest: `SAMPLING_CONFLICT`, `INVALID_FRAMES`, `RESOLUTION_CHANGE`.
    """
    fields = pb.Media(
        modality=pb.MODALITY_VIDEO,
        min_pixel_count=min_pixels,
        max_pixel_count=max_pixels,
        cap_pixels_per_frame=cap_pixels_per_frame,
        damage_policy=pb.DAMAGE_POLICY_TOLERANT if tolerant else pb.DAMAGE_POLICY_UNSPECIFIED,
    )
    if frames is not None:
        if source is not None:
            raise invalid_frames("a video is given by its file or by its frames, not by both")
        listed, joined = join_frames(frames, fps, times_seconds)
        fields.frames.CopyFrom(listed)
        if duration_seconds is not None:
            fields.frames.duration_seconds = duration_seconds
        fps = times_seconds = None
        source = joined
    elif source is None or duration_seconds is not None:
        what = "duration_seconds is for frames" if source is not None else "a video needs its file or its frames"
        raise invalid_frames(what)
    choice = {
        "fps": fps,
        "frame_count": frame_count,
        "indices": None if indices is None else pb.FrameIndices(values=indices),
        "times_seconds": None if times_seconds is None else pb.FrameTimes(values=times_seconds),
        "every_frame": pb.EveryFrame() if every_frame else None,
    }
    chosen = {name: value for name, value in choice.items() if value is not None}
    if len(chosen) > 1:  # of which a message would keep the last
        raise InvalidRequest(f"{' and '.join(chosen)} are given together; choose one", reason="SAMPLING_CONFLICT")
    sampling = pb.Sampling(start_seconds=start_seconds, end_seconds=end_seconds, basis=_BASES[basis], **chosen)  # type: ignore[arg-type]
    if sampling != pb.Sampling():
        if frames is not None:
            raise InvalidRequest("frames that are given are all used; leave sampling out", reason="SAMPLING_CONFLICT")
        fields.sampling.CopyFrom(sampling)
    return _medium(fields, source, key, uuid)


def audio(source: Source | Medium | Cached, *, key: str = "", uuid: str = "") -> Medium:
    """A sound of a prompt, for models that take sound.

    Args:
        source: A `video` too, whose sound this is: its file is sent once.
        key, uuid: As `image`'s.
    Raises:
        OSError: The file cannot be read.
    """
    return _medium(pb.Media(modality=pb.MODALITY_AUDIO), source, key, uuid)


class MediaSet:
    """The media of one prompt, each with a key of its own.

    Files go into the spec while they are small together; further ones follow it in chunks.
    """

    def __init__(self, media: Sequence[Medium] = ()) -> None:
        self._messages: list[pb.Media] = []
        self._keys: dict[Medium, str] = {}
        self._chunked: dict[str, bytes] = {}
        self._inline_bytes = 0
        for medium in media:
            self.add(medium)

    def add(self, medium: Medium) -> str:
        """Take a medium, unless it is here; its key."""
        if medium in self._keys:
            return self._keys[medium]
        sent = pb.Media()
        sent.CopyFrom(medium.fields)
        if isinstance(medium.source, Medium):
            sent.same_file_as = self.add(medium.source)
        sent.key = self._keys[medium] = self._key_of(medium)
        if isinstance(medium.source, str):
            sent.url = medium.source
        elif isinstance(medium.source, Cached):
            sent.cached.SetInParent()
        elif isinstance(medium.source, bytes):
            if self._inline_bytes + len(medium.source) <= MAX_CHUNK_BYTES:
                sent.inline_data = medium.source
                self._inline_bytes += len(medium.source)
            else:
                sent.chunked.SetInParent()
                self._chunked[sent.key] = medium.source
        self._messages.append(sent)
        return sent.key

    def prompt_of(self, spec: pb.PrepareSpec) -> Prompt:
        """The spec with these media, and their files."""
        spec.media.extend(self._messages)
        return Prompt(spec, self._chunked)

    def _key_of(self, medium: Medium) -> str:
        taken = self._keys.values()
        if medium.key:
            if medium.key in taken:
                raise InvalidRequest(f"two media have the key {medium.key!r}", reason="DUPLICATE_MEDIA_KEY")
            return medium.key
        numbered = (f"{medium.name}#{number}" for number in range(2, len(taken) + 2))
        return medium.name if medium.name not in taken else next(key for key in numbered if key not in taken)


def by_url(modality: pb.Modality.ValueType, url: str) -> Medium:
    """A medium that the service fetches, whatever the URL looks like."""
    return Medium(pb.Media(modality=modality), url, "", MODALITY_NAMES[modality])


def _medium(fields: pb.Media, source: Source | Medium | Cached, key: str, uuid: str) -> Medium:
    name = MODALITY_NAMES[fields.modality]
    if isinstance(source, Cached):
        uuid = uuid or source.uuid
        if source.content_sha256:
            fields.content_sha256 = source.content_sha256
        if source.frame_list is not None:
            fields.frames.CopyFrom(source.frame_list)
    if uuid:
        fields.uuid = uuid
    if isinstance(source, bytes | Medium | Cached) or (isinstance(source, str) and URL.match(source)):
        return Medium(fields, source, key, name)
    path = Path(source)
    return Medium(fields, path.read_bytes(), key, path.name)
