"""Parts of a message that are media → `Media`.

The key of a medium is the path of its part, such as `messages[0].content[1]`, so that errors name it as OpenAI's do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from preprocessor.service.openai.fields import Fields
from preprocessor.v1 import preprocessor_pb2 as pb

_URL_PARTS = {
    "image_url": pb.MODALITY_IMAGE,
    "video_url": pb.MODALITY_VIDEO,
    "audio_url": pb.MODALITY_AUDIO,
}
MEDIA_TYPES = frozenset({*_URL_PARTS, "input_audio"})
_PROCESSOR = "mm_processor_kwargs"
_LOADER = "media_io_kwargs"


class MediaReader:
    """Collects the media of one request.

    Args:
        fields: The request's, of which `mm_processor_kwargs` and `media_io_kwargs` are taken.
        files: Mark in the place of a file → the file.

    Attributes:
        media: In the order of the messages.
        received: Key of a medium → its file, where the body has it.
    Raises:
        InvalidRequest: These arguments have a wrong type, are unknown or contradict each other.
    """

    def __init__(self, fields: Fields, files: Mapping[str, memoryview]) -> None:
        self.media: list[pb.Media] = []
        self.received: dict[str, memoryview] = {}
        self._files = files
        self._settings = {modality: pb.Media(modality=modality) for modality in _URL_PARTS.values()}
        image, video = self._settings[pb.MODALITY_IMAGE], self._settings[pb.MODALITY_VIDEO]
        if (processor := fields.take_object(_PROCESSOR)) is not None:
            for name, targets in (("images_kwargs", [image]), ("videos_kwargs", [video])):
                if (own := processor.take_object(name)) is not None:
                    _read_processor_arguments(own, targets)
            _read_processor_arguments(processor, [image, video])
        if (loader := fields.take_object(_LOADER)) is not None:
            if (of_images := loader.take_object("image")) is not None:
                image.background = _read_background(of_images)
                of_images.end()
            if (of_videos := loader.take_object("video")) is not None:
                _read_sampling(of_videos, video)
                of_videos.end()
            loader.end()

    def add(self, part: Fields, kind: str) -> pb.Part:
        """The part's place in the prompt; its medium is collected.

        Args:
            part: Its fields, without `type`.
            kind: Its `type`, one of `MEDIA_TYPES`.
        """
        medium = pb.Media(key=part.path)
        medium.MergeFrom(self._settings[_URL_PARTS.get(kind, pb.MODALITY_AUDIO)])
        url = self._take_url(part, kind)
        uuid = part.take("uuid", str)
        part.end()
        if uuid is not None:
            medium.uuid = uuid
        if url is None:
            if uuid is None:
                raise part.error(kind, "is missing; give a file, or the uuid of one that was sent before")
            medium.cached.SetInParent()
        elif url in self._files:
            medium.chunked.SetInParent()
            self.received[medium.key] = self._files[url]
        else:
            medium.url = url
        self.media.append(medium)
        return pb.Part(media_key=medium.key)

    @staticmethod
    def _take_url(part: Fields, kind: str) -> str | None:
        """The URL, or the mark of a file; None if there is none."""
        value: Any = part.take_any(kind)
        if value is None or isinstance(value, str):
            return value
        holder = Fields(value, part.path_of(kind), "INVALID_MESSAGE")
        if kind == "input_audio":
            holder.ignore("format")  # the file says it
            data = holder.take("data", str)
            url = (
                data if data is None or ":" in data else f"data:audio/x;base64,{data}"
            )  # a mark has a colon, base64 none
        else:
            holder.ignore("detail")  # as in vLLM
            url = holder.take("url", str)
        holder.end()
        if url is None:
            raise holder.error("data" if kind == "input_audio" else "url", "is missing")
        return url


def _read_processor_arguments(arguments: Fields, targets: list[pb.Media]) -> None:
    """Arguments of the model's processor in transformers."""
    size = arguments.take_object("size")
    least, most = arguments.take_int("min_pixels", 64), arguments.take_int("max_pixels", 64)
    if size is not None:  # the newer names of the same two
        least, most = size.take_int("shortest_edge", 64) or least, size.take_int("longest_edge", 64) or most
        size.end()
    if arguments.take("do_sample_frames", bool) is False:
        raise arguments.error(
            "do_sample_frames", "must be true; for every frame set media_io_kwargs.video.num_frames to -1"
        )
    cap = arguments.take("cap_pixels_per_frame", bool)
    for medium in targets:
        is_video = medium.modality == pb.MODALITY_VIDEO
        if least is not None:
            medium.min_pixel_count = least
        if most is not None:
            medium.max_pixel_count = most
        if is_video and cap is not None:
            medium.cap_pixels_per_frame = cap
        if is_video:
            _read_sampling(arguments, medium)
    arguments.end()


def _read_sampling(arguments: Fields, video: pb.Media) -> None:
    """`fps`, or `num_frames`; -1 frames are all of them."""
    fps, frame_count = arguments.take("fps", float), arguments.take_int("num_frames")
    if fps is None and frame_count is None:
        return
    if video.sampling.WhichOneof("choice") and (fps, frame_count) == (None, -1):
        return  # vLLM then gives all frames to the processor, which chooses among them
    if None not in (fps, frame_count) or video.sampling.WhichOneof("choice"):
        raise arguments.error("num_frames", "or fps: give one of the two, once")
    if fps is not None:
        video.sampling.fps = fps
    elif frame_count == -1:
        video.sampling.every_frame.SetInParent()
    elif frame_count is not None:
        video.sampling.frame_count = frame_count


def _read_background(arguments: Fields) -> str:
    """vLLM's `rgba_background_color`: red, green and blue."""
    colour = arguments.take("rgba_background_color", list)
    if colour is None:
        return ""
    is_byte = [isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 256 for value in colour]
    if is_byte != [True] * 3:
        raise arguments.error("rgba_background_color", "must be three numbers from 0 to 255")
    return "#" + bytes(colour).hex()
