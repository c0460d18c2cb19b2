"""One pass over a video's packets: times, durations, flags and picture types. Nothing is decoded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import av
import av.container

from preprocessor.config import Limits
from preprocessor.errors import CorruptMedia, LimitExceeded
from preprocessor.media.arriving import NotArrived, keys_to_come, where_arrived
from preprocessor.media.bitstream import TYPED, PictureType, picture_type
from preprocessor.media.container import read_packets
from preprocessor.media.packets import (
    RandomAccess,
    hidden_test,
    random_access_test,
    start_test,
    uncertainty_test,
    usual_access,
)
from preprocessor.types.request import OnDamage


@dataclass(slots=True)
class Walk:
    """One element a packet, in decode order.

    Attributes:
        pts, dts: Presentation and decoding times in the stream's units; None where the file gives none.
        stays: Durations in the same units; 0 where there are none.
        is_frame: Whether a decoder shows the packet's frame, as far as its bytes and the container tell.
        discarded: Ordinals of packets that the container hides, by an edit list.
        types: The pictures' types, of codecs that `bitstream.TYPED` names; else empty.
        keys: Ordinals of packets marked as keyframes.
        random_access_points: Their ordinals and kinds.
        starts_whole: A decoder that starts at the first packet shows every frame.
        is_uncertain: Only a decoder tells how many frames some packet gives, or samples are read in another order than they
            lie in the file.
        is_cut: The file ends inside a packet, or cannot be read on.
    """

    pts: list[int | None] = field(default_factory=list)
    dts: list[int | None] = field(default_factory=list)
    stays: list[int] = field(default_factory=list)
    is_frame: list[bool] = field(default_factory=list)
    discarded: list[int] = field(default_factory=list)
    types: list[PictureType] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    random_access_points: list[tuple[int, RandomAccess]] = field(default_factory=list)
    starts_whole: bool = False
    is_uncertain: bool = False
    is_cut: bool = False


def walk_packets(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    limits: Limits,
    key: str,
    check: Callable[[], None],
    on_damage: OnDamage,
    arrived_bytes: int | None = None,
) -> Walk:
    """Read the stream to its end.

    Args:
        arrived_bytes: How much of the file is here; of packets that are not, `arriving` says what is taken for granted.
    Raises:
        NotArrived: The codec's packets must be looked at, and some are not here.
        LimitExceeded: `TOO_MANY_FRAMES`.
        CorruptMedia: FFmpeg cannot read on, and `on_damage` is FAIL.
    """
    walk = Walk()
    codec = stream.codec_context
    access_of, is_hidden, is_uncertain = random_access_test(codec), hidden_test(codec), uncertainty_test(codec)
    type_of = picture_type(codec) if codec.name in TYPED else None
    if arrived_bytes is not None:
        if type_of is not None:
            raise NotArrived
        access_of = where_arrived(access_of, arrived_bytes, RandomAccess.NONE)
        is_hidden = is_hidden and where_arrived(is_hidden, arrived_bytes, False)
        is_uncertain = is_uncertain and where_arrived(is_uncertain, arrived_bytes, False)
    last: av.Packet[av.VideoStream] | None = None
    indexed_key = -1
    is_indexed = "mov" in container.format.name
    if is_indexed:  # its index marks a keyframe even if the packet is damaged beyond recognition
        indexed_key = next((ordinal for ordinal, entry in enumerate(stream.index_entries) if entry.is_keyframe), -1)
    try:
        for packet in read_packets(container, stream, key, check):
            ordinal = len(walk.pts)
            if ordinal >= limits.max_clip_frames:
                raise too_many_frames(limits, key)
            if last is None:
                walk.starts_whole = start_test(codec)(packet)
            if packet.is_keyframe or ordinal == indexed_key:
                walk.keys.append(ordinal)
                if (access := access_of(packet)) is not RandomAccess.NONE:
                    walk.random_access_points.append((ordinal, access))
            walk.pts.append(packet.pts)
            walk.dts.append(packet.dts)
            walk.stays.append(packet.duration or 0)
            if packet.is_discard:
                walk.discarded.append(ordinal)
            walk.is_frame.append(not ((is_hidden is not None and is_hidden(packet)) or packet.is_discard))
            if type_of is not None:
                walk.types.append(type_of(packet))
            if is_uncertain is not None and is_uncertain(packet):
                walk.is_uncertain = True
            if is_indexed and last is not None and _lies_before(packet, last):  # an edit list shows some of it twice
                walk.is_uncertain = True
            last = packet
    except CorruptMedia:
        if on_damage is OnDamage.FAIL:
            raise
        walk.is_cut = True
    if (
        last is not None and last.is_corrupt
    ):  # FFmpeg's mark for a packet that the end of the file cuts short; elsewhere the decoder is to judge
        walk.is_cut, walk.is_frame[-1] = True, False
    if arrived_bytes is not None:
        to_come = keys_to_come(stream, arrived_bytes)
        walk.random_access_points += [(ordinal, usual_access(codec)) for ordinal in to_come]
    return walk


def _lies_before(packet: av.Packet[av.VideoStream], other: av.Packet[av.VideoStream]) -> bool:
    return packet.pos is not None and other.pos is not None and packet.pos < other.pos


def too_many_frames(limits: Limits, key: str) -> LimitExceeded:
    return LimitExceeded(
        f"{key}: the video holds more than the {limits.max_clip_frames} frames that are accepted",
        reason="TOO_MANY_FRAMES",
        media_key=key,
    )
