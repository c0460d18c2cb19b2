"""Decoding by FFmpeg through PyAV: no more of the file than the chosen frames need, with the pixels of a full decode.

A chosen frame needs the packets from the last random access point before it (`IndexedClip.random_access_packets`) up to its
own. So

* groups of pictures without a chosen frame are skipped, and so is the rest of a group behind its last chosen frame: the
  decoder is drained there and flushed before the next group;
* within a group FFmpeg is told, packet by packet, whether the frame is wanted, and skips unwanted frames that no other frame
  refers to (about half the frames of an x264 file);
* the file is not read behind the last chosen frame.

A packet's ordinal is passed to the decoder in place of its time, and returned with the frame: so frames with equal or wrong
times are told apart.

A file without presentation times is decoded group by group and its frames are counted, for which groups must be closed.

Damage is what FFmpeg reports: a packet that it refuses, or a frame that it marks as concealed. Later frames of the group may
refer to it, and a decoder without a keyframe also loses the order. So the run ends there, and all frames up to the next random
access point count as bad, unless no other frame refers to the damaged one. Damage that decodes to a picture is not detected:
VP8, VP9 and much of CABAC have no checks. Nor is a lost HEVC reference frame that was not chosen.

One colour converter a thread converts the whole clip, on that thread: `frame.to_ndarray` would make one for every frame, with a
thread for every core. The pixels are equal.
"""

from __future__ import annotations

import functools
import itertools
import math
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator

import av
import av.container
import av.error
import av.video.reformatter
import numpy as np

from preprocessor.errors import CorruptMedia, UnsupportedMedia
from preprocessor.media.clip import NO_FRAME, IndexedClip, undecodable
from preprocessor.media.container import read_packets
from preprocessor.media.frames import Choice, Picture, Pixels, Shown, fill
from preprocessor.media.packets import reference_test
from preprocessor.media.streams import open_video
from preprocessor.types.request import OnDamage

# dav1d reads skip_frame once, when it is opened: the first packet would decide for the whole file.
_NEVER_SKIPPING = frozenset({"libdav1d"})


def decode_with_pyav(
    data: bytes, clip: IndexedClip, choice: Choice, inspect: Callable[[av.VideoFrame], None] = lambda _: None
) -> Iterator[Pixels]:
    """See `frames.Decoder`. A yielded array is valid until the next one is asked for; `inspect` sees its frame before."""
    convert = _converter(clip)

    def show(frame: av.VideoFrame) -> Pixels:
        inspect(frame)
        _check_size(frame, clip, choice.key)
        return convert(frame)

    return _shown(data, clip, choice, show)


def pictures_with_pyav(data: bytes, clip: IndexedClip, choice: Choice) -> Generator[Picture, None, None]:
    """As `decode_with_pyav`, with pixels that are made when and in whichever thread they are asked for."""
    convert = _converter(clip)

    def show(frame: av.VideoFrame) -> Picture:
        _check_size(frame, clip, choice.key)
        return functools.partial(convert, frame)

    return _shown(data, clip, choice, show)


def _shown(
    data: bytes, clip: IndexedClip, choice: Choice, show: Callable[[av.VideoFrame], Shown]
) -> Generator[Shown, None, None]:
    """What `show` makes of the frame for each index of the choice."""
    with open_video(data, choice.key, clip.max_frame_pixels, choice.check, stream_index=clip.stream_index) as (
        container,
        stream,
    ):
        packets = read_packets(container, stream, choice.key, choice.check)
        if choice.on_damage is OnDamage.REPEAT:
            packets = _while_readable(packets)
        if len(clip.frame_of_packet):
            good = _TimedDecoder(stream.codec_context, clip, choice).frames(packets)
        else:
            good = _count_frames(stream.codec_context, clip, choice, packets)
        yield from fill(good, show, clip, choice)


