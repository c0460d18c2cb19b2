"""Sound in frames that state their own length, one behind the other: MP3, AAC (ADTS), AC-3, AMR, WavPack.

A file is cut if its last frame ends beyond it. Tags before and behind the frames are stepped over.
"""

from __future__ import annotations

from collections.abc import Callable

_MP3_KBPS = {  # ISO 11172-3 and 13818-3, 2.4.2.3: (is MPEG-1, layer) → by index
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_HZ = (44100, 48000, 32000)  # of MPEG-1; half of it in MPEG-2, a quarter in 2.5
_AC3_KBPS = (
    32,
    40,
    48,
    56,
    64,
    80,
    96,
    112,
    128,
    160,
    192,
    224,
    256,
    320,
    384,
    448,
    512,
    576,
    640,
)  # ATSC A/52, 5.4.1.4
_AMR_BYTES = (12, 13, 15, 17, 19, 20, 26, 31, 5, 0, 0, 0, 0, 0, 0, 0)  # RFC 4867, 5.3, behind the head of each frame
_AMR_WB_BYTES = (17, 23, 32, 36, 40, 46, 50, 58, 60, 5, 0, 0, 0, 0, 0, 0)
_HEAD_BYTES = 8  # at most, of a frame
_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN")  # behind the last frame

FrameBytes = Callable[[bytes, int], int]
"""The length that the frame at a position states; 0 where there is none."""


def is_sound_in_frames(data: bytes) -> bool:
    return _frame_bytes_of(data) is not None


def sound_in_frames_is_cut(data: bytes) -> bool:
    """The last frame ends beyond the file. What is no frame and no tag is not judged."""
    frame_bytes, first = _frame_bytes_of(data), _first_frame(data)
    if frame_bytes is None:
        return False
    position = first
    while position < len(data):
        size = frame_bytes(data, position)
        if not size:  # perhaps only the head of a frame is left
            rest = data[position:]
            return len(rest) < _HEAD_BYTES and rest[:2] == data[first : first + 2][: len(rest)]
        position += size
    return position > len(data) and not any(data.rfind(tag, max(0, position - size)) >= 0 for tag in _TAGS)


def _first_frame(data: bytes) -> int:
    """Where frames begin, behind an ID3v2 tag or a head of the format's own."""
    if data[:3] == b"ID3" and len(data) >= 10:
        size = 0
        for byte in data[6:10]:
            size = size << 7 | byte & 0x7F
        return 10 + size + (10 if data[5] & 0x10 else 0)
    return 9 if data[:9] == b"#!AMR-WB\n" else 6 if data[:6] == b"#!AMR\n" else 0


def _frame_bytes_of(data: bytes) -> FrameBytes | None:
    if data[:9] == b"#!AMR-WB\n":
        return lambda data, position: 1 + _AMR_WB_BYTES[data[position] >> 3 & 15]
    if data[:6] == b"#!AMR\n":
        return lambda data, position: 1 + _AMR_BYTES[data[position] >> 3 & 15]
    if data[:4] == b"wvpk":
        return _wavpack_bytes
    first = _first_frame(data)
    for frame_bytes in (_adts_bytes, _mp3_bytes, _ac3_bytes):
        size = frame_bytes(data, first)  # two in a row: a sync of a few bits is in any file
        if size and (frame_bytes(data, first + size) or first + size >= len(data)):
            return frame_bytes
    return None


def _wavpack_bytes(data: bytes, position: int) -> int:
    head = data[position : position + 8]
    return 8 + int.from_bytes(head[4:], "little") if head[:4] == b"wvpk" and len(head) == 8 else 0


def _adts_bytes(data: bytes, position: int) -> int:
    """ISO 13818-7, 6.2."""
    head = data[position : position + 7]
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return 0
    return (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5


def _mp3_bytes(data: bytes, position: int) -> int:
    """ISO 11172-3, 2.4.3.1: MPEG audio of any layer."""
    head = data[position : position + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)  # 3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return 0
    is_mpeg1, padding = version == 3, head[2] >> 1 & 1
    bits = _MP3_KBPS[is_mpeg1, layer][bitrate] * 1000
    hz = _MP3_HZ[rate] >> (0 if is_mpeg1 else 1 if version == 2 else 2)
    if layer == 1:
        return (12 * bits // hz + padding) * 4
    return (144 if is_mpeg1 or layer == 2 else 72) * bits // hz + padding


def _ac3_bytes(data: bytes, position: int) -> int:
    """ATSC A/52: AC-3 (5.3.1 and 5.4.1) and E-AC-3 (E.2.3.1)."""
    head = data[position : position + 6]
    if len(head) < 6 or head[:2] != b"\x0b\x77":
        return 0
    if head[5] >> 3 > 10:
        return (((head[2] & 7) << 8 | head[3]) + 1) * 2
    rate, code = head[4] >> 6, head[4] & 0x3F
    if rate == 3 or code >= 2 * len(_AC3_KBPS):
        return 0
    kbps = _AC3_KBPS[code >> 1]
    words = {0: kbps * 2, 1: kbps * 320 // 147 + (code & 1), 2: kbps * 3}[rate]
    return words * 2
