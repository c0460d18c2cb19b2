"""Animated PNGs that FFmpeg does not decode, found before it says that a frame is damaged."""

from __future__ import annotations

import struct
from collections.abc import Callable

from preprocessor.errors import UnsupportedMedia

_HEAD = b"\x89PNG\r\n\x1a\n"
_HAS_ALPHA = frozenset({4, 6})  # colour types; PNG 3rd edition, 11.2.1
_OVER = 1  # blend_op; 11.3.6.2
_CHUNKS_BETWEEN_CHECKS = 1000


def check_blending(data: bytes, key: str, check: Callable[[], None]) -> None:
    """Return where FFmpeg can paint every frame. It blends no pixels of 16 bits (FFmpeg 8.1, pngdec.c, handle_p_frame_apng).

    Args:
        check: Called now and then; raises to stop the walk.
    Raises:
        UnsupportedMedia: `DECODER_LIMIT`.
    """
    if data[:8] != _HEAD or data[24:25] != b"\x10":
        return
    has_alpha, frame_count, position, chunk_count = data[25] in _HAS_ALPHA, 0, 8, 0
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"tRNS":
            has_alpha = True
        elif kind == b"fcTL":
            frame_count += 1
            if frame_count > 1 and has_alpha and data[position + 33 : position + 34] == bytes([_OVER]):
                raise UnsupportedMedia(
                    f"{key}: the animation blends frames of 16 bits a channel, which FFmpeg does not; save it with 8",
                    reason="DECODER_LIMIT",
                    media_key=key,
                )
        position += 12 + length
        chunk_count += 1
        if chunk_count % _CHUNKS_BETWEEN_CHECKS == 0:
            check()
