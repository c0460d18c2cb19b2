"""A file of which the rest is still arriving: an mp4 whose index lies in front.

Its index says where every packet lies and when it is shown. So frames can be chosen before the rest has arrived, and those
decoded whose bytes are here. Two ways of reading it:

* Padded, for a plan: bytes that have not arrived read as zeros. What the walk learns from packets' bytes is then taken for
  granted: each packet is one frame, and each keyframe is a random access point. Nearly every file is so. The plan made of it is
  a guess, to be compared with the plan of the whole file.
* Strict, for decoding: a read of bytes that have not arrived ends the work with `NotArrived`. FFmpeg knows a file by what it
  reads of it and by its size. So what it has decoded without such a read is what it decodes of the whole file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Self, TypeVar

import av
import numpy as np
import numpy.typing as npt

from preprocessor.media.bitstream import Packet
from preprocessor.media.truncation.mp4 import boxes

READ_AHEAD_BYTES = 32 << 10
"""FFmpeg reads at most so far behind the packet that it returns: PyAV's `buffer_size`."""

_BEFORE_MEDIA = frozenset({b"ftyp", b"moov", b"free", b"skip", b"wide", b"uuid"})
_MOST_BOXES = 16  # in front of the media; an untrusted file may have any number

_Told = TypeVar("_Told")


class NotArrived(Exception):
    """The work needs bytes of the file that have not arrived."""


class ArrivingFile(bytes):
    """What has arrived of a file. As `bytes` it is the file's beginning, its index included, which tells what kind of file it is.

    Attributes:
        arrived: The bytes that are here.
        size_bytes: Of the whole file.
        is_padded: See the module.
        was_missed: Bytes that have not arrived were read, of a file that is not padded.
    """

    arrived: bytes
    size_bytes: int
    is_padded: bool
    was_missed: bool

    def __new__(cls, arrived: bytes, size_bytes: int, *, is_padded: bool) -> Self:
        """
        Raises:
            NotArrived: The index has not, or the file is none that can be read so.
        """
        stop = index_stop(arrived, size_bytes)
        if stop is None:
            raise NotArrived
        file = super().__new__(cls, arrived[:stop])
        file.arrived, file.size_bytes, file.is_padded, file.was_missed = arrived, size_bytes, is_padded, False
        return file

    def check(self) -> None:
        """Raises:
        NotArrived: Bytes were read that have not arrived.
        """
        if self.was_missed:
            raise NotArrived


def index_stop(arrived: bytes | memoryview, size_bytes: int) -> int | None:
    """Where the boxes end that come before an mp4's media, its index among them; None for another file, and until they are here.

    The media must be all that follows: FFmpeg looks for more boxes behind them before it reads a packet.

    Args:
        size_bytes: Of the whole file.
    """
    has_index = False
    for name, start, stop in itertools.islice(boxes(arrived), _MOST_BOXES):
        if name == b"mdat":
            return start if has_index and stop == size_bytes else None
        if name not in _BEFORE_MEDIA or stop > len(arrived):
            return None
        has_index = has_index or name == b"moov"
    return None


def arrived_bytes(data: bytes) -> int | None:
    """How much of an arriving file is here; None for any other file, which is whole."""
    return len(data.arrived) if isinstance(data, ArrivingFile) else None


def where_arrived(test: Callable[[Packet], _Told], arrived_bytes: int, otherwise: _Told) -> Callable[[Packet], _Told]:
    """The test for packets that have arrived, and what is taken for granted of others."""

    def judge(packet: Packet) -> _Told:
        return test(packet) if (packet.pos or 0) + packet.size <= arrived_bytes else otherwise

    return judge


def keys_to_come(stream: av.VideoStream, arrived_bytes: int) -> list[int]:
    """Ordinals of packets that have not arrived and are keyframes as the index says; FFmpeg's flag depends on their bytes."""
    entries = (entry for entry in stream.index_entries if entry.size > 0)
    return [
        ordinal for ordinal, entry in enumerate(entries) if entry.is_keyframe and entry.pos + entry.size > arrived_bytes
    ]


def needed_bytes(ends: npt.NDArray[np.int64], last_packet: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How much of a file must be here so that it can be decoded up to each of some packets.

    Args:
        ends: int64 [packet_count], where each packet ends in the file, in decode order.
        last_packet: Ordinals of packets.
    """
    read = np.maximum.accumulate(ends)
    # The decoder is drained when the packet after the last one has been read.
    return read[np.minimum(last_packet + 1, len(read) - 1)] + READ_AHEAD_BYTES
