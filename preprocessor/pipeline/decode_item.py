"""One planned item → its pixels as decoded, a frame at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import numpy as np
import numpy.typing as npt

from preprocessor.errors import CorruptMedia
from preprocessor.media.frames import Decoded, Picture, unreported
from preprocessor.media.image import decode_image
from preprocessor.media.video import decode_frames, decode_pictures, has_pictures
from preprocessor.types.plan import ItemPlan
from preprocessor.types.request import Media
from preprocessor.types.source import ImageInfo


def decode_item(
    medium: Media,
    item: ItemPlan,
    frames_wanted: slice,
    video_decoder: str,
    substituted: Callable[[int, int], None],
    check: Callable[[], None],
    decoded: Decoded = unreported,
) -> Iterator[npt.NDArray[np.uint8]]:
    """The wanted frames of a video in order, or an image; uint8 [height, width, 3], each valid until the next is asked for.

    Args:
        frames_wanted: Which of a video's chosen frames; an image is always whole.
        substituted: Called with (index of the chosen frame, index of the frame used instead).
        decoded: Called with how many frames of a video were decoded more, wanted or not.
    Raises:
        CorruptMedia: The pixels are not what the header says.
    """
    source = item.picture
    if item.frames is None or isinstance(source, ImageInfo):
        yield _decode_image(medium, item)
        return
    indices = item.frames.indices[frames_wanted]
    yield from decode_frames(
        medium.content,
        source,
        indices,
        item.key,
        check,
        on_damage=medium.on_damage,
        substituted=lambda position, used: substituted(int(indices[position]), used),
        decoded=decoded,
        backend=video_decoder,
    )


def has_item_pictures(item: ItemPlan, video_decoder: str) -> bool:
    """Whether `decode_item_pictures` can decode the item."""
    return item.frames is not None and has_pictures(item.picture, video_decoder)


def decode_item_pictures(
    medium: Media,
    item: ItemPlan,
    frames_wanted: slice,
    substituted: Callable[[int, int], None],
    check: Callable[[], None],
    decoded: Decoded = unreported,
) -> Generator[Picture, None, None]:
    """As `decode_item`, of a video for which `has_item_pictures`, with pixels that are made when asked for, in any thread.

    An error of a picture is to be thrown into it.
    """
    source = item.picture
    assert item.frames is not None and not isinstance(source, ImageInfo), "see `has_item_pictures`"
    indices = item.frames.indices[frames_wanted]
    yield from decode_pictures(
        medium.content,
        source,
        indices,
        item.key,
        check,
        on_damage=medium.on_damage,
        substituted=lambda position, used: substituted(int(indices[position]), used),
        decoded=decoded,
    )


def _decode_image(medium: Media, item: ItemPlan) -> npt.NDArray[np.uint8]:
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
