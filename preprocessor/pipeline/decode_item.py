"""One planned item → its pixels as decoded, a frame at a time."""

from __future__ import annotations

from collections.abc import Iterator

from preprocessor.errors import CorruptMedia
from preprocessor.media.frames import Choice, Pixels
from preprocessor.media.image import decode_image
from preprocessor.media.video import decode_frames
from preprocessor.types.plan import ItemPlan
from preprocessor.types.request import Media
from preprocessor.types.source import ImageInfo


def decode_item(medium: Media, item: ItemPlan, choice: Choice, video_decoder: str) -> Iterator[Pixels]:
    """The chosen frames of a video in order, or an image; uint8 [height, width, 3], each valid until the next is asked for.

    Args:
        choice: Of `item.frame_indices`; an image is always whole.
        video_decoder: A name in `media.video.VIDEO_BACKENDS`.
    Raises:
        CorruptMedia: The pixels are not what the header says.
    """
    source = item.picture
    if isinstance(source, ImageInfo):
        yield _decode_image(medium, item)
    else:
        yield from decode_frames(medium.content, source, choice, video_decoder)


def _decode_image(medium: Media, item: ItemPlan) -> Pixels:
    """RGB uint8 [height, width, 3], of the size that was planned."""
    pixels = decode_image(medium.content, item.key, medium.background)
    source = item.picture
    if pixels.shape[:2] != (source.height_px, source.width_px):
        raise CorruptMedia(
            f"{item.key}: the header says {source.width_px}x{source.height_px} and the pixels are "
            f"{pixels.shape[1]}x{pixels.shape[0]}",
            media_key=item.key,
        )
    return pixels
