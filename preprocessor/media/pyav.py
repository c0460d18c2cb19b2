"""Decoding by FFmpeg through PyAV: no more of the file than the chosen frames need, and never an inexact pixel.

A chosen frame needs the packets from the last entry (`IndexedClip.entry_packets`) before it up to its own. So

* groups of pictures that hold no chosen frame are read over, and so is the rest of a group behind its last chosen frame:
  the decoder is drained there and flushed before the next group;
* within a group FFmpeg is told, packet by packet, whether the frame is wanted, and then never decodes an unwanted frame
  that no other frame refers to (about half the frames of an x264 file);
* behind the last chosen frame the file is not read.

A packet goes to the decoder with its ordinal in place of its time, and the frame comes back with it: two frames with equal
times, or times that lie, cannot be mistaken for one another.

A file without presentation times is decoded group by group and its frames are counted, for which groups must be closed.

Damage is what FFmpeg reports: a packet that it refuses, a frame that it marks as patched up. Later frames of the group may
refer to it, and a decoder that has lost a keyframe mixes up the order too: so the run ends there, and what follows up to
the next entry counts as bad (but for a frame that no other refers to, which spoils only itself). Entropy coding without
checks (VP8, VP9, much of CABAC) decodes damage to garbage that nothing tells from a picture: that is not seen. Nor is an
HEVC reference frame that is lost and not chosen.

One colour converter serves the whole clip, in one thread; `frame.to_ndarray` would build a new one for every frame and
start as many threads as there are cores. The pixels are the same.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator

import av
import av.container
import av.error
import av.video.reformatter
import numpy as np

from preprocessor.errors import CorruptMedia, UnsupportedMedia
from preprocessor.media.clip import NO_FRAME, IndexedClip, undecodable
from preprocessor.media.container import open_video, read_packets
from preprocessor.media.frames import Choice, Pixels, fill
from preprocessor.media.packets import reference_test
from preprocessor.types.request import OnDamage

# dav1d reads skip_frame once, when it is opened: the first packet would decide for the whole file.
_NEVER_SKIPPING = frozenset({"libdav1d"})


def decode_with_pyav(
    data: bytes, clip: IndexedClip, choice: Choice, inspect: Callable[[av.VideoFrame], None] = lambda _: None
) -> Iterator[Pixels]:
    """See `frames.Decoder`. A yielded array is valid until the next one is asked for; `inspect` sees its frame before."""
    reformatter = av.video.reformatter.VideoReformatter()

    def convert(frame: av.VideoFrame) -> Pixels:
        inspect(frame)
        width, height = clip.coded_size
        if (frame.width, frame.height) != (width, height):
            raise UnsupportedMedia(
                f"{choice.key}: the picture changes from {width}x{height} to {frame.width}x{frame.height} inside the file; "
                "re-encode it to one size",
                reason="RESOLUTION_CHANGE",
                media_key=choice.key,
            )
        return clip.upright(_rgb_view(reformatter.reformat(frame, format="rgb24", threads=1)))

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
        yield from fill(good, convert, clip, choice)


def _while_readable(packets: Iterator[av.Packet[av.VideoStream]]) -> Iterator[av.Packet[av.VideoStream]]:
    try:
        yield from packets
    except CorruptMedia:
        return


class _Groups:
    """Which groups of pictures are worth decoding."""

    def __init__(self, clip: IndexedClip, choice: Choice) -> None:
        self._group_at = {ordinal: group for group, ordinal in enumerate(clip.entry_packets.tolist())}
        places = np.searchsorted(clip.entry_frames, np.unique(choice.indices), "right") - 1
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
    """Decodes runs of packets, each from an entry to the last chosen frame that needs it, or to damage."""

    def __init__(self, codec: av.VideoCodecContext, clip: IndexedClip, choice: Choice) -> None:
        self._codec = codec
        self._clip, self._key = clip, choice.key
        self._last_index = -1  # of the frames that the decoder has shown
        self._decoded = choice.decoded
        self._frame_of_packet = clip.frame_of_packet.tolist()
        self._is_wanted = np.isin(clip.frame_of_packet, choice.indices).tolist()
        self._entry_frames = clip.entry_frames.tolist()
        self._groups = _Groups(clip, choice)
        self._yields_unwanted = choice.on_damage is OnDamage.REPEAT  # they may stand for bad ones
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
                        is_running, first_frame = True, self._entry_frames[group]
                    due += groups.wanted_count[group] or len(frame_of_packet)
            if not is_running or NO_FRAME < frame_of_packet[ordinal] < first_frame:
                continue  # such a frame leads the entry: it needs what is left out, and only its like need it
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
        """What the packet completes, or with None what the decoder holds back for order."""
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
            if index <= self._last_index:  # neither order nor number of the frames is what the packets told
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

    Groups are closed here, so each begins with a number that is sure. Behind damage nothing is: which frames are still
    held back, and in what order, only those lost would tell. So the rest of the group is bad.
    """
    groups = _Groups(clip, choice)
    entry_frames = clip.entry_frames.tolist()
    is_running, number, last_group = False, 0, -1
    for ordinal, packet in enumerate(itertools.chain(packets, [None])):
        group = groups.begun_by(ordinal)
        if group is not None or packet is None:
            if is_running:
                yield from enumerate(_good_part(codec, None, choice)[0], number)
            if group is None or (last_group >= 0 and groups.is_done_after(last_group)):
                return
            is_running, number, last_group = groups.needs(group), entry_frames[group], group
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
