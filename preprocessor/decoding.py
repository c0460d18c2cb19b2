"""One planned item → its pixels as decoded, a temporal patch at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from preprocessor.errors import CorruptMedia
from preprocessor.media.image import decode_image
from preprocessor.media.video import decode_frames
from preprocessor.timing import Timings
from preprocessor.types.asked import Media
from preprocessor.types.found import ClipInfo
from preprocessor.types.made import Substitution
from preprocessor.types.planned import ItemPlan


@dataclass(frozen=True, slots=True)
class ItemDecoder:
    """One item to decode: its file, its plan, and where to report frames that had to be replaced.

    Attributes:
        frames_wanted: Which of a video's chosen frames; an image is always whole.
    """

    medium: Media
    item: ItemPlan
    item_index: int
    frames_wanted: slice
    video_decoder: str
    substitutions: list[Substitution]
    check: Callable[[], None]

    def image(self) -> npt.NDArray[np.uint8]:
        """RGB uint8 [height, width, 3], of the size that was planned."""
        pixels = decode_image(self.medium.data, self.item.key)
        source = self.item.source
        if pixels.shape[:2] != (source.height_px, source.width_px):
            raise CorruptMedia(
                f"{self.item.key}: the header says {source.width_px}x{source.height_px} and the pixels are "
                f"{pixels.shape[1]}x{pixels.shape[0]}",
                media_key=self.item.key,
            )
        return pixels

    def frames(self) -> Iterator[npt.NDArray[np.uint8]]:
        """The wanted frames in order, uint8 [height, width, 3]; each is valid until the next."""
        clip, choice = self.item.source, self.item.frames
        assert isinstance(clip, ClipInfo) and choice is not None
        indices = choice.indices[self.frames_wanted]

        def substituted(position: int, used: int) -> None:
            self.substitutions.append(Substitution(self.item_index, int(indices[position]), used))

        return decode_frames(
            self.medium.data,
            clip,
            indices,
            self.item.key,
            self.check,
            on_damage=self.medium.on_damage,
            substituted=substituted,
            backend=self.video_decoder,
        )


def frame_groups(decoder: ItemDecoder, group_size: int, timings: Timings) -> Iterator[npt.NDArray[np.uint8]]:
    """Frames of one temporal patch at a time, uint8 [n, height, width, 3], n = group_size but for an image or the end.

    The array is reused: it is valid until the next one is asked for.
    """
    if decoder.item.frames is None:
        with timings.stage("decode"):
            image = decoder.image()
        yield image[np.newaxis]
        return
    frames, source = decoder.frames(), decoder.item.source
    group = np.empty((group_size, source.height_px, source.width_px, 3), np.uint8)
    while True:
        filled = 0
        with timings.stage("decode"):
            for frame in itertools.islice(frames, group_size):
                group[filled] = frame
                filled += 1
        if not filled:
            return
        yield group[:filled]