def _check_size(frame: av.VideoFrame, clip: IndexedClip, key: str) -> None:
    width, height = clip.coded_size
    if (frame.width, frame.height) != (width, height):
        raise UnsupportedMedia(
            f"{key}: the picture changes from {width}x{height} to {frame.width}x{frame.height} inside the file; "
            "re-encode it to one size",
            reason="RESOLUTION_CHANGE",
            media_key=key,
        )


def _converter(clip: IndexedClip) -> Callable[[av.VideoFrame], Pixels]:
    """Makes upright RGB pixels of a frame, in any thread."""
    own = threading.local()

    def convert(frame: av.VideoFrame) -> Pixels:
        if not hasattr(own, "reformatter"):
            own.reformatter = av.video.reformatter.VideoReformatter()
        return clip.upright(_rgb_view(own.reformatter.reformat(frame, format="rgb24", threads=1)))

    return convert


def _while_readable(packets: Iterator[av.Packet[av.VideoStream]]) -> Iterator[av.Packet[av.VideoStream]]:
    try:
        yield from packets
    except CorruptMedia:
        return


class _Groups:
    """Which groups of pictures are worth decoding."""

    def __init__(self, clip: IndexedClip, choice: Choice) -> None:
        self._group_at = {ordinal: group for group, ordinal in enumerate(clip.random_access_packets.tolist())}
        places = np.searchsorted(clip.random_access_frames, np.unique(choice.indices), "right") - 1
        self.wanted_count = Counter(places.tolist())
        self._last_wanted = int(places.max(initial=0))
        self._searches = choice.on_damage is OnDamage.REPEAT
        self.has_good = False

    def begun_by(self, ordinal: int) -> int | None:
        return self._group_at.get(ordinal)

    def needs(self, group: int) -> bool:
        """Whether it holds a chosen frame, or could hold the first good one of all."""
        return self.wanted_count[group] > 0 or (group > self._last_wanted and not self.is_done_after(group))

    def is_done_after(self, group: int) -> bool:
        return group >= self._last_wanted and (self.has_good or not self._searches)


