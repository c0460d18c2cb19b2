"""From the frames that could be decoded to exactly the frames that were requested.

Every decoder yields the frames that it can decode, in presentation order. `fill` alone decides about the others: an error that
names the first bad time, or the last good frame in their place. Times are not shifted: a missing frame is missing at its own
index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from preprocessor.media.checks import keep_going
from preprocessor.media.clip import IndexedClip, undecodable
from preprocessor.types.request import OnDamage
from preprocessor.types.source import VideoInfo

Pixels = npt.NDArray[np.uint8]
Picture = Callable[[], Pixels]
"""A decoded frame: called, in any thread, it makes its pixels. The same object stands for the same frame."""

Frame = TypeVar("Frame")
Shown = TypeVar("Shown")

Substituted = Callable[[int, int], None]
"""Called with (index of a chosen frame, index of the frame used in its place)."""

Decoded = Callable[[int], None]
"""Called with the number of frames that a decoder has just returned, wanted or not."""


def unreported(*_: int) -> None:
    """Reports nothing."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The frames to decode and what to do about those that cannot be.

    Attributes:
        indices: Ascending, 0 <= index < frame_count; an index may repeat.
        key: The caller's name for the file, for messages.
        check: Called between packets; raises to stop the decode.
        on_damage: REPEAT puts the last good frame in the place of one that cannot be decoded, or the next good one where
            none was before.
        substituted: Called for each such place.
    """

    indices: npt.NDArray[np.int64]
    key: str = "video"
    check: Callable[[], None] = keep_going
    on_damage: OnDamage = OnDamage.FAIL
    substituted: Substituted = unreported
    decoded: Decoded = unreported


class Decoder(Protocol):
    """One way from a file to frames: uint8 [height, width, 3], RGB, upright, one for each index of the choice.

    Raises:
        UnsupportedMedia: This decoder cannot do what is asked.
        CorruptMedia: A frame cannot be decoded and `choice.on_damage` is FAIL, or none can.
    """

    def __call__(self, data: bytes, clip: IndexedClip, choice: Choice) -> Iterator[Pixels]: ...


def fill(
    good: Iterable[tuple[int, Frame]], show: Callable[[Frame], Shown], clip: VideoInfo, choice: Choice
) -> Iterator[Shown]:
    """Yield one frame for each index, as `show` makes it.

    Args:
        good: (index, frame) of frames that decoded, wanted or not, ascending; not read further than needed.
        show: Makes of a frame what is yielded; called once for a frame that is used several times in a row.
    """
    wanted = choice.indices.tolist()
    if not wanted:
        return
    position = 0
    last: tuple[int, Frame] | None = None
    latest: tuple[int, Shown] | None = None

    def shown(index: int, frame: Frame) -> Shown:
        nonlocal latest
        if latest is None or latest[0] != index:
            latest = index, show(frame)
        return latest[1]

    for index, frame in good:
        while wanted[position] < index:
            if choice.on_damage is OnDamage.FAIL:
                raise undecodable(clip, wanted[position], choice.key)
            used = last or (index, frame)
            choice.substituted(wanted[position], used[0])
            yield shown(*used)
            position += 1
            if position == len(wanted):
                return
        while wanted[position] == index:
            yield shown(index, frame)
            position += 1
            if position == len(wanted):
                return
        last = index, frame
    if last is None or choice.on_damage is OnDamage.FAIL:
        raise undecodable(clip, wanted[position], choice.key)
    for missing in range(position, len(wanted)):
        choice.substituted(wanted[missing], last[0])
        yield shown(*last)
