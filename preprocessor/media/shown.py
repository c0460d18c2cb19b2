"""Which frames a decoder shows of a video's packets, found by decoding, where their bytes and times do not tell.

Two cases. A file may begin inside an open group: of the frames that refer to missing ones, each codec's decoder shows some and
skips others, so the first group is decoded. And packets may not be frames (several in one, one in several, none): then the
whole file is decoded once. No picture is converted or kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import av
import av.error

from preprocessor.errors import CorruptMedia
from preprocessor.media.container import read_packets
from preprocessor.media.streams import open_video
from preprocessor.media.walk import Walk


@dataclass(frozen=True, slots=True)
class Shown:
    """The frames that a decoder gives, in its order.

    Attributes:
        packets: For each frame the ordinal of the packet that it came from; -1 where the decoder does not say.
        failed: Ordinals of packets that the decoder refused.
        size: Width and height of the first frame in pixels, as coded; None without a frame.
    """

    packets: tuple[int, ...]
    failed: tuple[int, ...]
    size: tuple[int, int] | None

    @property
    def is_one_a_packet(self) -> bool:
        """No two frames come from one packet."""
        return -1 not in self.packets and len(set(self.packets)) == len(self.packets)

    def covers(self, walk: Walk, end: int) -> bool:
        """Whether each of the first `end` packets that should give a frame did, or failed to."""
        return {*self.packets, *self.failed} >= {ordinal for ordinal in range(end) if walk.is_frame[ordinal]}


def shown_frames(
    data: bytes,
    key: str,
    max_frame_pixels: int,
    check: Callable[[], None],
    stream_index: int,
    packet_count: int | None = None,
) -> Shown:
    """Decode the first `packet_count` packets of a stream, or all, and return which frames are shown.

    Packets that cannot be decoded give no frame, and no error either: see `pyav` for what becomes of damage.
    """
    packets: list[int] = []
    failed: list[int] = []
    size: tuple[int, int] | None = None
    with open_video(data, key, max_frame_pixels, check, stream_index=stream_index) as (container, stream):
        codec = stream.codec_context

        def take(packet: av.Packet[av.VideoStream] | None) -> None:
            nonlocal size
            try:
                frames = codec.decode(packet)
            except av.error.MemoryError:
                raise
            except av.error.FFmpegError:
                if packet is not None:
                    failed.append(packet.pts or 0)
                return
            for frame in frames:
                size = size or (frame.width, frame.height)
                packets.append(-1 if frame.pts is None else frame.pts)

        try:
            for ordinal, packet in enumerate(read_packets(container, stream, key, check)):
                if ordinal == packet_count:
                    break
                packet.pts = ordinal
                take(packet)
        except CorruptMedia:
            pass  # the walk met the same error and has handled it
        take(None)
    return Shown(tuple(packets), tuple(failed), size)