class _TimedDecoder:
    """Decodes runs of packets, each from a random access point to the last chosen frame of its groups, or to damage."""

    def __init__(self, codec: av.VideoCodecContext, clip: IndexedClip, choice: Choice) -> None:
        self._codec = codec
        self._clip, self._key = clip, choice.key
        self._last_index = -1  # of the frames that the decoder has shown
        self._decoded = choice.decoded
        self._frame_of_packet = clip.frame_of_packet.tolist()
        self._is_wanted = np.isin(clip.frame_of_packet, choice.indices).tolist()
        self._random_access_frames = clip.random_access_frames.tolist()
        self._groups = _Groups(clip, choice)
        self._yields_unwanted = choice.on_damage is OnDamage.REPEAT  # they may replace bad ones
        self._is_referenced = reference_test(codec)
        self._wanted_packets: dict[int, av.Packet[av.VideoStream]] = {}  # of the run
        self._bad_from = math.inf  # ordinal of the run's first damage: later frames may refer to it

    def frames(self, packets: Iterator[av.Packet[av.VideoStream]]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Good frames with their indices, ascending: the chosen ones, and others where they may be needed."""
        codec, groups, is_wanted_at, frame_of_packet = self._codec, self._groups, self._is_wanted, self._frame_of_packet
        can_skip = codec.name not in _NEVER_SKIPPING
        due = 0  # chosen frames of the run's groups whose packets are still to come
        is_running, last_group, first_frame = False, -1, 0
        for ordinal, packet in enumerate(packets):
            group = groups.begun_by(ordinal)
            begins = group is not None and groups.needs(group)
            if is_running and (self._bad_from < math.inf or not (due or begins)):
                yield from self._judge(self._decode(None))
                is_running, due = False, 0
                if groups.is_done_after(last_group):
                    return
            if group is not None:
                last_group = group
                if begins:
                    if not is_running:
                        self._begin_run()
                        is_running, first_frame = True, self._random_access_frames[group]
                    due += groups.wanted_count[group] or len(frame_of_packet)
            if not is_running or NO_FRAME < frame_of_packet[ordinal] < first_frame:
                continue  # a leading frame: it needs the group before, and only other leading frames refer to it
            is_wanted = is_wanted_at[ordinal]
            if can_skip:
                codec.skip_frame = "DEFAULT" if is_wanted else "NONREF"
            if is_wanted:
                self._wanted_packets[ordinal] = packet
                due -= 1
            packet.pts = ordinal
            if frames := self._decode(packet):
                yield from self._judge(frames)
        if is_running:
            yield from self._judge(self._decode(None))

    def _begin_run(self) -> None:
        self._codec.flush_buffers()
        self._bad_from = math.inf
        self._wanted_packets.clear()

    def _decode(self, packet: av.Packet[av.VideoStream] | None) -> list[av.VideoFrame]:
        """The frames that the packet completes; with None, those that the decoder still holds for reordering."""
        try:
            frames = self._codec.decode(packet)
            self._decoded(len(frames))
            return frames
        except av.error.FFmpegError:
            if packet is not None and packet.pts is not None:
                self._note_damage(packet.pts)
            return []

    def _judge(self, frames: list[av.VideoFrame]) -> Iterator[tuple[int, av.VideoFrame]]:
        """The good ones among them, with their indices."""
        for frame in frames:
            ordinal = frame.pts
            if ordinal is None or ordinal >= self._bad_from or self._frame_of_packet[ordinal] == NO_FRAME:
                continue
            if frame.is_corrupt:
                self._note_damage(ordinal)
                continue
            index = self._frame_of_packet[ordinal]
            if index <= self._last_index:  # order or number of the frames contradicts the packets
                raise undecodable(self._clip, index, self._key)
            self._last_index = index
            self._groups.has_good = True
            if self._is_wanted[ordinal] or self._yields_unwanted:
                yield index, frame

    def _note_damage(self, ordinal: int) -> None:
        """Damage that other frames may refer to ends the run; else it spoils the one frame."""
        packet = self._wanted_packets.get(ordinal)
        if packet is None or self._is_referenced(packet):
            self._bad_from = min(self._bad_from, ordinal)


def _count_frames(
    codec: av.VideoCodecContext, clip: IndexedClip, choice: Choice, packets: Iterator[av.Packet[av.VideoStream]]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Good frames of a file without presentation times, numbered as they come; none is skipped within a group.

    All groups are closed, so the number of each one's first frame is known. Behind damage no number is: the rest of the group
    counts as bad.
    """
    groups = _Groups(clip, choice)
    random_access_frames = clip.random_access_frames.tolist()
    is_running, number, last_group = False, 0, -1
    for ordinal, packet in enumerate(itertools.chain(packets, [None])):
        group = groups.begun_by(ordinal)
        if group is not None or packet is None:
            if is_running:
                yield from enumerate(_good_part(codec, None, choice)[0], number)
            if group is None or (last_group >= 0 and groups.is_done_after(last_group)):
                return
            is_running, number, last_group = groups.needs(group), random_access_frames[group], group
            codec.flush_buffers()
        if not is_running:
            continue
        frames, is_running = _good_part(codec, packet, choice)
        groups.has_good = groups.has_good or bool(frames)
        yield from enumerate(frames, number)
        number += len(frames)


def _good_part(
    codec: av.VideoCodecContext, packet: av.Packet[av.VideoStream] | None, choice: Choice
) -> tuple[list[av.VideoFrame], bool]:
    """The frames that this packet completes, up to the first bad one, and whether none is bad."""
    try:
        frames = codec.decode(packet)
    except av.error.FFmpegError:
        return [], False
    choice.decoded(len(frames))
    good = list(itertools.takewhile(lambda frame: not frame.is_corrupt, frames))
    return good, len(good) == len(frames)


def _rgb_view(frame: av.VideoFrame) -> Pixels:
    """An RGB frame's own memory as uint8 [height, width, 3], without its row padding and without a copy."""
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(frame.height, plane.line_size)
    return rows[:, : frame.width * 3].reshape(frame.height, frame.width, 3)
