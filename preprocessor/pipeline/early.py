"""Which rows of a plan can be made before its files have arrived, and whether a plan made early is the one made at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from preprocessor.media.arriving import ArrivingFile, needed_bytes
from preprocessor.media.clip import IndexedClip
from preprocessor.media.streams import open_video
from preprocessor.pipeline.division import separate_groups
from preprocessor.types.plan import ItemPlan, PixelPlan
from preprocessor.types.request import Media, OnDamage

EarlyCut = tuple[int, str, int]
"""A row, a medium's key and a number of bytes: with so much of its file, the rows from the cut before to this one can be made."""
MOST_CUTS = 256


def arriving_media(media: Sequence[Media], sizes: Mapping[str, int], *, is_padded: bool) -> tuple[Media, ...]:
    """The media, those that are still arriving as `ArrivingFile`s.

    Args:
        sizes: By media key, bytes of the whole file of each that is still arriving.
    Raises:
        NotArrived: As `ArrivingFile`.
    """
    return tuple(
        dataclasses.replace(one, data=ArrivingFile(one.content, sizes[one.key], is_padded=is_padded))
        if one.key in sizes
        else one
        for one in media
    )


def early_cuts(planned: PixelPlan, media: Sequence[Media], check: Callable[[], None]) -> tuple[EarlyCut, ...]:
    """Where a plan's rows can be cut, ascending, up to the first item of which the rest must have arrived first.

    Cuts lie where `division.cut` makes some, so that no frame is decoded twice. There are at most `MOST_CUTS`.

    Args:
        media: With `ArrivingFile`s.
    """
    files = {medium.key: medium for medium in media}
    cuts: list[EarlyCut] = []
    for item in planned.items:
        medium = files[item.key]
        is_arriving = isinstance(medium.data, ArrivingFile)
        if planned.video_decoder == "pyav" and medium.on_damage is OnDamage.FAIL:
            cuts += _inner_cuts(item, medium, check)
        if is_arriving:
            break
        cuts.append((item.row_start + item.rows.row_count, item.key, 0))
    return tuple(cuts[:: len(cuts) // MOST_CUTS + 1])


def _inner_cuts(item: ItemPlan, medium: Media, check: Callable[[], None]) -> list[EarlyCut]:
    groups, data = np.asarray(separate_groups(item)[1:], np.int64), medium.data
    needed = np.zeros(len(groups), np.int64)
    if isinstance(data, ArrivingFile):
        clip = item.source
        if not isinstance(clip, IndexedClip) or item.frames is None or not len(clip.frame_of_packet):
            return []
        ends = _packet_ends(data, clip, item.key, check)
        if len(ends) != len(clip.frame_of_packet):
            return []
        packets = np.zeros(clip.frame_count, np.int64)
        shown = np.flatnonzero(clip.frame_of_packet >= 0)
        packets[clip.frame_of_packet[shown]] = shown
        last_packet = np.maximum.accumulate(packets[item.frames.indices])
        needed = needed_bytes(ends, last_packet[groups * item.rows.group_frames - 1])
    rows = item.row_start + groups * item.rows.group_rows
    return [(row, item.key, count) for row, count in zip(rows.tolist(), needed.tolist(), strict=True)]


def _packet_ends(data: ArrivingFile, clip: IndexedClip, key: str, check: Callable[[], None]) -> npt.NDArray[np.int64]:
    """int64 [packet_count]: where each packet ends in the file, as its index says."""
    with open_video(data, key, clip.max_frame_pixels, check, stream_index=clip.stream_index) as (_, stream):
        return np.asarray([entry.pos + entry.size for entry in stream.index_entries if entry.size > 0], np.int64)


def makes_same_rows(one: PixelPlan, other: PixelPlan) -> bool:
    """Whether two plans for the same files differ in nothing but these files' digests."""
    return are_equal(_without_digests(one), _without_digests(other))


def _without_digests(planned: PixelPlan) -> PixelPlan:
    items = (dataclasses.replace(item, content_sha256=b"", digest=b"", uint8_digest=b"") for item in planned.items)
    return dataclasses.replace(planned, items=tuple(items))


def are_equal(one: Any, other: Any) -> bool:
    """Equal in type and in every value, through data classes, tuples and arrays."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(are_equal, one, other))
    if dataclasses.is_dataclass(one):
        names = (field.name for field in dataclasses.fields(one))
        return all(are_equal(getattr(one, name), getattr(other, name)) for name in names)
    return bool(one == other)
